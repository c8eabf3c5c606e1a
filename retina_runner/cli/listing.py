"""`retina-run list`: the runs below a folder, newest first, with what became of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from retina_runner.agent.context import worst
from retina_runner.errors import Exit, UsageError
from retina_runner.report import RunReport, fold
from retina_runner.rundir import RunDirectory


def main(chosen: argparse.Namespace) -> int:
    folder = Path(chosen.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; runs are made in `runs` unless --output says otherwise")
    reports = [(p.parent, fold(RunDirectory(p.parent).read_events())) for p in folder.glob("*/events.jsonl")]
    reports.sort(key=lambda r: (r[1].started, r[1].run), reverse=True)
    rows = [("RUN", "STATE", "NODES", "VERDICT", "T0")]
    for path, report in reports:
        if chosen.json:
            print(json.dumps({"run": report.run, "directory": str(path), "state": _state(report), "verdict": _verdict(report),
                              "t0": report.t0, "exit_code": report.exit_code,
                              "archives": [n.archive for n in report.nodes if n.archive]}))  # fmt: skip
            continue
        collected = sum(1 for n in report.nodes if n.archive)
        rows.append(
            (path.name, _state(report), f"{collected}/{len(report.nodes)}", _verdict(report), report.t0[:19] or "-")
        )
    if not chosen.json:
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return Exit.OK


def _state(report: RunReport) -> str:
    if report.exit_code is not None:
        return f"ended ({report.exit_code})"
    return "running" if report.pid and Path(f"/proc/{report.pid}/comm").exists() else "dead"


def _verdict(report: RunReport) -> str:
    known = [n.verdict for n in report.nodes if n.verdict]
    return worst(known) if known else "-"
