"""`retina-run list`: the runs below a folder, newest first: when, where, what became of them, and where the archives are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from retina_runner import history
from retina_runner.agent.context import worst
from retina_runner.errors import Exit, UsageError
from retina_runner.report import RunReport
from retina_runner.units import format_size


def main(chosen: argparse.Namespace) -> int:
    folder = Path(chosen.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; runs are made in `runs` unless --output says otherwise")
    rows = [("RUN", "STATE", "NODES", "EVENTS", "VERDICT", "FINDINGS", "T0", "SIZE", "ARCHIVES")]
    for entry in history.entries(folder):
        report, past = entry.report, entry.past
        if chosen.json:
            print(json.dumps({"run": report.run, "runbook": report.runbook, "directory": str(entry.path), "state": _state(report),
                              "verdict": _verdict(report), "t0": report.t0, "exit_code": report.exit_code,
                              "size_bytes": past.size_bytes, "kept": past.guard, "findings": _findings(report),
                              "events": sorted({n.trigger["stamp"] for n in report.nodes if n.trigger}),
                              "archives": [n.archive for n in report.nodes if n.archive],
                              "stored": _stored(report)}))  # fmt: skip
            continue
        nodes = [n for n in report.nodes if not n.trigger]
        collected = sum(1 for n in nodes if n.archive)
        events = {n.trigger["stamp"] for n in report.nodes if n.trigger}
        rows.append(
            (
                entry.path.name,
                _state(report),
                f"{collected}/{len(nodes)}",
                str(len(events) or "-"),
                _verdict(report),
                str(_findings(report) or "-"),
                report.t0[:19] or "-",
                format_size(past.size_bytes),
                _where(entry),
            )
        )
    if not chosen.json:
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return Exit.OK


def _state(report: RunReport) -> str:
    if report.exit_code is not None:
        return f"ended ({report.exit_code})"
    return "running" if report.pid and history.is_runner(report.pid) else "dead"


def _verdict(report: RunReport) -> str:
    known = [n.verdict for n in report.nodes if n.verdict]
    return worst(known) if known else "-"


def _findings(report: RunReport) -> int:
    """What `expect` found, and what went wrong."""
    return sum(bool(n.trouble) + len(n.failed_collectors) + len(n.findings) for n in report.nodes)


def _stored(report: RunReport) -> list[str]:
    return [u.location for n in report.nodes for u in n.uploads if u.state == "stored"]


def _where(entry: history.Entry) -> str:
    if not any(n.archive for n in entry.report.nodes):
        return "-"
    targets = dict.fromkeys(u.target for n in entry.report.nodes for u in n.uploads if u.state == "stored")
    here = entry.path / "archives"
    return ", ".join([*([str(here)] if any(here.glob("*.tar*")) else []), *targets])
