"""A flight recorder's ring: a part of it is archived while it goes on, as often as an event asks; nothing of it at the end."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Tuple

from retina_runner.agent import pcap
from retina_runner.agent.clock import both
from retina_runner.agent.context import COMPLETE, HELD_BYTES, LOSSY, PARTIAL, UNKNOWN, Context, Verdict
from retina_runner.agent.packets.ring import Ring
from retina_runner.agent.packets.tap import (
    CHUNK_BYTES,
    COUNTS_TAIL_BYTES,
    POLL_S,
    counts_of,
    read,
    size_of,
    why_ended,
)
from retina_runner.agent.passing import is_full
from retina_runner.agent.pcap import Cutter

COUNTS_LIMIT_S = 3.0
SETTLE_LIMIT_S = 15.0
SETTLED_S = 1.5
"""tcpdump(8) asks libpcap for blocks at least every second."""


class HeldRing(Ring):
    """See `Tap.record`."""

    def __init__(self, context: Context, interface: str, suffix: str, optimise: bool):
        super().__init__(context, interface, suffix, optimise)
        self._counted: Deque[Tuple[float, Dict[str, int]]] = deque()

    def held(self, now: float, counts: Dict[str, int]) -> Dict[str, int]:
        self._counted.append((now, counts))
        while len(self._counted) > 1 and self._counted[1][0] < now - 2 * self._options["hold_s"]:
            self._counted.popleft()
        return super().held(now, counts)

    def record(self, context: Context) -> None:
        """One pcap of the packets of `context.window`, into an archive of its own, with a verdict of its own."""
        assert context.intervals_ns is not None
        assert context.open_member is not None
        name = f"{context.base}{self._suffix}.pcap"
        unwritten, counts = self._settle()
        self._write_log(context, read(self._log))
        cutters: List[Cutter] = []
        member = context.open_member(name)
        header = b""
        with self._pruning:
            try:
                for path in self._files():
                    cutters.append(Cutter(context.intervals_ns()))
                    header = _copy_cut(path, cutters[-1], member, header)
                if not header:
                    _put(member, pcap.header(snaplen=self._options["snaplen"]), 0)
            finally:
                _close(member)
        kept = sum(c.packets_kept for c in cutters)
        context.note_packets(name, kept)
        verdict = context.verdict(Verdict(name, COMPLETE, [], {"in_window": kept}))
        self._judge_losses(context, verdict, counts)
        self._judge_record(context, verdict, cutters, unwritten)

    def _settle(self) -> Tuple[int, Dict[str, int]]:
        """Wait until everything that the kernel has taken by now is in the ring's files; (packets that aren't, counts).

        tcpdump's counts say it: what it captured then is what the kernel had received and not dropped. A difference
        that stays the same while tcpdump answers, for longer than the kernel keeps an unfinished block, isn't waiting.
        """
        begun = time.monotonic()
        first = self._ask_counts()
        wanted = first.get("received_by_filter", 0) - first.get("dropped_by_kernel", 0)
        counts, moved_at = first, begun
        while counts and counts.get("captured", 0) < wanted:
            now = time.monotonic()
            if now - begun > SETTLE_LIMIT_S:
                return wanted - counts.get("captured", 0), counts
            if now - moved_at > SETTLED_S:
                break
            self._stopping.wait(POLL_S)
            newer = self._ask_counts()
            if newer.get("captured") != counts.get("captured"):
                moved_at = time.monotonic()
            counts = newer or counts
        return 0, counts

    def _ask_counts(self) -> Dict[str, int]:
        """tcpdump's counts from after this call; the newest that are known, if it doesn't say."""
        before = size_of(self._log)
        deadline = time.monotonic() + COUNTS_LIMIT_S
        if self.running:
            self._ask()
            while time.monotonic() < deadline and self.running:
                said = counts_of(read(self._log)[before:])
                if "dropped_by_kernel" in said:
                    return said
                time.sleep(0.02)
        return self.counts()

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def _judge_losses(self, context: Context, verdict: Verdict, counts: Dict[str, int]) -> None:
        window = context.window
        assert window is not None
        realtime, monotonic = both()
        start = monotonic - (realtime - window.t0)
        # A copy: whoever looks at the bounds each second appends to it meanwhile.
        before = next((c for at, c in reversed(tuple(self._counted)) if at <= start), {})
        received = counts.get("received_by_filter", 0) - before.get("received_by_filter", 0)
        for what in ("kernel", "interface"):
            dropped = counts.get(f"dropped_by_{what}", 0) - before.get(f"dropped_by_{what}", 0)
            verdict.counts[f"dropped_by_{what}"] = max(0, dropped)
            if dropped > 0:
                verdict.lower(LOSSY, f"{dropped} of {received} packets dropped by {what}, in the window or just before")

    def _judge_record(self, context: Context, verdict: Verdict, cutters: List[Cutter], unwritten: int) -> None:
        window = context.window
        assert window is not None
        missing_from = max(self._listening_at, self._evicted_until)
        if missing_from >= window.end:
            verdict.lower(PARTIAL, "the ring held nothing of this window any more")
        elif missing_from > window.t0:
            late = self._listening_at >= self._evicted_until
            why = "tcpdump wasn't listening yet" if late else "the ring is too small"
            verdict.lower(
                PARTIAL, f"the first {missing_from - window.t0:.1f} of {window.duration_s:.1f} s are missing: {why}"
            )
        if unwritten:
            verdict.lower(PARTIAL, f"tcpdump had {unwritten} packets still to write")
        if not self.running:
            verdict.lower(PARTIAL, "tcpdump has ended")
        if self._error:
            verdict.lower(PARTIAL, self._error)
        if self._was_full:
            verdict.lower(PARTIAL, "the node's disk was full: packets may be missing")
        if any(c.broken for c in cutters):
            verdict.lower(UNKNOWN, "tcpdump's file holds a record that can't be read")

    def drain(self) -> None:
        """Each recording has waited for its own packets."""

    def wrap_up(self) -> None:
        """Nothing of it is archived at the end but the log, and whether it ran all the time."""

    def judge(self, status: int, text: bytes) -> None:
        verdict = self._context.verdict(Verdict(self._log_name, COMPLETE, [], counts_of(text[-COUNTS_TAIL_BYTES:])))
        if status:
            why = f"tcpdump ended early: {why_ended(status, text)}"
            verdict.lower(PARTIAL, why)
            self.failures.append(f"{self.interface}: {why}")
        if self._was_full:
            verdict.lower(PARTIAL, "the node's disk was full")
            self.failures.append(f"{self.interface}: the node's disk was full, packets are missing")
        if self._error:
            verdict.lower(PARTIAL, self._error)
            self.failures.append(f"{self.interface}: {self._error}")


def _copy_cut(path: Path, cutter: Cutter, member: Any, header: bytes) -> bytes:
    """Append what the cutter lets through of one file of a ring, its header only to an empty member; the header."""
    with open(str(path), "rb", buffering=0) as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return header
            fresh, before = not cutter.bytes_kept, cutter.packets_kept
            pieces = cutter.feed(chunk)
            if fresh and pieces:
                if not header:
                    _put(member, pieces[0], member.count)
                header = pieces.pop(0)
            if pieces:
                _put(member, b"".join(pieces), member.count + cutter.packets_kept - before)


def _close(member: Any) -> None:
    try:
        member.close()
    except OSError as error:
        if not is_full(error):
            raise  # else it is tried again when room has been made


def _put(member: Any, data: bytes, count: int) -> None:
    """Whole packets, `count` with those before. The ring goes on, so nothing of it makes room: what a full disk has none
    for waits in memory, as far as that is bounded."""
    try:
        member.write(data, count=count)
    except OSError as error:
        if not is_full(error) or member.unwritten_bytes > HELD_BYTES:
            raise
