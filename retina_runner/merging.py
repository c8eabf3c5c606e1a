"""One run made of several (shards, mostly): one directory with every archive, verified, and one journal to fold.

The runs are only read. Archives are linked where the file system can, else copied; either way they are checked again
against the digest that the node reported before the new directory gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina_runner import __version__
from retina_runner.agent.context import utc
from retina_runner.errors import ArchiveError, UsageError
from retina_runner.folding import Fold, fold
from retina_runner.report import RunReport, exit_code, to_json
from retina_runner.rundir import EventLog, RunDirectory
from retina_runner.verification import verify_archive

_ENDS = ("run-start", "run-end", "t0", "interrupted")


@dataclass(frozen=True)
class Part:
    """A run that is to be merged."""

    directory: RunDirectory
    events: tuple[Mapping[str, Any], ...]
    report: RunReport


def read(paths: Sequence[Path]) -> tuple[Part, ...]:
    """The runs, checked to belong together. Raises UsageError for each reason that they don't, ArchiveError for damage."""
    if len({p.resolve() for p in paths}) != len(paths):
        raise UsageError("merge: a run is named twice")
    if len(paths) < 2:
        raise UsageError("merge: name two runs at least")
    parts = []
    for path in paths:
        directory = RunDirectory.open(path)
        events = tuple(directory.read_events())
        parts.append(Part(directory, events, fold(events)))
    for part in parts:
        if part.report.exit_code is None:
            raise UsageError(f"{part.directory.path}: hasn't ended; retina-run resume {part.directory.path}")
        if part.report.runbook_sha256 != parts[0].report.runbook_sha256:
            raise UsageError(f"{part.directory.path}: is of another runbook than {parts[0].directory.path}")
    owner: dict[str, Part] = {}
    for part in parts:
        for node in part.report.nodes:
            if node.id in owner:
                raise UsageError(
                    f"{node.id}: is in {owner[node.id].directory.path} and in {part.directory.path}; "
                    "runs of the same nodes aren't parts of one"
                )
            owner[node.id] = part
    problems = [f"{a}: {why}" for part in parts for a, why in _damage(part)]
    if problems:
        raise ArchiveError("\n".join([*problems, f"{len(problems)} archives can't be merged; nothing was written"]))
    return tuple(parts)


def _archive(part: Part, path: str) -> Path:
    """Where an archive is now: run directories may have been moved since."""
    return part.directory.archives / Path(path).name


def _damage(part: Part) -> list[tuple[Path, str]]:
    found = []
    for node in part.report.nodes:
        if node.archive:
            path = _archive(part, node.archive)
            verified = verify_archive(path)
            found += [(path, p) for p in verified.problems]
    return found


def merge(parts: Sequence[Part], parent: Path) -> tuple[RunDirectory, RunReport]:
    """Make the one run below `parent`. Raises UsageError when it can't be written; a half-made one is taken away."""
    first = min(parts, key=lambda p: p.report.started)
    directory = RunDirectory.create(parent, f"{first.report.run}-merged")
    try:
        return directory, _write(parts, first, directory)
    except OSError as error:
        shutil.rmtree(directory.path, ignore_errors=True)
        raise UsageError(f"{error.filename or directory.path}: {error.strerror}; nothing was merged") from error
    except BaseException:
        shutil.rmtree(directory.path, ignore_errors=True)
        raise


def _write(parts: Sequence[Part], first: Part, directory: RunDirectory) -> RunReport:
    for part in parts:
        for plan in sorted(part.directory.plans.glob("*.json")):
            directory.write(directory.plans / plan.name, plan.read_text(encoding="utf-8"))
    moved: dict[tuple[int, str], str] = {}
    for number, part in enumerate(parts):
        for node in part.report.nodes:
            if node.archive:
                source = _archive(part, node.archive)
                target = directory.archives / source.name
                _place(source, target)
                moved[number, node.id] = str(target)
    log, folding = EventLog(directory), Fold()
    for event in _events(parts, first, directory, moved):
        folding.add(log.append(dict(event)))
    status = exit_code(folding.report())
    folding.add(log.append({"time": utc(), "event": "run-end", "exit_code": int(status)}))
    log.close()
    if log.trouble:
        raise OSError(28, log.trouble, str(directory.events))
    from retina_runner.views.junit import junit

    report = folding.report()
    directory.write(directory.summary, json.dumps(to_json(report), indent=1) + "\n")
    directory.write(directory.junit, junit(report))
    return report


def _place(source: Path, target: Path) -> None:
    if target.exists():
        raise FileExistsError(17, "two archives have this name", str(target))
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        part = target.with_name(target.name + ".part")
        shutil.copyfile(source, part)
        if verify_archive(part).problems:
            raise OSError(5, "the copy is damaged", str(target)) from None
        os.replace(part, target)


def _events(
    parts: Sequence[Part], first: Part, directory: RunDirectory, moved: Mapping[tuple[int, str], str]
) -> list[Mapping[str, Any]]:
    """The journals as one, by time; each run's own beginning and end give way to those of the whole."""
    starts = [next(e for e in p.events if e["event"] == "run-start") for p in parts]
    begin = {k: v for k, v in starts[parts.index(first)].items() if k not in ("seq", "nodes", "pid")}
    begin |= {
        "run": directory.name, "version": __version__, "directory": str(directory.path), "pid": 0,
        "merged": [p.report.run for p in parts], "nodes": [n for start in starts for n in start["nodes"]],
    }  # fmt: skip
    t0s = [e for p in parts for e in p.events if e["event"] == "t0"]
    middle = []
    for number, part in enumerate(parts):
        for place, event in enumerate(part.events):
            if event["event"] in _ENDS:
                continue
            told = {k: v for k, v in event.items() if k != "seq"}
            if event["event"] == "fetched" and (number, event["id"]) in moved:
                told["path"] = moved[number, event["id"]]
            middle.append((str(event["time"]), number, place, told))
    events: list[Mapping[str, Any]] = [
        begin,
        *({k: v for k, v in e.items() if k != "seq"} for e in sorted(t0s, key=lambda e: str(e["t0"]))[:1]),
    ]
    events += [told for *_, told in sorted(middle, key=lambda m: m[:3])]
    stopped = [e for p in parts for e in p.events if e["event"] == "interrupted"]
    if stopped:
        remains = [r for p in parts for r in p.report.remains]
        events.append(
            {"time": stopped[-1]["time"], "event": "interrupted", "signal": stopped[0]["signal"], "remains": remains}
        )
    return events
