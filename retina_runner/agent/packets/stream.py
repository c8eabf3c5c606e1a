"""One pcap, read while tcpdump writes it: cut to the window, counted, hashed and compressed as it grows."""

from __future__ import annotations

from typing import Any, Dict

from retina_runner.agent import process
from retina_runner.agent.context import PARTIAL, Context
from retina_runner.agent.packets.tap import CHUNK_BYTES, POLL_S, Tap, counts_of
from retina_runner.agent.passing import Passing
from retina_runner.agent.pcap import Cutter

BACKLOG_BYTES = 32 << 20
"""With more than this still to be compressed, compression makes way (stored blocks) rather than delay the archive."""


class Stream(Tap):
    """See `Tap`. The capture ends at `max_size`."""

    def __init__(self, context: Context, interface: str, suffix: str, optimise: bool):
        super().__init__(context, interface, suffix, optimise)
        self._full = False

    @property
    def bound_bytes(self) -> int:
        return int(self._options["max_size"])

    def look_after(self) -> None:
        assert self._context.open_member is not None
        assert self._process is not None
        cutter = self._new_cutter(self._options["max_size"])
        member = self._context.open_member(self._member_name())
        source = Passing(self._file)
        try:
            while True:
                over = self._stopping.is_set() or self._process.poll() is not None
                chunk = source.read(CHUNK_BYTES)
                if not chunk and over:
                    break
                if not chunk:
                    self._stopping.wait(POLL_S)
                    continue
                self._pass_on(cutter, member, chunk, source)
                if cutter.full and not self._full:
                    self._full = True
                    self._note_full(cutter)
                    process.end(self._process)
        finally:
            source.close()
        self._end_member(member)
        # Everything in it is in the archive now; the room may be needed to finish it.
        self._file.unlink(missing_ok=True)

    def _pass_on(self, cutter: Cutter, member: Any, chunk: bytes, source: Passing) -> None:
        assert self._context.intervals_ns is not None
        # Sampled after the read: whatever clock stamped these packets, its step is known by now.
        cutter.intervals = self._context.intervals_ns()
        behind = source.behind_bytes() > BACKLOG_BYTES
        pieces = cutter.feed(chunk)
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._write(member, data, cutter, source, behind)

    def _note_full(self, cutter: Cutter) -> None:
        self._context.emit(
            "limit",
            limit="max_size",
            why=f"the pcap of {self.interface} has reached {self._options['max_size']} B after {cutter.packets_kept} packets",
        )

    def held(self, now: float, counts: Dict[str, int]) -> Dict[str, int]:
        return {"bytes": sum(c.bytes_kept for c in self._cutters), "packets": self.kept}

    def judge(self, status: int, text: bytes) -> None:
        counts = counts_of(text)
        self._context.note_packets(self._member_name(), self.kept)
        verdict = self.judged(self._member_name(), counts)
        if self._full:
            verdict.lower(PARTIAL, f"stopped at max_size ({self._options['max_size']} B)")
        else:
            self.judge_end(verdict, status, text)
        self.judge_files(verdict, counts, status, whole=not self._full)
