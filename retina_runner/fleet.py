"""All nodes of a run, side by side: a thread for each, one T0 for all, one event stream out.

    connect ─ install ─ check ─┐ barrier ┌─ start ─ ready ─┐ barrier ┌─ release(T0) ─ window ─ fetch ─ verify ─ remove
    (the same on every node)   └─────────┘                 └─────────┘

Nothing is started anywhere before every node has been checked. A node's trouble is an event and ends that node; the
others don't wait for it beyond `ready_timeout`. `forks` bounds what costs the runner something, connecting and fetching;
never the window. A run whose runner died is adopted by another one: the same, from the third step on.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retina_runner.account import Account
from retina_runner.agent.clock import both
from retina_runner.agent.context import utc
from retina_runner.agent.release import begin_lead_s
from retina_runner.barrier import Barrier
from retina_runner.bundle import AgentBundle
from retina_runner.clocks import ENOUGH_S, Reading, drift
from retina_runner.delivery import Delivery
from retina_runner.executors import Clock, LinkLost, LinkRefused
from retina_runner.follower import Follower
from retina_runner.freezing import Duties, Freezes, Hands
from retina_runner.homecoming import Homecoming
from retina_runner.moving import Crowd, Following, Standing, Watch
from retina_runner.persistence import Persistence
from retina_runner.targets import Adoption, Target, Terms
from retina_runner.verification import Verification

LEAD_MARGIN_S, LEAD_MOST_S = 0.1, 60.0
T0_STEPS_S = 1000
"""T0 is a whole millisecond: whoever writes it down needs no more digits."""
AGAIN = "run the runbook again"
MOVES_EXTRA_S = 15.0
"""How long beyond `ready_timeout` those that are ready wait for pods that move; less than an agent's patience (RELEASE_GRACE_S)."""


class Fleet:
    """Carries one run out. `events()` yields everything that happens, until the last node is done.

    `delivery` says where each archive goes. `verify(path)` returns what is wrong with an archive, nothing for an intact one.
    `keep_bytecode(units)` is given what nodes have compiled. `watch` tells when pods move that nodes were chosen for.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        agent: AgentBundle,
        archives: Path,
        terms: Terms,
        *,
        verify: Callable[[Path], Verification],
        delivery: Delivery,
        adopt: Adoption | None = None,
        keep_bytecode: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
        watch: Watch[Target] | None = None,
    ):
        self._targets = tuple(targets)
        self._agent, self._terms, self._adopt = agent, terms, adopt
        self._delivery, self._keep_bytecode = delivery, keep_bytecode
        self._account = Account(terms.max_fail)
        self._say, self._failed, self._halted = self._account.say, self._account.failed, self._account.halted
        self._persistence = Persistence(self._account, terms)
        self._home = Homecoming(self._account, self._persistence, archives, terms, verify=verify, delivery=delivery)
        self._checked = Barrier({t.id for t in targets})
        self._ready = Barrier({t.id for t in targets})
        self._go = threading.Event()
        self._standing: Standing[Target] = Standing()
        crowd = Crowd(self._ready, lambda: [t.id for t in self._targets], self._halted, self._until, self._join)
        self._following = Following(watch, self._standing, crowd)
        self._workers: list[threading.Thread] = []
        self._t0 = 0.0
        self._freezes = Freezes.of(targets[0].plan) if targets else None

    # -- the outside ---------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[dict[str, Any]]:
        """Run; iterate in the main thread, so that signals are handled between events."""
        for target in self._targets:
            self._begin(target)
        if self._adopt is None:
            threading.Thread(target=self._pace, name="pacemaker", daemon=True).start()
        yield from self._account.events(lambda: len(self._workers))

    def _begin(self, target: Target) -> None:
        worker = threading.Thread(target=self._guard, args=(target,), name=target.id, daemon=True)
        self._workers.append(worker)
        worker.start()

    def interrupt(self, signal: str) -> None:
        """End the window now on every node, keep what is there; `events` tells it. Safe in a signal handler."""
        self._account.interrupt(signal)

    def remains(self) -> tuple[str, ...]:
        """What may still be on nodes at this moment: one line each, `node: directory`."""
        return self._account.remains(self._targets)

    def _follower(self, target: Target) -> Follower:
        return Follower(
            target.link,
            target.directory,
            duties=self._duties_of(target),
            interrupted=self._account.interrupted,
            persistently=functools.partial(self._persistence.do, target),
            pass_on=functools.partial(self._account.pass_on, target),
        )

    # -- the barriers ----------------------------------------------------------------------------------------------------

    def _pace(self) -> None:
        """Lets the nodes go on together: first to start, then to T0."""
        limit = time.monotonic() + self._terms.ready_timeout_s
        self._until(self._checked, limit)
        self._following.follow(self._checked, limit + self._terms.ready_timeout_s)
        self._go.set()
        for late in self._checked.late():
            self._ready.drop(late)  # it has had its time; when it comes, it begins at once, and its archive says so
        limit = time.monotonic() + self._terms.ready_timeout_s
        self._until(self._ready, limit)
        moved = self._following.follow(self._ready, limit + MOVES_EXTRA_S)
        for target, why in self._following.note(moved):
            self._failed(target, "pods", f"{why}, too late to be captured at this T0", AGAIN)
        if not self._halted() and self._ready.arrived:
            lead_s = min(max(self._ready.arrived.values()), LEAD_MOST_S) + LEAD_MARGIN_S
            # As soon as it can be done: names say its second, manifests and run.json the whole of it.
            self._t0 = math.ceil((time.time() + lead_s) * T0_STEPS_S) / T0_STEPS_S
            self._say("t0", t0=utc(self._t0), lead_s=round(self._t0 - time.time(), 3))
        self._standing.release()

    def _until(self, barrier: Barrier, limit: float) -> None:
        while not barrier.complete(0.05) and time.monotonic() < limit and not self._halted():
            pass

    def _join(self, target: Target, why: str) -> None:
        self._checked.expect(target.id)
        self._ready.expect(target.id)
        self._targets = (*self._targets, target)
        self._say("node-joined", target, executor=target.executor, directory=target.directory, why=why,
                  reach=asdict(target.reach) if target.reach is not None else None)  # fmt: skip
        self._begin(target)

    # -- one node --------------------------------------------------------------------------------------------------------

    def _guard(self, target: Target) -> None:
        try:
            self._one(target) if self._adopt is None else self._adopted(target, self._adopt)
        except LinkRefused as refused:
            self._failed(target, refused.what, refused.why, refused.hint)
        except LinkLost as lost:
            remains = self._account.is_unclean(target)
            left = f"retina-run cleanup removes what is left in {target.directory}" if remains else ""
            self._failed(target, lost.what, lost.why or str(lost), "; ".join(h for h in (lost.hint, left) if h))
        except OSError as error:
            self._home.failed_here(target, error)
        except Exception as error:
            self._failed(target, "retina-run", f"{type(error).__name__}: {error}", "this is a bug")
        finally:
            self._checked.drop(target.id)
            self._ready.drop(target.id)
            try:
                target.link.close()
            finally:
                self._account.last_word()

    def _one(self, target: Target) -> None:
        link = target.link
        if not self._persistence.meet(target, self._agent):
            return
        self._account.unclean(target, target.work_directory)
        worst = self._check(target)
        if worst is not None:
            self._persistence.remove(target, quietly=True)
            self._failed(target, worst["what"], worst["why"], worst["hint"])
            return
        reading = self._compare_clocks(target)
        clock = reading.clock
        self._checked.arrive(target.id)
        self._go.wait()
        if self._halted():
            self._persistence.remove(target, quietly=True)
            if self._account.held_back.is_set():
                self._account.hold_back(target)
            return
        former = None
        while not self._standing.left(target):
            target = self._newest(target)
            follower = self._start(target, clock, former)
            if follower.ended:
                self._ready.drop(target.id)
                break
            if self._standing.wait(target):
                break
            # There is no window yet.
            self._persistence.do(target, functools.partial(link.call, "stop", target.directory))
            former = target
        else:
            self._leave(target)
            return
        if not follower.ended and not self._account.interrupted.is_set():
            if self._t0:
                self._release(target, clock, self._t0)
            else:
                self._persistence.do(target, lambda: link.call("stop", target.directory))
        for _ in follower.until("end"):
            pass
        self._compare_again(target, follower, reading)
        self._bring_back(target, follower)
        if self._account.held_back.is_set() and not self._t0:
            self._account.hold_back(target)

    def _newest(self, target: Target) -> Target:
        newest = self._standing.newest(target)
        if newest is not target:
            self._say("node-replanned", newest, directory=newest.directory, why=self._standing.why[target.id])
        return newest

    def _start(self, target: Target, clock: Clock, former: Target | None) -> Follower:
        """Start its agent, in place of a former one; returns when it is ready, or has ended."""
        begun = time.monotonic()
        self._account.unclean(target, target.directory)
        limit_s = max(15.0, self._terms.ready_timeout_s)
        start = functools.partial(target.link.call, "start", target.directory, stdin=target.plan, limit_s=limit_s)
        self._persistence.do(target, start)
        call_s = time.monotonic() - begun
        if former is not None:  # after the start: with its last agent a pod goes
            self._persistence.call(target, "remove", former.directory, limit_s=90.0)
        follower = self._follower(target)
        for event in follower.until("ready", "end"):
            if event["event"] == "ready" and not self._standing.moved(target):
                # The release is a smaller call than the one just made, at the same time as everybody's.
                self._ready.arrive(target.id, begin_lead_s(event["rehearsal_s"]) + 4 * clock.error_s + call_s)
        return follower

    def _leave(self, target: Target) -> None:
        """Nothing that is to be captured is there any more."""
        self._ready.drop(target.id)
        self._persistence.remove(target, quietly=True)
        self._say("node-left", target, why=self._standing.left(target))

    def _release(self, target: Target, clock: Clock, t0: float) -> None:
        release = {
            "t0": t0 + clock.offset_s,
            "reference_t0": t0,
            "offset_s": clock.offset_s,
            "offset_error_s": clock.error_s,
            "stale": self._standing.stale.get(target.id, ""),
            "warnings": [self._standing.unseen[target.id]] if target.id in self._standing.unseen else [],
        }
        text = json.dumps(release).encode()
        self._persistence.do(target, lambda: target.link.call("release", target.directory, stdin=text))

    def _adopted(self, target: Target, adoption: Adoption) -> None:
        """Take up where a dead runner left off: what its agent does or has done decides what is left to do."""
        link = target.link
        self._account.unclean(target, target.directory)
        if not self._persistence.meet(target, self._agent):
            return
        reading = self._compare_clocks(target)
        follower = self._follower(target)
        try:
            if adoption.t0 is not None:
                # The first T0 stands: no news to an agent that has it.
                self._release(target, reading.clock, adoption.t0)
            else:
                link.call("stop", target.directory)
        except LinkRefused:
            self._persistence.remove(target, quietly=True)
            self._failed(target, "agent", f"nothing of this run is in {target.directory}",
                         "it never started there, or its expiry has passed; retina-run retry --failed does it again")  # fmt: skip
            return
        for _ in follower.until("end"):
            pass
        self._compare_again(target, follower, reading)
        self._bring_back(target, follower)

    def _compare_clocks(self, target: Target) -> Reading:
        clock = target.link.clock()
        self._say("node-clock", target, offset_s=round(clock.offset_s, 6), error_s=round(clock.error_s, 6))
        return Reading(clock, *both())

    def _compare_again(self, target: Target, follower: Follower, before: Reading) -> None:
        """After the window: did the node's clock keep step with ours? A clock that is ours too needs no question, and a node
        that was told to end early (it is drained, say) has no time for one."""
        if follower.archive is None or not before.clock.error_s or self._account.interrupted.is_set():
            return
        if "cut_short" in follower.archive:
            return
        clock = self._persistence.clock(target, ENOUGH_S)
        told = drift(before, Reading(clock, *both()), follower.steps_s)
        self._say("clock-drift", target, drift_s=round(told.drift_s, 6), error_s=round(told.error_s, 6),
                  elapsed_s=round(told.elapsed_s, 3), known_s=round(told.known_s, 6), stepped=told.stepped)  # fmt: skip

    def _check(self, target: Target) -> Mapping[str, str] | None:
        """Ask the node whether it can do the plan; what keeps it from it, or None."""
        report = target.link.call("check", "--directory", target.work_directory, stdin=target.plan)
        problems = [{"what": p["what"], "why": p["why"], "hint": p["hint"]} for p in report["problems"]]
        reached = self._delivery.reach(target.executor == "local", target.link.call)
        stores = {"stores": reached} if reached else {}
        self._say("node-check", target, ok=report["ok"], problems=problems,
                  facts={"kernel": report["host"]["kernel"], "distribution": report["host"]["distribution"],
                         "free_bytes": report["disk"]["free_bytes"]}, **stores)  # fmt: skip
        if not report["ok"]:
            return next(p for p in report["problems"] if p["severity"] == "fatal")  # type: ignore[no-any-return]
        return self._delivery.refused(reached)

    def _bring_back(self, target: Target, follower: Follower) -> None:
        if follower.duties is not None:
            follower.duties.finish()
        if follower.ended and target.compiles and self._keep_bytecode is not None:
            try:
                self._keep_bytecode(self._persistence.call(target, "bytecode", target.directory)["units"])
            except LinkRefused:
                pass  # the next run's nodes compile again
        if follower.archive is not None:
            if not self._home.bring(target, follower.archive):
                return
        elif not follower.ended:
            self._failed(
                target, "agent", "it is gone without a word", f"its log is {target.directory}/agent.log on the node"
            )
            return
        if not self._terms.keep and not (follower.duties is not None and follower.duties.kept):
            self._persistence.remove(target)

    def _duties_of(self, target: Target) -> Duties[Target] | None:
        """What a node's thread has to do for frozen rings; None in a run without a trigger."""
        if self._freezes is None:
            return None

        def order(document: bytes) -> None:
            self._persistence.call(target, "freeze", target.directory, stdin=document)

        hands = Hands(functools.partial(self._persistence.clock, target), order, self._say,
                      lambda stamp: replace(target, id=f"{target.id}#{stamp}"), self._home.bring_recording, self._failed)  # fmt: skip
        return Duties(target, self._freezes, hands, self._adopt.brought if self._adopt else ())
