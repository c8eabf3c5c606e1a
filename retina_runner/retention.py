"""Which runs may go: pure, so that what must never be deleted can be tested by the thousand.

Never: a run that is pinned, one that isn't over (it runs, or its runner died and its agents may still hold what they
collected), one whose archives aren't where the runbook wants them, and the newest of all. Those that stay count
against `bytes`, since a disk doesn't ask why; against `runs` only those do that nothing protects. Runs with and without
an archive are counted apart, and the newest of each stays: a condition that is looked at every five minutes, or a store that
refuses all of a night, would push out the one run that has the evidence.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retina_runner.report import RunReport


@dataclass(frozen=True)
class Keep:
    """What a runbook keeps: see `retention` of schemas/runbook.json. None is no bound."""

    runs: int | None = None
    days: int | None = None
    size_bytes: int | None = None
    pin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Past:
    """One run that there is. `began` is Unix time; `guard` says why it must stay, empty if nothing says so; `empty`: it
    has no archive."""

    name: str
    began: float
    size_bytes: int
    guard: str = ""
    empty: bool = False


@dataclass(frozen=True)
class Doomed:
    """A run that may go, and which bound says so."""

    past: Past
    why: str


def doomed(pasts: Iterable[Past], keep: Keep, now: float) -> tuple[Doomed, ...]:
    """The runs that go, oldest first."""
    newest_first = sorted(pasts, key=lambda p: (p.began, p.name), reverse=True)
    held = sum(p.size_bytes for p in newest_first if guard(p, keep))
    newest = {past.empty: past for past in reversed(newest_first)}
    count, found = {True: 0, False: 0}, []
    for past in newest_first:
        if guard(past, keep):
            continue
        why = ""
        if past is not newest[past.empty]:
            if keep.runs is not None and count[past.empty] >= keep.runs:
                why = f"more than {keep.runs} runs" + (" without an archive" if past.empty else "")
            elif keep.days is not None and now - past.began > keep.days * 86400:
                why = f"older than {keep.days} days"
            elif keep.size_bytes is not None and held + past.size_bytes > keep.size_bytes:
                why = f"more than {keep.size_bytes} bytes in all"
        if why:
            found.append(Doomed(past, why))
        else:
            count[past.empty] += 1
            held += past.size_bytes
    return tuple(reversed(found))


def guard(past: Past, keep: Keep) -> str:
    """Why a run stays whatever the bounds; empty when it may go."""
    pattern = next((p for p in keep.pin if fnmatch.fnmatchcase(past.name, p)), "")
    return past.guard or (f"pinned by {pattern}" if pattern else "")


def open_ends(report: RunReport) -> str:
    """Why a run isn't finished business, from its events: it isn't over, or evidence isn't yet where it belongs."""
    if report.exit_code is None or not report.run:
        return "not over"
    if report.remains or any(n.remains for n in report.nodes):
        return "something of it is still on a node"
    wanted = _wanted(report.terms.get("uploads", ()) if report.terms else ())
    for node in report.nodes:
        if node.archive and node.verified is False:
            return f"{node.id}: its archive isn't verified"
        if node.archive and sum(1 for u in node.uploads if u.state == "stored") < wanted:
            return f"{node.id}: not uploaded"
    return ""


def _wanted(uploads: Sequence[object]) -> int:
    return len(uploads)
