"""One archive of each window that the flight recorder has frozen: what the rings hold of it, and a verdict of its own.

A recording that fails is told as `not-frozen` and costs neither the rings nor the session anything.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from retina_runner.agent import counters, manifest
from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.context import COMPLETE, PARTIAL, Context, Record, Verdict, Window, said
from retina_runner.agent.counters import Snapshot
from retina_runner.agent.course import Course, sealed
from retina_runner.agent.crew import Crew, wished
from retina_runner.agent.framing import Framing
from retina_runner.agent.packing import Packing
from retina_runner.agent.recorder import Freeze
from retina_runner.agent.workspace import Workspace

DELTA = "state/delta/trigger.json"


class Recordings:
    """The recordings of one session. `framing` is that of its own archive, `emit` the journal's."""

    def __init__(self, workspace: Workspace, crew: Crew, course: Course, framing: Framing, emit: Callable[..., None]):
        self._workspace, self._crew, self._course = workspace, crew, course
        self._framing, self._emit = framing, emit

    def record(self, freeze: Freeze, before: Snapshot, after: Snapshot) -> None:
        """Make one archive; told as `frozen`, or as `not-frozen` with the reason."""
        base = f"{self._course.plan.prefix}-event-{freeze.stamp}UTC"  # T0 may be in the same second
        out = self._workspace.raw / f"frozen-{freeze.stamp}"
        writer: Optional[ArchiveWriter] = None
        try:
            out.mkdir(mode=0o700)
            path = self._workspace.archive / f"{base}{self._framing.ending}"
            writer = ArchiveWriter(path, base, mtime=freeze.reference, framing=self._framing)
            self._fill(freeze, writer, base, out, counters.delta("trigger", before, after))
        except Exception as error:
            if writer is not None:
                writer.abandon()
            self._emit("not-frozen", why=said(error), trigger=freeze.told())
        finally:
            shutil.rmtree(str(out), ignore_errors=True)

    def _fill(self, freeze: Freeze, writer: ArchiveWriter, base: str, out: Path, moved: List[Dict[str, Any]]) -> None:
        record, window = Record(), Window(freeze.start, freeze.end - freeze.start)
        for member in self._crew:
            entry = member.entry
            context = Context(entry.id, entry.options, out, member.context.raw, record, self._emit)
            context.arm(
                window, base, writer.open_member,
                lambda: ((round(freeze.start * 1e6) * 1000, round(freeze.end * 1e6) * 1000),),
            )  # fmt: skip
            record.collectors[entry.id] = {"name": entry.name, "options": wished(entry)}
            member.collector.record(context)
            record.collectors[entry.id]["status"] = "done"
        delta = json.dumps({"format": 1, "counters": moved}, indent=1) + "\n"
        packing = Packing(writer, record.short)
        packing.settle()
        packing.add(DELTA, delta.encode())
        packing.add_folder(out)
        packing.add_held(record.held)
        self._judge(freeze, record)
        facts = manifest.WindowFacts(
            t0=freeze.reference - (freeze.instant - freeze.start), t0_node=freeze.start, duration_s=window.duration_s,
            late_s=0.0, stopped_early=freeze.stopped or None,
        )  # fmt: skip
        terms = self._course.plan.document["trigger"]
        made = packing.finish(
            lambda files: self._course.render(
                record, base, files, facts, (freeze.offset_s, freeze.offset_error_s),
                planned_s=terms["before_s"] + terms["after_s"], trigger=freeze.told(),
            )
        )  # fmt: skip
        self._emit("frozen", **sealed(made, record), trigger=freeze.told())

    def _judge(self, freeze: Freeze, record: Record) -> None:
        if not record.verdicts:
            record.verdicts.append(Verdict(DELTA, COMPLETE))
        self._course.judge_filters(record)
        for verdict in record.verdicts if freeze.stopped else ():
            verdict.lower(PARTIAL, f"the window was cut short: {freeze.stopped}")
        if freeze.why_alone:
            record.warnings.append(f"no other node's ring was frozen for this: {freeze.why_alone}")
