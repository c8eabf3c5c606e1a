"""`retina-run prune RUNBOOK`: take away the runs that its `retention` doesn't keep; also done after each of its runs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from retina_runner import history
from retina_runner.errors import Exit, UsageError
from retina_runner.retention import Keep, doomed, guard
from retina_runner.runbook import Runbook, load_runbook
from retina_runner.units import format_size


def main(chosen: argparse.Namespace) -> int:
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    if runbook.retention is None:
        raise UsageError(
            f"{chosen.runbook}: has no `retention`, so all of its runs are kept; for example retention: {{runs: 50}}"
        )
    folder = Path(chosen.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; runs are made in `runs` unless --output says otherwise")
    mine = _mine(folder, runbook)
    if chosen.check:
        going = {d.past.name: d for d in doomed((e.past for e in mine), runbook.retention, time.time())}
        for entry in mine:
            past = entry.past
            why = going[past.name].why if past.name in going else guard(past, runbook.retention)
            verb = "would go" if past.name in going else "stays"
            print(f"{past.name}: {verb}" + (f": {why}" if why else "") + f" ({format_size(past.size_bytes)})")
        return Exit.OK
    trouble = _prune(folder, runbook, runbook.retention, quiet=chosen.quiet)
    return Exit.SOME_FAILED if trouble else Exit.OK


def after_run(folder: Path, runbook: Runbook, quiet: bool) -> None:
    """What `retention` asks for, once a run is over; its trouble is told, and is not the run's."""
    if runbook.retention is not None:
        _prune(folder, runbook, runbook.retention, quiet)


def _mine(folder: Path, runbook: Runbook) -> tuple[history.Entry, ...]:
    return tuple(e for e in history.entries(folder) if e.report.runbook == runbook.name)


def _prune(folder: Path, runbook: Runbook, keep: Keep, quiet: bool) -> bool:
    history.sweep(folder)
    trouble = False
    for gone in doomed((e.past for e in _mine(folder, runbook)), keep, time.time()):
        try:
            history.delete(folder / gone.past.name)
        except OSError as error:
            trouble = True
            print(f"retina-run: {folder / gone.past.name}: not pruned: {error.strerror}", file=sys.stderr)
            continue
        if not quiet:
            print(f"pruned: {gone.past.name}: {gone.why} ({format_size(gone.past.size_bytes)})")
    return trouble
