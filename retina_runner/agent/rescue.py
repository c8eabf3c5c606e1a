"""Packing what a dead worker left: its artefacts as they are, its pcaps uncut, every verdict `partial`.

Runs in the supervisor. It trusts nothing of the dead worker's memory, only its files.
"""

from __future__ import annotations

from typing import List

from retina_runner.agent import ballast, facts, manifest
from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.context import PARTIAL, Record, Verdict, stamp_of
from retina_runner.agent.packing import Packing
from retina_runner.agent.pcap import inspect
from retina_runner.agent.plan import Plan
from retina_runner.agent.release import told
from retina_runner.agent.workspace import Journal, Workspace, read_events


def rescue(workspace: Workspace, plan: Plan, why: str) -> None:
    """Make an archive of what is there and say `end`; without a window there is nothing worth one."""
    journal = Journal(workspace.events)
    began = any(e["event"] == "window" for e in read_events(workspace.events))
    if not began:
        journal.emit("end", state="failed", why=why)
        return
    try:
        _pack(workspace, plan, why, journal)
    except Exception as error:
        journal.emit(
            "end",
            state="failed",
            why=f"{why}; that failed too: {type(error).__name__}: {error}; the files are in {workspace.directory}",
        )
        return
    journal.emit("end", state="collected", why=why)


def _pack(workspace: Workspace, plan: Plan, why: str, journal: Journal) -> None:
    release = told(plan, workspace)
    assert release is not None, "a window began"
    base = f"{plan.prefix}-{stamp_of(release.reference_t0)}UTC"
    whole = {str(e["name"]) for e in read_events(workspace.events) if e["event"] == "frozen"}
    for stale in workspace.archive.iterdir():
        if stale.name not in whole:
            stale.unlink()  # the dead worker's archive has no end and can't be continued; what it held is still in raw/
    ballast.give_back(workspace.raw)
    record = Record(warnings=[why, *release.warnings])
    for entry in plan.entries:
        record.collectors[entry.id] = {
            "name": entry.name,
            "options": dict(entry.options),
            "status": "failed",
            "why": why,
        }
        journal.emit("collector", collector=entry.id, status="failed", why=why)
    packing = Packing(
        ArchiveWriter(workspace.archive / f"{base}.tar.gz", base, mtime=release.reference_t0), record.short
    )
    for path in sorted(p for p in workspace.out.rglob("*") if p.is_file()):
        record.verdicts.append(Verdict(str(path.relative_to(workspace.out)), PARTIAL, [why]))
    packing.add_folder(workspace.out)
    for path in sorted(workspace.raw.rglob("*.pcap*")):
        found = inspect(path)
        if not found.packets:
            continue
        name = f"{base}-uncut-{path.name}"
        reasons: List[str] = [why, "not cut to the window"]
        if not found.complete:
            reasons.append(found.why)
        record.verdicts.append(Verdict(name, PARTIAL, reasons, {"captured": found.packets}))
        packing.add(name, path)
    made = packing.finish(
        lambda files: manifest.render(
            plan=plan, record=record, base=base, host=facts.host(), files=files,
            window=manifest.WindowFacts(
                t0=release.reference_t0, t0_node=release.t0, duration_s=plan.duration_s, late_s=0.0, stopped_early=why,
            ),
            clock=manifest.ClockFacts(*release.offset, steps=()),
            cost=manifest.CostFacts(0.0, 0, 0, 0.0), phases={},
        )
    )  # fmt: skip
    journal.emit("archive", name=made.path.name, size_bytes=made.size_bytes, sha256=made.sha256, verdict=PARTIAL,
                 reasons=[why], packets=sum(v.counts.get("captured", 0) for v in record.verdicts), dropped=0)  # fmt: skip
