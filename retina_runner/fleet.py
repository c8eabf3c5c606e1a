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
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retina_runner.agent.context import utc
from retina_runner.agent.passing import is_full
from retina_runner.agent.release import begin_lead_s
from retina_runner.barrier import Barrier
from retina_runner.bundle import AgentBundle
from retina_runner.clocks import Reading, drift
from retina_runner.delivery import Delivery
from retina_runner.errors import ArchiveError
from retina_runner.executors import Clock, Link, LinkLost, LinkRefused
from retina_runner.fetching import Throttle, fetch
from retina_runner.follower import Follower
from retina_runner.freezing import Duties, Freezes, Hands, Postponed
from retina_runner.moving import Changes, Standing, Watch
from retina_runner.verification import Verification, first_manifest

LEAD_MARGIN_S, LEAD_MOST_S = 0.1, 60.0
T0_STEPS_S = 1000
"""T0 is a whole millisecond: whoever writes it down needs no more digits."""
AGAIN = "run the runbook again"
RECONNECT_FIRST_S, RECONNECT_MOST_S = 1.0, 20.0
FIRST_TRIES = 4
"""How often a connection that was dropped before the login is tried: sshd does so beyond MaxStartups, at random."""
INTERRUPTED_LIMIT_S = 20.0
"""How long after Ctrl-C a node that can't be reached is still tried."""
DEFAULT_FORKS = 50
MOVES_MOST = 3
"""How often nodes are planned again for pods that go on moving, before they are all checked and before T0 each."""
MOVES_EXTRA_S = 15.0
"""How long beyond `ready_timeout` those that are ready wait for this; less than an agent's patience (RELEASE_GRACE_S)."""


@dataclass(frozen=True)
class Target:
    """One plan on one node. `id` is unique in the run; `directory` is where its agent works on the node.

    `compiles`: it may have BPF programs compiled there, which other nodes could use. `reach` is what a later runner needs
    to get there, a dataclass; None for this machine.
    """

    id: str
    node: str
    capture: str
    executor: str
    directory: str
    plan: bytes
    duration_s: float
    link: Link
    work_directory: str
    compiles: bool = False
    reach: Any = None


@dataclass(frozen=True)
class Terms:
    """How a run goes about it. `max_fail`: with more failed nodes than that, nothing new is started (None: go on).

    `reconnect_timeout_s`: how long a node that was lost is tried again after its window. `fetch_bytes_s` bounds all
    fetching together (None: as fast as it goes). `keep` leaves the agents' directories where they are.
    """

    ready_timeout_s: float
    reconnect_timeout_s: float = 600.0
    forks: int = DEFAULT_FORKS
    max_fail: int | None = None
    fetch_bytes_s: float | None = None
    keep: bool = False


@dataclass(frozen=True)
class Adoption:
    """What is known of a run whose runner died: its T0 (Unix time), None if none had been agreed; and the ids of the
    frozen windows that it had brought home."""

    t0: float | None
    brought: frozenset[str] = frozenset()


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
        self._agent, self._archives, self._terms, self._adopt = agent, archives, terms, adopt
        self._verify, self._delivery, self._keep_bytecode = verify, delivery, keep_bytecode
        self._slots = threading.BoundedSemaphore(terms.forks)
        self._throttle = Throttle(terms.fetch_bytes_s)
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._checked = Barrier({t.id for t in targets})
        self._ready = Barrier({t.id for t in targets})
        self._go = threading.Event()
        self._standing: Standing[Target] = Standing()
        self._watch = watch
        self._workers: list[threading.Thread] = []
        self._interrupted = threading.Event()
        self._interrupted_at = 0.0
        self._stopped = threading.Event()
        self._fails = 0
        self._t0 = 0.0
        self._freezes = Freezes.of(targets[0].plan) if targets else None
        self._unclean: dict[str, str] = {}
        self._lock = threading.Lock()

    # -- the outside ---------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[dict[str, Any]]:
        """Run; iterate in the main thread, so that signals are handled between events."""
        for target in self._targets:
            self._begin(target)
        if self._adopt is None:
            threading.Thread(target=self._pace, name="pacemaker", daemon=True).start()
        ended = 0
        while ended < len(self._workers):
            # Without a limit: a signal's handler runs here all the same, and puts what it has to say into the queue.
            event = self._queue.get()
            if event is None:
                ended += 1  # a node's thread has said its last word
            else:
                yield event
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if event is not None:
                yield event

    def _begin(self, target: Target) -> None:
        worker = threading.Thread(target=self._guard, args=(target,), name=target.id, daemon=True)
        self._workers.append(worker)
        worker.start()

    def interrupt(self, signal: str) -> None:
        """End the window now on every node, keep what is there; `events` tells it.

        Safe in a signal handler: what is interrupted may be anything, an unfinished write to a terminal among it, so
        nothing is written here, and the queue is one whose `put` may interrupt itself (queue.SimpleQueue).
        """
        self._interrupted_at = time.monotonic()
        self._interrupted.set()
        self._say("interrupted", signal=signal, remains=[])

    def remains(self) -> tuple[str, ...]:
        """What may still be on nodes at this moment: one line each, `node: directory`."""
        with self._lock:
            return tuple(f"{t.id}: {self._unclean[t.id]}" for t in self._targets if t.id in self._unclean)

    def _say(self, event: str, at: Target | None = None, /, **fields: Any) -> None:
        who = {"id": at.id, "node": at.node, "capture": at.capture} if at else {}
        self._queue.put({"time": utc(), "event": event, **who, **fields})

    def _follower(self, target: Target) -> Follower:
        who = {"id": target.id, "node": target.node, "capture": target.capture}

        def pass_on(event: Mapping[str, Any]) -> None:
            fields = {k: v for k, v in event.items() if k not in ("seq", "event", "time")}
            self._queue.put({"time": event["time"], "event": event["event"], **who, **fields})

        return Follower(
            target.link,
            target.directory,
            duties=self._duties_of(target),
            interrupted=self._interrupted,
            persistently=functools.partial(self._persistently, target),
            pass_on=pass_on,
        )

    # -- the barriers ----------------------------------------------------------------------------------------------------

    def _pace(self) -> None:
        """Lets the nodes go on together: first to start, then to T0."""
        limit = time.monotonic() + self._terms.ready_timeout_s
        self._until(self._checked, limit)
        self._follow_pods(self._checked, limit + self._terms.ready_timeout_s)
        self._go.set()
        for late in self._checked.late():
            self._ready.drop(late)  # it has had its time; when it comes, it begins at once, and its archive says so
        limit = time.monotonic() + self._terms.ready_timeout_s
        self._until(self._ready, limit)
        self._note_moves(self._follow_pods(self._ready, limit + MOVES_EXTRA_S))
        if not self._halted() and self._ready.arrived:
            lead_s = min(max(self._ready.arrived.values()), LEAD_MOST_S) + LEAD_MARGIN_S
            # As soon as it can be done: names say its second, manifests and run.json the whole of it.
            self._t0 = math.ceil((time.time() + lead_s) * T0_STEPS_S) / T0_STEPS_S
            self._say("t0", t0=utc(self._t0), lead_s=round(self._t0 - time.time(), 3))
        self._standing.release()

    def _until(self, barrier: Barrier, limit: float) -> None:
        while not barrier.complete(0.05) and time.monotonic() < limit and not self._halted():
            pass

    def _follow_pods(self, barrier: Barrier, limit: float) -> Changes:
        """Have the nodes follow pods that have moved, until they stay or the time is up; what is still otherwise then."""
        for left in range(MOVES_MOST, -1, -1):
            if self._watch is None or self._halted():
                break
            try:
                changes = self._watch.look(self._halted)
                if not changes or not left or time.monotonic() >= limit:
                    return changes
                planned = {target.id: target for target in self._watch.take(changes)}
            except Exception as error:  # whatever it is, everybody waits for this thread
                why = f"its pods couldn't be looked at again before T0: {type(error).__name__}: {error}"
                return Changes(unseen={target.id: why for target in self._targets})
            for identifier in (*changes.replanned, *changes.left):
                self._ready.recall(identifier)  # before it is told, or nobody would wait for it
            for identifier, why in changes.joined.items():
                self._join(planned[identifier], why)
            for identifier, why in changes.replanned.items():
                self._standing.replan(planned[identifier], why)
            for identifier, why in changes.left.items():
                self._standing.leave(identifier, why)
            self._until(barrier, limit)
        return Changes()

    def _join(self, target: Target, why: str) -> None:
        self._checked.expect(target.id)
        self._ready.expect(target.id)
        self._targets = (*self._targets, target)
        self._say("node-joined", target, executor=target.executor, directory=target.directory, why=why,
                  reach=asdict(target.reach) if target.reach is not None else None)  # fmt: skip
        self._begin(target)

    def _note_moves(self, late: Changes) -> None:
        """What nobody waits for any more: told with the release, and of nodes that aren't captured as their failure."""
        self._standing.stale.update(late.replanned)
        self._standing.unseen.update(late.unseen)
        for identifier, why in late.left.items():
            self._standing.leave(identifier, why)
        for identifier, why in late.joined.items():
            assert self._watch is not None
            self._failed(self._watch.late(identifier), "pods", f"{why}, too late to be captured at this T0", AGAIN)

    def _halted(self) -> bool:
        """Nothing new begins any more: Ctrl-C, or too many nodes have failed."""
        return self._interrupted.is_set() or self._stopped.is_set()

    # -- one node --------------------------------------------------------------------------------------------------------

    def _guard(self, target: Target) -> None:
        try:
            self._one(target) if self._adopt is None else self._adopted(target, self._adopt)
        except LinkRefused as refused:
            self._failed(target, refused.what, refused.why, refused.hint)
        except LinkLost as lost:
            left = (
                f"retina-run cleanup removes what is left in {target.directory}" if target.id in self._unclean else ""
            )
            self._failed(target, lost.what, lost.why or str(lost), "; ".join(h for h in (lost.hint, left) if h))
        except OSError as error:
            self._failed(
                target,
                error.filename or "this machine",
                error.strerror or str(error),
                self._kept(target, error),
            )
        except Exception as error:
            self._failed(target, "retina-run", f"{type(error).__name__}: {error}", "this is a bug")
        finally:
            self._checked.drop(target.id)
            self._ready.drop(target.id)
            try:
                target.link.close()
            finally:
                self._queue.put(None)

    def _kept(self, target: Target, error: OSError) -> str:
        """What to do about an archive that this machine couldn't take."""
        free = "free some space, then " if is_full(error) else ""
        return (
            f"the node keeps its copy in {target.directory} until its expiry; {free}retina-run resume "
            f"{self._archives.parent} brings it here"
        )

    def _failed(self, target: Target, what: str, why: str, hint: str = "") -> None:
        with self._lock:
            remains = self._unclean.get(target.id, "")
            self._fails += 1
            fails, allowed = self._fails, self._terms.max_fail
        self._say("node-failed", target, what=what, why=why, **({"hint": hint} if hint else {}),
                  **({"remains": remains} if remains else {}))  # fmt: skip
        if allowed is not None and fails == allowed + 1 and not self._halted():
            self._stopped.set()
            self._say("held-back", failed=fails, max_fail=allowed)

    def _hold_back(self, target: Target) -> None:
        self._say("node-failed", target, what="max_fail", why="not started: too many other nodes had failed",
                  hint="mend those, or raise max_fail; retina-run retry --failed does these nodes again")  # fmt: skip

    def _one(self, target: Target) -> None:
        link = target.link
        if not self._meet(target):
            return
        self._note_unclean(target, target.work_directory)
        worst = self._check(target)
        if worst is not None:
            self._remove(target, quietly=True)
            self._failed(target, worst["what"], worst["why"], worst["hint"])
            return
        reading = self._compare_clocks(target)
        clock = reading.clock
        self._checked.arrive(target.id)
        self._go.wait()
        if self._halted():
            self._remove(target, quietly=True)
            if self._stopped.is_set():
                self._hold_back(target)
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
            self._persistently(target, functools.partial(link.call, "stop", target.directory))  # there is no window yet
            former = target
        else:
            self._leave(target)
            return
        if not follower.ended and not self._interrupted.is_set():
            if self._t0:
                self._release(target, clock, self._t0)
            else:
                self._persistently(target, lambda: link.call("stop", target.directory))
        for _ in follower.until("end"):
            pass
        self._compare_again(target, follower, reading)
        self._bring_back(target, follower)
        if self._stopped.is_set() and not self._t0:
            self._hold_back(target)

    def _newest(self, target: Target) -> Target:
        newest = self._standing.newest(target)
        if newest is not target:
            self._say("node-replanned", newest, directory=newest.directory, why=self._standing.why[target.id])
        return newest

    def _start(self, target: Target, clock: Clock, former: Target | None) -> Follower:
        """Start its agent, in place of a former one; returns when it is ready, or has ended."""
        begun = time.monotonic()
        self._note_unclean(target, target.directory)
        limit_s = max(15.0, self._terms.ready_timeout_s)
        start = functools.partial(target.link.call, "start", target.directory, stdin=target.plan, limit_s=limit_s)
        self._persistently(target, start)
        call_s = time.monotonic() - begun
        if former is not None:  # after the start: with its last agent a pod goes
            self._call_persistently(target, "remove", former.directory, limit_s=90.0)
        follower = self._follower(target)
        for event in follower.until("ready", "end"):
            if event["event"] == "ready" and not self._standing.moved(target):
                # The release is a smaller call than the one just made, at the same time as everybody's.
                self._ready.arrive(target.id, begin_lead_s(event["rehearsal_s"]) + 4 * clock.error_s + call_s)
        return follower

    def _leave(self, target: Target) -> None:
        """Nothing that is to be captured is there any more."""
        self._ready.drop(target.id)
        self._remove(target, quietly=True)
        self._say("node-left", target, why=self._standing.left(target))

    def _meet(self, target: Target) -> bool:
        """Connect and install, a bounded number at a time; whether it came to that. Raises LinkRefused, LinkLost."""
        give_up_at = time.monotonic() + self._terms.ready_timeout_s
        for number in range(1, FIRST_TRIES + 1):
            with self._slots:
                if self._halted():
                    if self._stopped.is_set():
                        self._hold_back(target)
                    return False
                try:
                    target.link.connect()
                    target.link.install(self._agent)
                    return True
                except LinkLost as lost:
                    if isinstance(lost, LinkRefused) or number == FIRST_TRIES or time.monotonic() > give_up_at:
                        raise
            self._interrupted.wait(random.uniform(0.3, 1.0) * number)
        raise AssertionError("unreachable")

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
        self._persistently(target, lambda: target.link.call("release", target.directory, stdin=text))

    def _adopted(self, target: Target, adoption: Adoption) -> None:
        """Take up where a dead runner left off: what its agent does or has done decides what is left to do."""
        link = target.link
        self._note_unclean(target, target.directory)
        if not self._meet(target):
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
            self._remove(target, quietly=True)
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
        return Reading(clock, time.time(), time.monotonic())

    def _compare_again(self, target: Target, follower: Follower, before: Reading) -> None:
        """After the window: did the node's clock keep step with ours? A clock that is ours too needs no question, and a node
        that was told to end early (it is drained, say) has no time for one."""
        if follower.archive is None or not before.clock.error_s or self._interrupted.is_set():
            return
        if "cut_short" in follower.archive:
            return
        found: list[Clock] = []
        self._persistently(target, lambda: found.append(target.link.clock()))
        told = drift(before, Reading(found[-1], time.time(), time.monotonic()), follower.steps_s)
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
        return None if report["ok"] else next(p for p in report["problems"] if p["severity"] == "fatal")

    def _bring_back(self, target: Target, follower: Follower) -> None:
        if follower.duties is not None:
            follower.duties.finish()
        if follower.ended and target.compiles and self._keep_bytecode is not None:
            try:
                self._keep_bytecode(self._call_persistently(target, "bytecode", target.directory)["units"])
            except LinkRefused:
                pass  # the next run's nodes compile again
        if follower.archive is not None:
            if not self._bring(target, follower.archive):
                return
        elif not follower.ended:
            self._failed(
                target, "agent", "it is gone without a word", f"its log is {target.directory}/agent.log on the node"
            )
            return
        if not self._terms.keep and not (follower.duties is not None and follower.duties.kept):
            self._remove(target)

    def _bring(self, target: Target, archive: Mapping[str, Any], urgent: Callable[[], bool] = lambda: False) -> bool:
        """Have an archive where it should be; False when the node must keep it. Raises Postponed when something is urgent."""
        self._say_all(target, self._delivery.from_node(
            target.id, target.node, target.executor == "local", target.directory, archive,
            lambda *words, **options: self._call_persistently(target, *words, **options),
        ))  # fmt: skip
        if not self._delivery.wanted_here(target.id):
            trouble = self._delivery.note(target.id, target.node, archive, self._manifest(target, archive))
            if not trouble:
                self._say("delivered", target, location=self._delivery.location(target.id))
                return True
            self._say("warning", target, why=f"{trouble}; the archive is fetched, so that it can be made up for")
        path = self._fetch(target, archive, urgent)
        verified = self._verify(path)
        problems = verified.problems
        self._say("verified", target, ok=not problems, problems=list(problems))
        if problems:
            # Not removed: the node's copy may be the better one.
            self._failed(target, path.name, problems[0], f"the node keeps its copy in {target.directory}")
            return False
        manifest = json.dumps(verified.manifest, indent=1).encode() if verified.manifest else b""
        self._say_all(target, self._delivery.store(target.id, target.node, path, archive["sha256"], manifest))
        return True

    def _manifest(self, target: Target, archive: Mapping[str, Any]) -> bytes:
        """The manifest of an archive that stays where it is: its first member, of which no more is read than that."""
        found: list[dict[str, Any]] = []

        def read() -> None:
            try:
                found.append(first_manifest(target.link.fetch(target.directory, str(archive["name"]), 0)))
            except ArchiveError as error:
                raise LinkRefused(str(archive["name"]), str(error), f"it is in {target.directory}") from None

        self._persistently(target, read)
        return json.dumps(found[-1], indent=1).encode()

    def _bring_recording(self, row: Target, archive: Mapping[str, Any], urgent: Callable[[], bool]) -> bool:
        """As `_bring`, of a frozen window; what goes wrong with it is this one's trouble alone. The node then lets go of it."""
        try:
            if not self._bring(row, archive, urgent):
                return False
        except LinkRefused as refused:
            self._failed(row, refused.what, refused.why, refused.hint)
            return False
        except OSError as error:
            self._failed(row, error.filename or "this machine", error.strerror or str(error), self._kept(row, error))
            return False
        if not self._terms.keep:
            self._call_persistently(row, "drop", row.directory, "--name", str(archive["name"]))
        return True

    def _duties_of(self, target: Target) -> Duties[Target] | None:
        """What a node's thread has to do for frozen rings; None in a run without a trigger."""
        if self._freezes is None:
            return None

        def clock() -> Clock:
            found: list[Clock] = []
            self._persistently(target, lambda: found.append(target.link.clock()))
            return found[-1]

        def order(document: bytes) -> None:
            self._call_persistently(target, "freeze", target.directory, stdin=document)

        hands = Hands(clock, order, self._say, lambda stamp: replace(target, id=f"{target.id}#{stamp}"),
                      self._bring_recording, self._failed)  # fmt: skip
        return Duties(target, self._freezes, hands, self._adopt.brought if self._adopt else ())

    def _fetch(self, target: Target, archive: Mapping[str, Any], urgent: Callable[[], bool] = lambda: False) -> Path:
        """Bring the archive here, resuming where a broken connection left off; verified by the agent's digest."""
        path = self._archives / str(archive["name"])
        size, sha256 = int(archive["size_bytes"]), str(archive["sha256"])

        def read(offset: int) -> Iterator[bytes]:
            for chunk in target.link.fetch(target.directory, path.name, offset):
                yield chunk
                if urgent():
                    raise Postponed

        def bring() -> None:
            with self._slots:
                wrong = fetch(read, path, size, sha256, self._throttle)
            if wrong:
                raise LinkRefused(path.name, wrong, f"the node keeps its copy in {target.directory}")

        self._persistently(target, bring)
        self._say("fetched", target, path=str(path), size_bytes=size, sha256=sha256)
        return path

    def _persistently(self, target: Target, action: Callable[[], Any]) -> None:
        """Do it, over as many connections as it takes. Raises LinkLost when the node stays away, LinkRefused."""
        delay_s, lost = RECONNECT_FIRST_S, False
        give_up_at = time.monotonic() + target.duration_s + self._terms.reconnect_timeout_s
        while True:
            try:
                if lost:
                    with self._slots:
                        target.link.connect()
                    self._say("reattached", target)
                    lost, delay_s = False, RECONNECT_FIRST_S
                action()
                return
            except LinkLost as error:
                if not lost:
                    self._say("lost", target, why=str(error))
                lost = True
                now = time.monotonic()
                if now > give_up_at or (
                    self._interrupted.is_set() and now > self._interrupted_at + INTERRUPTED_LIMIT_S
                ):
                    raise
                pause_s = delay_s * random.uniform(0.5, 1.0)  # a hundred nodes behind one switch come back together
                time.sleep(min(pause_s, 1.0)) if self._interrupted.is_set() else self._interrupted.wait(pause_s)
                delay_s = min(2 * delay_s, RECONNECT_MOST_S)

    def _call_persistently(self, target: Target, *words: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        self._persistently(target, lambda: answer.update(target.link.call(*words, **options)))
        return answer

    def _say_all(self, target: Target, events: Iterator[Mapping[str, Any]]) -> None:
        for event in events:
            self._say(str(event["event"]), target, **{k: v for k, v in event.items() if k != "event"})

    def _remove(self, target: Target, quietly: bool = False) -> None:
        answer: dict[str, Any] = {}
        self._persistently(target, lambda: answer.update(target.link.call("remove", target.directory, limit_s=90.0)))
        if not answer.get("removed"):
            self._failed(
                target,
                target.directory,
                str(answer.get("why", "it couldn't be removed")),
                "retina-run cleanup tries again",
            )
            return
        with self._lock:
            self._unclean.pop(target.id, None)
        if not quietly:
            self._say("removed", target)

    def _note_unclean(self, target: Target, what: str) -> None:
        with self._lock:
            self._unclean[target.id] = what
