"""The runs below a folder: what became of each, what it takes on the disk, and whether it may be taken away."""

from __future__ import annotations

import calendar
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from retina_runner.folding import fold
from retina_runner.report import RunReport
from retina_runner.retention import Past, open_ends
from retina_runner.rundir import RunDirectory

PIN = "pinned"
"""A file of this name in a run's directory keeps the run, whatever a runbook says."""


@dataclass(frozen=True)
class Entry:
    """One run: where it is, and its report."""

    path: Path
    report: RunReport

    @property
    def past(self) -> Past:
        pinned = "pinned by a file in it" if (self.path / PIN).exists() else ""
        empty = not any(n.archive for n in self.report.nodes)
        return Past(self.path.name, began(self.report), size_bytes(self.path), pinned or open_ends(self.report), empty)


def entries(folder: Path) -> tuple[Entry, ...]:
    """Newest first. A link to a run elsewhere isn't a run here."""
    found = [
        Entry(p.parent, fold(RunDirectory(p.parent).read_events()))
        for p in folder.glob("*/events.jsonl")
        if not p.parent.is_symlink() and not p.parent.name.startswith(".")
    ]
    return tuple(sorted(found, key=lambda e: (e.report.started, e.path.name), reverse=True))


def began(report: RunReport) -> float:
    """Unix time; for a run without a time, now: nothing is old that can't say when it was."""
    try:
        return float(calendar.timegm(time.strptime(report.started[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return time.time()


def is_runner(pid: int) -> bool:
    """Whether that process is one of ours."""
    try:
        return b"retina" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def size_bytes(path: Path) -> int:
    """What the files of a run take, without following links."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def delete(path: Path) -> None:
    """Remove a run whole: first out of sight, so that a deletion that is cut short leaves no half of a run. Raises OSError."""
    aside = path.with_name(f".pruned-{path.name}")
    os.rename(path, aside)
    shutil.rmtree(aside)


def sweep(folder: Path) -> None:
    """Finish deletions that were cut short."""
    for aside in folder.glob(".pruned-*"):
        shutil.rmtree(aside, ignore_errors=True)
