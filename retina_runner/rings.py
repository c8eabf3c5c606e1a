"""Rings of pcap files: what a flight recorder's is when the runbook doesn't say, and whether one has room on a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from retina_runner.agent.packets.command import RING_STEP_BYTES, worst_case_bytes
from retina_runner.errors import Problem
from retina_runner.units import format_size

if TYPE_CHECKING:
    from retina_runner.runbook import Capture, CollectorEntry, Runbook, Trigger

RING_FILES = 10
RING_SLACK_S = 15.0
"""How much longer than it should take an order may be on its way, and the archiving of a window may last."""


def ring_of(options: Mapping[str, Any], trigger: Trigger) -> dict[str, Any]:
    """What makes a tcpdump entry a flight recorder's: the ring that it asks for, or one of as many bytes as its pcap might
    have had, and for how long it must hold a packet: until its window can be ordered at the latest."""
    size = max(RING_STEP_BYTES, int(options["max_size"]) // RING_FILES // RING_STEP_BYTES * RING_STEP_BYTES)
    hold_s = trigger.before_s + max(trigger.after_s, trigger.patience_s) + RING_SLACK_S
    return {"ring": options.get("ring") or {"files": RING_FILES, "file_size": size}, "hold_s": hold_s}


def most_bytes(options: Mapping[str, Any], trigger: Trigger | None) -> int:
    """The most that an entry's rings hold on a node while the window is open, over its interfaces; 0 without a ring.

    The newest file is beside those that the ring keeps. A flight recorder's may grow to twice that, beside the archive of
    a window; a plain one becomes an archive only afterwards, file by file. A pattern of names counts as one interface.
    """
    if trigger is not None:
        return worst_case_bytes({**options, **ring_of(options, trigger)}, len(options["interfaces"]))
    ring = options.get("ring")
    return (ring["files"] + 1) * int(ring["file_size"]) * len(options["interfaces"]) if ring else 0


def problems(runbook: Runbook) -> Iterator[Problem]:
    """Rings that `limits.node_bytes` would end before they are full: one a capture, at its largest ring."""
    bound = runbook.limits.node_bytes
    for capture in runbook.captures:
        sizes = [(most_bytes(e.options, runbook.trigger), e) for e in capture.collect if e.name == "tcpdump"]
        needed = sum(size for size, _ in sizes)
        if needed > bound:
            yield _problem(runbook, capture, max(sizes, key=lambda s: s[0])[1], needed, len(sizes))


def _problem(runbook: Runbook, capture: Capture, entry: CollectorEntry, needed: int, entries: int) -> Problem:
    why = (
        "twice its size while a window is kept, beside that window's archive"
        if runbook.trigger
        else "with its newest file"
    )
    ring = (*entry.path, "ring") if entry.options.get("ring") else entry.path
    return runbook.problem(
        ring,
        f"the ring{'s of this capture' if entries > 1 else ''} may hold {format_size(needed)} on a node ({why}), "
        f"more than limits.node_bytes, {format_size(runbook.limits.node_bytes)}: the window would end there",
        f"a smaller ring, fewer interfaces, or limits: {{node_bytes: {format_size(-(-needed // 10**9) * 10**9)}}}",
    )  # fmt: skip
