"""One plan from its first check to its archive: prepare, wait for T0, hold the window open, collect, pack.

Runs in the worker process. Undo is registered before do: whatever way this ends, every collector that was begun is
finished or abandoned, and the event journal's last word is `end`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from retina_runner.agent import bounds, collectors, conditions, counters, facts, manifest
from retina_runner.agent.archive import ArchiveInfo, ArchiveWriter
from retina_runner.agent.clock import NodeClock
from retina_runner.agent.context import COMPLETE, PARTIAL, Context, Gap, Record, Short, Verdict, Window, utc, worst
from retina_runner.agent.counters import Snapshot
from retina_runner.agent.framing import Framing, GzipFraming, framing_of
from retina_runner.agent.looks import Looks
from retina_runner.agent.packing import Packing
from retina_runner.agent.plan import Entry, Plan
from retina_runner.agent.pod import Inside, Pod
from retina_runner.agent.process import MissingTool
from retina_runner.agent.recorder import Freeze, Recorder, Rings, Terms, stamp_of
from retina_runner.agent.stopping import Abandoned, Failed, Skipped, Stop
from retina_runner.agent.workspace import Journal, Workspace

RELEASE_POLL_S, RELEASE_POLL_SOON_S, RELEASE_SOON_S = 0.05, 0.005, 3.0
"""How often a node that is ready looks for its T0; and how often at first, since the others are ready about then too."""
RELEASE_GRACE_S = 30.0
"""How much longer than the barrier's own limit an agent waits for T0 before it concludes that the runner is gone."""
BEGIN_MARGIN_S = 0.2
FACTS_AFTER_S = 0.3
"""How long into the window the tools are asked for their versions: nothing is to come between a node and its T0."""
BALLAST_BYTES = 4 << 20
"""Disk set aside at the start and given back when the disk is full, so that the archive can still be closed."""
BALLAST_SHARE = 16
"""It counts as the plan's own, so a plan of few bytes sets aside no more than this part of them."""


def begin_lead_s(rehearsal_s: float) -> float:
    """How long before T0 a node begins to arm its collectors, when the rehearsal of that took so long."""
    return 2 * rehearsal_s + BEGIN_MARGIN_S


def told_with(release: Mapping[str, Any]) -> List[str]:
    """What a release says besides T0, for the manifest's warnings."""
    return [str(why) for why in (*release.get("warnings", ()), release.get("stale")) if why]


class Session:
    """Runs the plan of a workspace. `run` returns the state that its `end` event told: collected, failed or abandoned."""

    def __init__(
        self, plan: Plan, workspace: Workspace, journal: Journal, stop: Stop, clock: Optional[NodeClock] = None
    ):
        self.plan, self.workspace, self.journal, self.stop = plan, workspace, journal, stop
        self.clock = clock or NodeClock()
        self.record = Record()
        self._clock_lock = threading.Lock()
        self._active: List[Tuple[Entry, Context, collectors.Collector]] = []
        self._writer: Optional[ArchiveWriter] = None
        self._window: Optional[Window] = None
        self._reference_t0 = 0.0
        self._base = ""
        self._inside: Optional[Inside] = None
        self._stale = ""
        self._late_s = 0.0
        self._limited = False
        self._rehearsal_s = 0.0
        self._t0_monotonic = 0.0
        self._host: Dict[str, Any] = {**facts.system(), "tools": {}}
        self._asking: Optional[threading.Thread] = None
        self._times: Dict[str, str] = {}
        self._looks = Looks(plan, workspace, journal.emit, lambda: [c for _, _, c in self._active])
        self._done = ""

    def run(self) -> str:
        state, why, hint = "failed", "", ""
        try:
            self._prepare()
            self._await_release()
            self._hold_window()
            self._collect()
            self._pack()
            state = "collected"
        except Skipped as skipped:
            state, why = "skipped", str(skipped)
        except Abandoned as error:
            state, why = "abandoned", str(error)
        except Failed as error:
            why, hint = str(error), error.hint
        except Exception as error:
            why = _said(error)
        finally:
            for _, _, collector in self._active:
                collector.abandon()
        if state != "collected" and self._writer is not None:
            self._writer.abandon()
        self.journal.emit("end", state=state, **({"why": why} if why else {}), **({"hint": hint} if hint else {}))
        return state

    # -- before T0 ---------------------------------------------------------------------------------------------------

    def _phase(self, phase: str) -> None:
        self._times[phase] = utc()
        self.journal.emit("phase", phase=phase)

    def _check_abandoned(self) -> None:
        if self.stop.reason is not None:
            raise Abandoned(self.stop.reason)

    def _prepare(self) -> None:
        self._phase("preparing")
        bounds.confine(self.plan.bounds)
        bounds.lower_priority(self.plan.bounds.nice)
        lacking = bounds.lacking_space(self.plan.bounds, self.workspace.directory)
        if lacking:
            raise Failed(lacking, "free some space, or lower limits.disk_free_percent and limits.disk_free_bytes")
        self._enter_pod()
        self._await_symptom()
        self._set_ballast()
        lock = threading.RLock()
        for entry in self.plan.entries:
            self._check_abandoned()
            raw = self.workspace.raw / entry.id
            raw.mkdir(mode=0o700)
            context = Context(entry.id, entry.options, self.workspace.out, raw, self.record, self.journal.emit, lock)
            try:
                collector = collectors.load(entry.name, context)
            except KeyError:
                self._status(entry, "failed", f"this agent has no collector {entry.name}")
                continue
            self._active.append((entry, context, collector))
            self._hook(entry, collector, collector.prepare, drop=True)
        begun = time.monotonic()
        for entry, _, collector in list(self._active):
            self._check_abandoned()
            self._hook(entry, collector, collector.begin, drop=True)
        self._rehearsal_s = time.monotonic() - begun
        if not self._active:
            reasons = "; ".join(f"{c}: {s['why']}" for c, s in self.record.collectors.items() if s.get("why"))
            raise Failed(f"nothing can be collected: {reasons}", "retina-run doctor says what this machine lacks")
        for entry, _, _ in self._active:
            self._status(entry, "ready")
        self.journal.emit("ready", rehearsal_s=round(self._rehearsal_s, 3),
                          free_bytes=bounds.free_bytes(self.workspace.directory)[0])  # fmt: skip

    def _enter_pod(self) -> None:
        """Before there are threads: each is where the one that starts it is."""
        pod = Pod.of(self.plan.document)
        if pod is None:
            return
        try:
            self._inside = Inside(pod)
        except Gap as gap:
            raise Failed(f"{gap.what}: {gap.why}", gap.hint) from None

    def _check_pod(self) -> None:
        """A window without its pod has nothing more to show: it ends."""
        if self._inside is not None and self.stop.reason is None and not self._inside.present():
            self.stop.request(f"{self._inside.pod} has gone")

    def _await_symptom(self) -> None:
        """Look at the node twice, and go on only if the plan's `when` holds. Nothing is started before that."""
        wanted = self.plan.document.get("when")
        if not wanted:
            return

        def wait() -> None:
            self.stop.wait(wanted["over_s"])
            self._check_abandoned()

        met, numbers = self._looks.symptom(conditions.parse(wanted["condition"]), wait)
        if not met:
            raise Skipped(f"condition not met: {numbers}")

    def _set_ballast(self) -> None:
        ballast = self.workspace.raw / "ballast"
        try:
            with open(str(ballast), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, min(BALLAST_BYTES, self.plan.bounds.node_bytes // BALLAST_SHARE))
        except OSError:
            ballast.unlink()

    def _hook(self, entry: Entry, collector: collectors.Collector, hook: Callable[[], None], drop: bool) -> None:
        """Call one hook; its trouble is this collector's alone. With `drop` the collector takes no further part."""
        try:
            hook()
            return
        except Gap as gap:
            self.record.skipped.append(
                {"collector": entry.id, "what": gap.what, "why": gap.why, **({"hint": gap.hint} if gap.hint else {})}
            )
            self._status(entry, "skipped", f"{gap.what}: {gap.why}", gap.hint)
        except Exception as error:
            self._status(entry, "failed", _said(error))
        if drop:
            collector.abandon()
            self._active = [a for a in self._active if a[0].id != entry.id]

    def _status(self, entry: Entry, status: str, why: str = "", hint: str = "") -> None:
        known = self.record.collectors.setdefault(entry.id, {"name": entry.name, "options": _wished(entry)})
        if status == "done" and known.get("status") in ("failed", "skipped", "partial"):
            return  # an earlier hook's trouble outlasts a later one's success
        known["status"] = status
        if why:
            known["why"] = why
        if status == "ready":
            known["start"] = utc()
        else:
            known["end"] = utc()
        self.journal.emit("collector", collector=entry.id, status=status,
                          **({"why": why} if why else {}), **({"hint": hint} if hint else {}))  # fmt: skip

    def _await_release(self) -> None:
        """Until T0 is known: from the plan, or from the `release` verb's file."""
        if self.plan.t0 is not None:
            release = {"t0": self.plan.t0, "reference_t0": self.plan.t0}
        else:
            self._phase("waiting")
            begun = time.monotonic()
            deadline = begun + self.plan.ready_timeout_s + RELEASE_GRACE_S
            while not self.workspace.release.exists():
                soon = time.monotonic() < begun + RELEASE_SOON_S
                if self.stop.wait(RELEASE_POLL_SOON_S if soon else RELEASE_POLL_S):
                    raise Abandoned(str(self.stop.reason))
                if time.monotonic() > deadline:
                    raise Abandoned("no T0 came; the runner is gone")
            release = json.loads(self.workspace.release.read_bytes())
        self._stale = str(release.get("stale") or "")
        for why in told_with(release):
            self.record.warnings.append(why)
            self.journal.emit("warning", why=why)
        self._arm(
            float(release["t0"]), float(release["reference_t0"]), release.get("offset_s"), release.get("offset_error_s")
        )

    def _arm(self, t0: float, reference_t0: float, offset_s: Optional[float], offset_error_s: Optional[float]) -> None:
        self._window = Window(t0, self.plan.duration_s)
        self._reference_t0 = reference_t0
        self._offset = (offset_s, offset_error_s)
        self._t0_monotonic = time.monotonic() + (t0 - time.time())
        if time.monotonic() >= self._t0_monotonic + self.plan.duration_s:
            raise Failed(f"the window was over before this node was told of it (T0 {utc(t0)}, now {utc()})")
        self._base = f"{self.plan.prefix}-{stamp_of(reference_t0)}UTC"
        framing = self._framing()
        path = self.workspace.archive / f"{self._base}{framing.ending}"
        try:
            self._writer = ArchiveWriter(path, self._base, mtime=reference_t0, framing=framing)
        except OSError as error:
            raise Failed(f"no archive can be begun in {path.parent}: {error.strerror}", "free some space") from error
        for _, context, _ in self._active:
            context.window, context.base = self._window, self._base
            context.open_member = _opener(self._writer, context)
            context.intervals_ns = self._intervals_ns
        self.journal.emit("armed", t0=utc(t0))

    def _framing(self) -> Framing:
        """As the plan asks; with gzip instead of a program that isn't here, which is told."""
        try:
            return framing_of(self.plan.compression)
        except MissingTool as missing:
            why = f"{missing}, so the archive is a {GzipFraming.ending} instead"
            self.record.warnings.append(why)
            self.journal.emit("warning", why=why)
            return GzipFraming()

    def _intervals_ns(self) -> Tuple[Tuple[int, int], ...]:
        assert self._window is not None
        with self._clock_lock:
            for step in self.clock.sample():
                self.journal.emit(
                    "clock", step_s=round(step.step_s, 6), why="the node's clock was stepped during the window"
                )
            return self.clock.intervals_ns(self._window.t0, self._window.end)

    # -- the window --------------------------------------------------------------------------------------------------

    def _hold_window(self) -> None:
        assert self._window is not None
        begin_at = self._t0_monotonic - begin_lead_s(self._rehearsal_s)
        if self.stop.wait(begin_at - time.monotonic()):
            raise Abandoned(str(self.stop.reason))
        if self._inside is not None and not self._inside.present():
            raise Failed(f"{self._inside.pod} has gone before T0", "run the runbook again")
        for entry, _, collector in list(self._active):
            self._hook(entry, collector, collector.begin, drop=True)
        armed = time.monotonic()
        if not self._active:
            raise Failed("every collector failed at the start of the window")
        if self.stop.wait(self._t0_monotonic - time.monotonic()):
            raise Abandoned(str(self.stop.reason))
        # A busy node may wake this thread late; what counts is whether everything was listening and read at T0. How late
        # it woke is how exactly the nodes of a run start together.
        opened_s = max(0.0, time.monotonic() - self._t0_monotonic)
        self._late_s = max(0.0, armed - self._t0_monotonic)
        self._looks.look()
        self._phase("capturing")
        self.journal.emit("window", t0=utc(self._window.t0), late_s=round(self._late_s, 6), opened_s=round(opened_s, 6))
        watch = bounds.Watch(
            self.plan.bounds, self.workspace.directory, self.workspace.size_bytes, self._tick, self._exceeded
        )
        watch.start()
        # Asking a dozen tools for their versions takes longer than all the rest of the preparation; here nobody waits.
        self._asking = threading.Thread(target=self._ask_host, name="facts", daemon=True)
        self._asking.start()
        try:
            if self.plan.document.get("trigger"):
                self._watch_for_trigger()
            elif self.stop.wait(self._t0_monotonic + self.plan.duration_s - time.monotonic()):
                self._cut_short()
        finally:
            watch.stop()
            self._intervals_ns()  # a last look at the clock, while the window's packets are still being read

    def _ask_host(self) -> None:
        self.stop.wait(FACTS_AFTER_S)
        self._host = facts.host()

    def _watch_for_trigger(self) -> None:
        """The flight recorder's window: it ends when its time is over and nothing is pending, or after so many events."""

        def protect(on: bool) -> None:
            for _, _, collector in self._active:
                collector.protect(on)

        terms = Terms.of(self.plan.document["trigger"])
        recorder = Recorder(
            terms, self.plan.node, self.workspace.orders, self.journal.emit,
            Rings(protect, self._record, lambda: self._looks.counters([terms.condition]), self._offset),
        )  # fmt: skip
        recorder.run(self._t0_monotonic + self.plan.duration_s, self.stop.wait, lambda: self.stop.reason)
        self._done = recorder.done
        if self.stop.reason is not None:
            self._cut_short()
            return
        assert self._window is not None
        # What the other collectors say at the end is of all this time, an event's aftermath included.
        self._window = Window(self._window.t0, time.monotonic() - self._t0_monotonic)
        for _, context, _ in self._active:
            context.window = self._window

    def _record(self, freeze: Freeze, before: Snapshot, after: Snapshot) -> None:
        """One archive of one frozen window; told as `frozen`, or as `not-frozen` with the reason."""
        base = f"{self.plan.prefix}-event-{freeze.stamp}UTC"  # T0 may be in the same second
        out = self.workspace.raw / f"frozen-{freeze.stamp}"
        writer: Optional[ArchiveWriter] = None
        try:
            out.mkdir(mode=0o700)
            assert self._writer is not None
            framing = self._writer.framing
            path = self.workspace.archive / f"{base}{framing.ending}"
            writer = ArchiveWriter(path, base, mtime=freeze.reference, framing=framing)
            self._fill(freeze, writer, base, out, counters.delta("trigger", before, after))
        except Exception as error:
            if writer is not None:
                writer.abandon()
            why = _said(error)
            self.journal.emit("not-frozen", why=why, trigger=freeze.told())
        finally:
            shutil.rmtree(str(out), ignore_errors=True)

    def _fill(self, freeze: Freeze, writer: ArchiveWriter, base: str, out: Path, moved: List[Dict[str, Any]]) -> None:
        record, window = Record(), Window(freeze.start, freeze.end - freeze.start)
        for entry, own, collector in self._active:
            context = Context(entry.id, entry.options, out, own.raw, record, self.journal.emit)
            context.window, context.base, context.open_member = window, base, _opener(writer, context)
            context.intervals_ns = lambda: ((round(freeze.start * 1e6) * 1000, round(freeze.end * 1e6) * 1000),)
            record.collectors[entry.id] = {"name": entry.name, "options": _wished(entry)}
            collector.record(context)
            record.collectors[entry.id]["status"] = "done"
        delta = json.dumps({"format": 1, "counters": moved}, indent=1) + "\n"
        packing = Packing(writer, record.short)
        packing.settle()
        packing.add("state/delta/trigger.json", delta.encode())
        packing.add_folder(out)
        packing.add_held(record.held)
        if not record.verdicts:
            record.verdicts.append(Verdict("state/delta/trigger.json", COMPLETE))
        self._judge_filters(record)
        for verdict in record.verdicts if freeze.stopped else ():
            verdict.lower(PARTIAL, f"the window was cut short: {freeze.stopped}")
        if freeze.why_alone:
            record.warnings.append(f"no other node's ring was frozen for this: {freeze.why_alone}")
        made = packing.finish(
            lambda files: manifest.render(
                plan=self.plan, record=record, base=base, host=self._host, files=files,
                window=manifest.WindowFacts(
                    t0=freeze.reference - (freeze.instant - freeze.start), t0_node=freeze.start, duration_s=window.duration_s,
                    late_s=0.0, stopped_early=freeze.stopped or None,
                ),
                clock=manifest.ClockFacts(freeze.offset_s, freeze.offset_error_s, tuple(self.clock.steps)),
                cost=self._cost(), phases=self._times, trigger=freeze.told(),
                planned_s=self.plan.document["trigger"]["before_s"] + self.plan.document["trigger"]["after_s"],
            )
        )  # fmt: skip
        self.journal.emit("frozen", **_sealed(made, record), trigger=freeze.told())

    def _cut_short(self) -> None:
        elapsed = max(0.0, time.monotonic() - self._t0_monotonic)
        assert self._window is not None
        self._window = Window(self._window.t0, elapsed)
        for _, context, _ in self._active:
            context.window = self._window
        self.record.warnings.append(
            f"stopped {elapsed:.1f} s into a window of {self.plan.duration_s:.0f} s: {self.stop.reason}"
        )
        self.journal.emit("warning", why=self.record.warnings[-1])

    def _tick(self, free: int) -> None:
        self._intervals_ns()
        self._check_pod()
        counts = {"bytes": 0, "packets": 0, "dropped": 0}
        for _, _, collector in self._active:
            for name, number in collector.progress().items():
                counts[name] = counts.get(name, 0) + number
        elapsed = time.monotonic() - self._t0_monotonic
        self.journal.emit(
            "progress", elapsed_s=round(max(elapsed, 0.0), 1), total_s=self.plan.duration_s, free_bytes=free, **counts
        )

    def _exceeded(self, limit: str, why: str) -> None:
        self.journal.emit("limit", limit=limit, why=why)
        self._limited = True
        self.stop.request(why)

    # -- after the window --------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        over = time.monotonic()
        self._phase("collecting")
        if (self.workspace.directory / "discard").exists():
            raise Abandoned(str(self.stop.reason))
        self._looks.look()
        for entry, _, collector in self._active:
            self._hook(entry, collector, collector.end, drop=False)
        # Whoever must still listen for a while is finished last, so that the others' snapshots fill the time.
        for entry, _, collector in sorted(self._active, key=lambda a: a[2].OVERRUN_S):
            time.sleep(max(0.0, over + collector.OVERRUN_S - time.monotonic()))
            self._hook(entry, collector, collector.finish, drop=False)
            self._status(entry, "done")

    def _pack(self) -> None:
        assert self._writer is not None
        self._phase("archiving")
        if self._asking is not None:
            self._asking.join()
        self._judge_window()
        self._looks.judge(self.record)
        self._give_back_ballast()
        packing = Packing(self._writer, self._note_short)
        packing.settle()
        packing.add_folder(self.workspace.out)
        packing.add_held(self.record.held)
        made = packing.finish(self._manifest)
        used = self._cost()
        cost = {
            "cpu_s": round(used.cpu_s, 3),
            "peak_rss_bytes": max(used.peak_rss_bytes, used.peak_child_rss_bytes),
            "waits": sum(resource.getrusage(who).ru_nvcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        }
        # A bound that the runbook sets is what it asks for; a request comes from the runner, or from who shuts the node down.
        cut_short = {"cut_short": str(self.stop.reason)} if self._ended_early() and not self._limited else {}
        self.journal.emit("archive", **_sealed(made, self.record), cost=cost, **cut_short)

    def _note_short(self, short: Short) -> None:
        """An artefact that the full disk had no room for: a gap, a verdict, and a failure of whose it is."""
        self.record.short(short)
        owner = self.record.owners.get(short.path)
        for entry in self.plan.entries:
            if entry.id == owner:
                self.journal.emit("skipped", collector=entry.id, what=short.path, why=short.why)
                if self.record.collectors[entry.id].get("status") != "failed":
                    self._status(entry, "failed", f"{short.path}: {short.why}")

    def _give_back_ballast(self) -> None:
        try:
            (self.workspace.raw / "ballast").unlink()
        except FileNotFoundError:
            pass

    def _ended_early(self) -> bool:
        return self._window is not None and self._window.duration_s < self.plan.duration_s and not self._done

    def _judge_window(self) -> None:
        """What befell the whole window lowers every artefact's verdict."""
        if not self.record.verdicts:
            self.record.verdicts.append(Verdict("manifest.json", COMPLETE))
        assert self._window is not None
        self._judge_filters(self.record)
        for verdict in self.record.verdicts:
            if self._ended_early():
                verdict.lower(
                    PARTIAL, f"{self._window.duration_s:.1f} of {self.plan.duration_s:.0f} s: {self.stop.reason}"
                )
            if self._late_s > 0.1:
                verdict.lower(PARTIAL, f"this node began {self._late_s:.1f} s after T0")

    def _judge_filters(self, record: Record) -> None:
        """Filters are of pods as they were when the plan was made; what the runner knows to have moved since lacks there."""
        for verdict in record.verdicts if self._stale else ():
            if verdict.artefact.endswith(".pcap"):
                verdict.lower(PARTIAL, f"its filter is of pods as they were before T0: {self._stale}")

    def _manifest(self, files: Any) -> bytes:
        assert self._window is not None
        return manifest.render(
            plan=self.plan, record=self.record, base=self._base, host=self._host, files=files,
            window=manifest.WindowFacts(
                t0=self._reference_t0, t0_node=self._window.t0, duration_s=self._window.duration_s, late_s=self._late_s,
                stopped_early=(self._done or self.stop.reason) if self._window.duration_s < self.plan.duration_s else None,
            ),
            clock=manifest.ClockFacts(*self._offset, steps=tuple(self.clock.steps)),
            cost=self._cost(),
            phases=self._times,
        )  # fmt: skip

    def _cost(self) -> manifest.CostFacts:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return manifest.CostFacts(
            cpu_s=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            peak_rss_bytes=own.ru_maxrss * 1024,
            peak_child_rss_bytes=children.ru_maxrss * 1024,
            rehearsal_s=self._rehearsal_s,
        )


def _opener(writer: ArchiveWriter, context: Context) -> Callable[[str], Any]:
    """`open_member` of the writer, for that collector."""

    def open_member(path: str) -> Any:
        context.own(path)
        return writer.open_member(path)

    return open_member


def _wished(entry: Entry) -> Dict[str, Any]:
    """An entry's options as the runbook has them. What the runner brought along is in the capabilities, if it was used."""
    return {name: value for name, value in entry.options.items() if name != "bytecode"}


def _sealed(made: ArchiveInfo, record: Record) -> Dict[str, Any]:
    """What events say of a finished archive and of what is in it."""
    return {
        "name": made.path.name, "size_bytes": made.size_bytes, "sha256": made.sha256,
        "verdict": worst([v.verdict for v in record.verdicts]),
        "reasons": [f"{v.artefact}: {r}" for v in record.verdicts for r in v.reasons],
        "packets": sum(record.packets.values()),
        "dropped": sum(n for v in record.verdicts for k, n in v.counts.items() if k.startswith("dropped_by_")),
    }  # fmt: skip


def _said(error: Exception) -> str:
    """An error for people; of one that isn't known as such, its kind too."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
