"""`retina-run prune RUNBOOK`: take away the runs that its `retention` doesn't keep, in the run folder and at upload targets.

Also done after each of its runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retina_runner import history
from retina_runner.errors import Exit, UsageError
from retina_runner.retention import Keep, Past, doomed, guard
from retina_runner.runbook import Runbook, Upload
from retina_runner.runbook_reading import load_runbook
from retina_runner.units import format_size
from retina_runner.uploads import NotStored


def main(chosen: argparse.Namespace) -> int:
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    if not _wanted(runbook):
        raise UsageError(
            f"{chosen.runbook}: has no `retention`, so all of its runs are kept; for example retention: {{runs: 50}}"
        )
    folder = Path(chosen.folder)
    if runbook.retention is not None and not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; runs are made in `runs` unless --output says otherwise")
    if not chosen.check:
        return Exit.SOME_FAILED if _prune(folder, runbook, quiet=chosen.quiet) else Exit.OK
    trouble = False
    for place, pasts in _looked_at(folder, runbook):
        if pasts is None:
            trouble = True
            continue
        going = {d.past.name: d for d in doomed(pasts, place.keep, time.time())}
        for past in sorted(pasts, key=lambda p: (p.began, p.name), reverse=True):
            why = going[past.name].why if past.name in going else guard(past, place.keep)
            verb = "would go" if past.name in going else "stays"
            print(
                f"{place.where}{past.name}: {verb}" + (f": {why}" if why else "") + f" ({format_size(past.size_bytes)})"
            )
    return Exit.SOME_FAILED if trouble else Exit.OK


def after_run(folder: Path, runbook: Runbook, quiet: bool) -> None:
    """What `retention` asks for, once a run is over; its trouble is told, and is not the run's."""
    if _wanted(runbook):
        _prune(folder, runbook, quiet)


def _wanted(runbook: Runbook) -> bool:
    return runbook.retention is not None or any(u.retention for u in runbook.uploads)


@dataclass(frozen=True)
class _Place:
    """Somewhere that runs are. `delete` returns what of a run has to stay; it raises OSError, NotStored."""

    where: str
    keep: Keep
    pasts: Callable[[], tuple[Past, ...]]
    delete: Callable[[str], Iterable[str]]


def _places(folder: Path, runbook: Runbook) -> Iterator[_Place]:
    """The run folder comes last: what it knows of a run decides about the run's copies elsewhere."""
    entries = history.entries(folder) if folder.is_dir() else ()
    mine = {e.path.name: e for e in entries if e.report.runbook == runbook.name}
    for upload in runbook.uploads:
        if upload.retention is not None:
            yield _target(upload, upload.retention, runbook.name, mine)
    if runbook.retention is not None:

        def delete(name: str) -> tuple[str, ...]:
            history.delete(folder / name)
            return ()

        yield _Place("", runbook.retention, lambda: tuple(e.past for e in mine.values()), delete)


def _looked_at(folder: Path, runbook: Runbook) -> Iterator[tuple[_Place, tuple[Past, ...] | None]]:
    """Every place with its runs; None for those of one that can't be read, which is told."""
    for place in _places(folder, runbook):
        try:
            yield place, place.pasts()
        except NotStored as error:
            _said(place, str(error))
            yield place, None


def _target(upload: Upload, keep: Keep, runbook: str, mine: Mapping[str, history.Entry]) -> _Place:
    from retina_runner.uploads.opening import open_target
    from retina_runner.uploads.pruning import StoredRun, forget, runs_at

    target = open_target(upload.kind, upload.options)
    assert target is not None, "the schema has retention for no kind that nodes serve"
    found: dict[str, StoredRun] = {}

    def pasts() -> tuple[Past, ...]:
        found.update({run.past.name: run for run in runs_at(target, runbook, mine)})
        return tuple(run.past for run in found.values())

    return _Place(f"{target.describe()}: ", keep, pasts, lambda name: forget(target, found[name]))


def _prune(folder: Path, runbook: Runbook, quiet: bool) -> bool:
    """Whether there was trouble; it is told."""
    if folder.is_dir():
        history.sweep(folder)
    trouble = False
    for place, pasts in _looked_at(folder, runbook):
        if pasts is None:
            trouble = True
            continue
        for gone in doomed(pasts, place.keep, time.time()):
            try:
                stays = tuple(place.delete(gone.past.name))
            except NotStored as error:
                trouble = _said(place, f"{gone.past.name}: not pruned: {error}")
                continue
            except OSError as error:
                trouble = _said(place, f"{folder / gone.past.name}: not pruned: {error.strerror}")
                continue
            for key in stays if not quiet else ():
                print(f"{place.where}{key}")
            if not quiet and not stays:
                print(f"pruned: {place.where}{gone.past.name}: {gone.why} ({format_size(gone.past.size_bytes)})")
    return trouble


def _said(place: _Place, what: str) -> bool:
    print(f"retina-run: {place.where}{what}", file=sys.stderr)
    return True
