"""What an upload target forgets: the runs that its `retention` doesn't keep, and of those only what is provably ours.

A run at a target is what its `run.json` there says, and what this machine knows of it since: it was finished, its archives
are verified, and stored at every target. A key is only ever looked at because such a run names it; it goes when the
metadata of the object (in a folder: its content) are that run's. `run.json` goes last, so that what was cut short goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retina_runner import history
from retina_runner.report import RunReport, from_json
from retina_runner.retention import Past, open_ends
from retina_runner.uploads import Item, NotStored, Parcel, Target

SUMMARY = "run.json"
MOST_SUMMARY_BYTES = 64 << 20
RIGHTS = "retention needs the rights to list, to read and to delete"


@dataclass(frozen=True)
class StoredRun:
    """One run at one target. `parcels` are the archives that it says it has stored, `beside` the one that `run.json` is beside."""

    report: RunReport
    past: Past
    parcels: tuple[Parcel, ...]
    beside: Parcel


def runs_at(target: Target, runbook: str, known: Mapping[str, history.Entry]) -> tuple[StoredRun, ...]:
    """This runbook's runs at a target. `known` are those of this machine by name. Raises NotStored."""
    try:
        sizes = dict(target.listing(f"{target.prefix}/" if target.prefix else ""))
        found = [run for key in sizes if key.endswith(SUMMARY) for run in _run_at(target, key, sizes, known)]
    except NotStored as why:
        raise NotStored(f"{why}; {RIGHTS}") from None
    return tuple(run for run in found if run.report.runbook == runbook)


def _run_at(
    target: Target, key: str, sizes: Mapping[str, int], known: Mapping[str, history.Entry]
) -> Iterator[StoredRun]:
    """The run whose `run.json` this is; none when it isn't one, or lies elsewhere than that run would have put it."""
    if sizes[key] > MOST_SUMMARY_BYTES:
        return
    try:
        report = from_json(json.loads(b"".join(target.read(key))))
        parcels = tuple(parcels_of(report))
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    beside = next((p for p in parcels if target.key_for(p, SUMMARY) == key), None)
    if beside is None:
        return
    keys = {key, *(target.key_for(p, name) for p in parcels for name in ("", "manifest.json"))}
    here = known.get(report.run)
    guard = open_ends(report)
    if here is not None and here.report.started == report.started:
        # A later upload by this machine may have finished it, or a file in its directory pins it.
        guard = here.past.guard
    began = history.began(report)
    yield StoredRun(report, Past(report.run, began, sum(sizes.get(k, 0) for k in keys), guard), parcels, beside)


def parcels_of(report: RunReport) -> Iterator[Parcel]:
    """The archives of a run, as they were stored."""
    for node in report.nodes:
        if node.archive and node.sha256:
            name = node.archive.rstrip("/").rpartition("/")[2]
            yield Parcel(report.run, node.node, Path(name), node.sha256, node.size_bytes)


def forget(target: Target, run: StoredRun) -> tuple[str, ...]:
    """Delete a run at a target; the keys that stay, each with why it isn't ours. Raises NotStored. Can be repeated."""
    stays: list[str] = []
    try:
        for parcel in run.parcels:
            for name in ("manifest.json", ""):
                stays += _remove(target, target.find(parcel, name))
        if not stays:  # else it is what tells of the rest
            stays += _remove(target, target.find(run.beside, SUMMARY))
    except NotStored as why:
        raise NotStored(f"{why}; {RIGHTS}") from None
    return tuple(stays)


def _remove(target: Target, item: Item | None) -> Iterator[str]:
    if item is not None and item.alien:
        yield f"{item.key} stays: {item.alien}"
    elif item is not None:
        target.remove(item)
