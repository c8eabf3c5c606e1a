"""One plan from its first check to its archive: prepare, wait for T0, hold the window open, collect, pack.

Runs in the worker process. Undo is registered before do: whatever way this ends, every collector that was begun is
finished or abandoned, and the event journal's last word is `end`.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING, Any, Optional, Tuple

from retina_runner.agent import ballast, bounds, release
from retina_runner.agent.clock import NodeClock, both
from retina_runner.agent.context import COMPLETE, PARTIAL, Gap, Record, Short, Verdict, Window, said, stamp_of, utc
from retina_runner.agent.course import Course, sealed
from retina_runner.agent.crew import Crew
from retina_runner.agent.looks import Looks
from retina_runner.agent.plan import Plan
from retina_runner.agent.process import MissingTool
from retina_runner.agent.release import Release, begin_lead_s
from retina_runner.agent.stopping import Abandoned, Failed, Skipped, Stop
from retina_runner.agent.workspace import Journal, Workspace

if TYPE_CHECKING:
    # Imported where they are used: no node pays for what its plan doesn't ask, and none before T0 for what comes after.
    from retina_runner.agent.archive import ArchiveWriter
    from retina_runner.agent.framing import Framing
    from retina_runner.agent.pod import Inside
    from retina_runner.agent.recorder import Recorder

SETTLED_S = 0.05
"""How long after T0 a node goes on to what isn't bound to that instant: where nodes share processors, each would keep the
others from waking up."""


class Session:
    """Runs the plan of a workspace. `run` returns the state that its `end` event told: collected, failed or abandoned."""

    def __init__(
        self, plan: Plan, workspace: Workspace, journal: Journal, stop: Stop, clock: Optional[NodeClock] = None
    ):
        self.plan, self.workspace, self.journal, self.stop = plan, workspace, journal, stop
        self.clock = clock or NodeClock()
        self.record = Record()
        self._course = Course(plan, self.clock, journal.emit)
        self._crew = Crew(workspace, self.record, journal.emit)
        self._looks = Looks(plan, workspace, journal.emit, lambda: [m.collector for m in self._crew])
        self._clock_lock = threading.Lock()
        self._inside: Optional[Inside] = None
        self._release: Optional[Release] = None
        self._recorder: Optional[Recorder] = None
        self._base = ""
        self._writer: Optional[ArchiveWriter] = None
        self._window: Optional[Window] = None
        self._t0_monotonic = 0.0
        self._late_s = 0.0
        self._limited = False
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
            why = said(error)
        finally:
            self._crew.abandon()
        if state != "collected" and self._writer is not None:
            self._writer.abandon()
        self.journal.emit("end", state=state, **({"why": why} if why else {}), **({"hint": hint} if hint else {}))
        return state

    # -- before T0 ---------------------------------------------------------------------------------------------------

    def _check_abandoned(self) -> None:
        if self.stop.reason is not None:
            raise Abandoned(self.stop.reason)

    def _prepare(self) -> None:
        self._course.phase("preparing")
        bounds.confine(self.plan.bounds)
        bounds.lower_priority(self.plan.bounds.nice)
        lacking = bounds.lacking_space(self.plan.bounds, self.workspace.directory)
        if lacking:
            raise Failed(lacking, "free some space, or lower limits.disk_free_percent and limits.disk_free_bytes")
        self._enter_pod()
        self._await_symptom()
        ballast.set_aside(self.workspace.raw, self.plan.bounds)
        for entry in self.plan.entries:
            self._check_abandoned()
            self._crew.join(entry)
        begun = time.monotonic()
        for member in self._crew:
            self._check_abandoned()
            self._crew.call(member, member.collector.begin, drop=True)
        self._course.rehearsal_s = time.monotonic() - begun
        if not self._crew:
            reasons = "; ".join(f"{c}: {s['why']}" for c, s in self.record.collectors.items() if s.get("why"))
            raise Failed(f"nothing can be collected: {reasons}", "retina-run doctor says what this machine lacks")
        for member in self._crew:
            self._crew.status(member.entry, "ready")
        self.journal.emit("ready", rehearsal_s=round(self._course.rehearsal_s, 3),
                          free_bytes=bounds.free_bytes(self.workspace.directory)[0])  # fmt: skip

    def _enter_pod(self) -> None:
        """Before there are threads: each is where the one that starts it is."""
        if not self.plan.document.get("pod"):
            return
        from retina_runner.agent.pod import Inside, Pod

        pod = Pod.of(self.plan.document)
        assert pod is not None
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
        from retina_runner.agent import conditions

        def wait() -> None:
            self.stop.wait(wanted["over_s"])
            self._check_abandoned()

        met, numbers = self._looks.symptom(conditions.parse(wanted["condition"]), wait)
        if not met:
            raise Skipped(f"condition not met: {numbers}")

    def _await_release(self) -> None:
        if any(member.collector.GROWS for member in self._crew):
            importlib.import_module("retina_runner.agent.archive")  # now: once T0 is known time is short
        if self.plan.t0 is None:
            self._course.phase("waiting")
        self._release = release.wait(self.plan, self.workspace, self.stop)
        self._course.stale = self._release.stale
        for why in self._release.warnings:
            self._warn(why)
        self._arm(self._release)

    def _arm(self, told: Release) -> None:
        self._window = Window(told.t0, self.plan.duration_s)
        realtime, monotonic = both()
        self._t0_monotonic = monotonic + (told.t0 - realtime)
        if time.monotonic() >= self._t0_monotonic + self.plan.duration_s:
            raise Failed(f"the window was over before this node was told of it (T0 {utc(told.t0)}, now {utc()})")
        self._base = f"{self.plan.prefix}-{stamp_of(told.reference_t0)}UTC"
        if self.plan.document.get("trigger"):
            self._begin_archive(told)
            self._recorder = self._new_recorder(told)
        elif any(member.collector.GROWS for member in self._crew):
            self._begin_archive(told)
        for member in self._crew:
            member.context.arm(self._window, self._base, self._open_member, self._intervals_ns)
        self.journal.emit("armed", t0=utc(told.t0))

    def _begin_archive(self, told: Release) -> None:
        from retina_runner.agent.archive import ArchiveWriter

        framing = self._framing()
        path = self.workspace.archive / f"{self._base}{framing.ending}"
        try:
            self._writer = ArchiveWriter(path, self._base, mtime=told.reference_t0, framing=framing)
        except OSError as error:
            raise Failed(f"no archive can be begun in {path.parent}: {error.strerror}", "free some space") from error

    def _open_member(self, path: str) -> Any:
        assert self._writer is not None, "only who says that it grows may ask before the window"
        return self._writer.open_member(path)

    def _warn(self, why: str) -> None:
        self.record.warnings.append(why)
        self.journal.emit("warning", why=why)

    def _framing(self) -> Framing:
        """As the plan asks; with gzip instead of a program that isn't here, which is told."""
        from retina_runner.agent.framing import GzipFraming, framing_of

        try:
            return framing_of(self.plan.compression)
        except MissingTool as missing:
            self._warn(f"{missing}, so the archive is a {GzipFraming.ending} instead")
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
        begin_at = self._t0_monotonic - begin_lead_s(self._course.rehearsal_s)
        if self.stop.wait(begin_at - time.monotonic()):
            raise Abandoned(str(self.stop.reason))
        if self._inside is not None and not self._inside.present():
            raise Failed(f"{self._inside.pod} has gone before T0", "run the runbook again")
        for member in self._crew:
            self._crew.call(member, member.collector.begin, drop=True)
        armed = time.monotonic()
        if not self._crew:
            raise Failed("every collector failed at the start of the window")
        if self.stop.wait(self._t0_monotonic - time.monotonic()):
            raise Abandoned(str(self.stop.reason))
        # A busy node may wake this thread late; what counts is whether everything was listening and read at T0. How late
        # it woke is how exactly the nodes of a run start together.
        opened_s = max(0.0, time.monotonic() - self._t0_monotonic)
        self._late_s = max(0.0, armed - self._t0_monotonic)
        self._looks.look()
        if self._recorder is not None:
            # Of metrics there is none yet: they count from T0 by themselves.
            self._recorder.begin(self._looks.counters(()))
        self._course.begin("capturing")
        self.stop.wait(SETTLED_S)
        for member in self._crew:
            self._crew.call(member, member.collector.opened, drop=False)
        if self._writer is None:
            # Nobody needed it so far, and before T0 it would have kept other nodes waiting; a disk that fills from now on
            # finds it begun.
            assert self._release is not None
            self._begin_archive(self._release)
        self._course.tell("capturing")
        self.journal.emit("window", t0=utc(self._window.t0), late_s=round(self._late_s, 6), opened_s=round(opened_s, 6))
        watch = bounds.Watch(
            self.plan.bounds, self.workspace.directory, self.workspace.size_bytes, self._tick, self._exceeded
        )
        watch.start()
        self._course.ask_host(self.stop.wait)
        try:
            if self._recorder is not None:
                self._watch_for_trigger(self._recorder)
            elif self.stop.wait(self._t0_monotonic + self.plan.duration_s - time.monotonic()):
                self._cut_short()
        finally:
            watch.stop()
            self._intervals_ns()  # a last look at the clock, while the window's packets are still being read

    def _new_recorder(self, told: Release) -> Recorder:
        from retina_runner.agent.recorder import Recorder, Rings, Terms
        from retina_runner.agent.recording import Recordings

        assert self._writer is not None

        def protect(on: bool) -> None:
            for member in self._crew:
                member.collector.protect(on)

        terms = Terms.of(self.plan.document["trigger"])
        recordings = Recordings(self.workspace, self._crew, self._course, self._writer.framing, self.journal.emit)
        return Recorder(
            terms, self.plan.node, self.workspace.orders, self.journal.emit,
            Rings(protect, recordings.record, lambda: self._looks.counters([terms.condition]), told.offset),
        )  # fmt: skip

    def _watch_for_trigger(self, recorder: Recorder) -> None:
        """The flight recorder's window: it ends when its time is over and nothing is pending, or after so many events."""
        recorder.run(self._t0_monotonic + self.plan.duration_s, self.stop.wait, lambda: self.stop.reason)
        self._done = recorder.done
        if self.stop.reason is not None:
            self._cut_short()
            return
        # What the other collectors say at the end is of all this time, an event's aftermath included.
        self._set_end(time.monotonic() - self._t0_monotonic)

    def _set_end(self, elapsed_s: float) -> None:
        """The window as long as it turned out to be."""
        assert self._window is not None
        self._window = Window(self._window.t0, elapsed_s)
        for member in self._crew:
            member.context.window = self._window

    def _cut_short(self) -> None:
        elapsed = max(0.0, time.monotonic() - self._t0_monotonic)
        self._set_end(elapsed)
        self._warn(f"stopped {elapsed:.1f} s into a window of {self.plan.duration_s:.0f} s: {self.stop.reason}")

    def _tick(self, free: int) -> None:
        self._intervals_ns()
        self._check_pod()
        elapsed = time.monotonic() - self._t0_monotonic
        self.journal.emit(
            "progress", elapsed_s=round(max(elapsed, 0.0), 1), total_s=self.plan.duration_s, free_bytes=free,
            **self._crew.progress(),
        )  # fmt: skip

    def _exceeded(self, limit: str, why: str) -> None:
        self.journal.emit("limit", limit=limit, why=why)
        self._limited = True
        self.stop.request(why)

    # -- after the window --------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        over = time.monotonic()
        self._course.phase("collecting")
        if (self.workspace.directory / "discard").exists():
            raise Abandoned(str(self.stop.reason))
        self._looks.look()
        for member in self._crew:
            self._crew.call(member, member.collector.end, drop=False)
        # Whoever must still listen for a while is finished last, so that the others' snapshots fill the time.
        for member in sorted(self._crew, key=lambda m: m.collector.OVERRUN_S):
            time.sleep(max(0.0, over + member.collector.OVERRUN_S - time.monotonic()))
            self._crew.call(member, member.collector.finish, drop=False)
            self._crew.status(member.entry, "done")

    def _pack(self) -> None:
        from retina_runner.agent.packing import Packing

        assert self._writer is not None
        self._course.phase("archiving")
        self._course.know_host()
        self._judge_window()
        self._looks.judge(self.record)
        ballast.give_back(self.workspace.raw)
        packing = Packing(self._writer, self._note_short)
        packing.settle()
        packing.add_folder(self.workspace.out)
        packing.add_held(self.record.held)
        made = packing.finish(self._manifest)
        # A bound that the runbook sets is what it asks for; a request comes from the runner, or from who shuts the node down.
        cut_short = {"cut_short": str(self.stop.reason)} if self._ended_early() and not self._limited else {}
        self.journal.emit("archive", **sealed(made, self.record), cost=self._course.cost(), **cut_short)

    def _note_short(self, short: Short) -> None:
        """An artefact that the full disk had no room for: a gap, a verdict, and a failure of whose it is."""
        self.record.short(short)
        owner = self.record.owners.get(short.path)
        for entry in self.plan.entries:
            if entry.id == owner:
                self.journal.emit("skipped", collector=entry.id, what=short.path, why=short.why)
                if self.record.collectors[entry.id].get("status") != "failed":
                    self._crew.status(entry, "failed", f"{short.path}: {short.why}")

    def _ended_early(self) -> bool:
        return self._window is not None and self._window.duration_s < self.plan.duration_s and not self._done

    def _judge_window(self) -> None:
        """What befell the whole window lowers every artefact's verdict."""
        if not self.record.verdicts:
            self.record.verdicts.append(self._of_nothing())
        assert self._window is not None
        self._course.judge_filters(self.record)
        for verdict in self.record.verdicts:
            if self._ended_early():
                verdict.lower(
                    PARTIAL, f"{self._window.duration_s:.1f} of {self.plan.duration_s:.0f} s: {self.stop.reason}"
                )
            if self._late_s > 0.1:
                verdict.lower(PARTIAL, f"this node began {self._late_s:.1f} s after T0")

    def _of_nothing(self) -> Verdict:
        """The verdict of an archive that no collector has judged anything of."""
        verdict = Verdict("manifest.json", COMPLETE)
        for name, collector in self.record.collectors.items():
            if collector.get("status") == "failed":
                verdict.lower(PARTIAL, f"{name} failed: {collector['why']}")
        return verdict

    def _manifest(self, files: Any) -> bytes:
        from retina_runner.agent import manifest

        assert self._window is not None
        assert self._release is not None
        window = manifest.WindowFacts(
            t0=self._release.reference_t0, t0_node=self._window.t0, duration_s=self._window.duration_s, late_s=self._late_s,
            stopped_early=(self._done or self.stop.reason) if self._window.duration_s < self.plan.duration_s else None,
        )  # fmt: skip
        return self._course.render(self.record, self._base, files, window, self._release.offset)
