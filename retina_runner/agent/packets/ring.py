"""A ring: tcpdump begins a file every so many bytes, we forget the oldest; what is left in the end is archived, file by file."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Dict, List

from retina_runner.agent.context import PARTIAL, Context, Verdict
from retina_runner.agent.packets.tap import CHUNK_BYTES, POLL_S, Tap, counts_of, size_of
from retina_runner.agent.passing import Passing


class Ring(Tap):
    """See `Tap`. With `hold_s` in the options a file goes when it is older than that, too."""

    def __init__(self, context: Context, interface: str, suffix: str, optimise: bool):
        super().__init__(context, interface, suffix, optimise)
        self._evicted = 0
        self._evicted_until = 0.0
        self._pruning = threading.Lock()
        self._appeared: Dict[str, float] = {}
        self._was_full = False

    @property
    def bound_bytes(self) -> int:
        return int(self._options["ring"]["file_size"])

    def look_after(self) -> None:
        while not self._stopping.wait(POLL_S):
            self._look_for_room()
            self._prune()
        self._look_for_room()
        self._prune()

    def _look_for_room(self) -> None:
        """Of a file that it can't write tcpdump says nothing, and goes on with the next one."""
        disk = os.statvfs(str(self._context.raw))
        if not self._was_full and not (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail):
            self._was_full = True
            self._tell_full()

    def _prune(self) -> None:
        """Forget the oldest files: those beyond the ring's number, and of a ring that is held those beyond its seconds."""
        keep, hold_s, now = self._options["ring"]["files"], self._options.get("hold_s"), time.monotonic()
        with self._pruning:
            files = self._files()
            for path in files:
                self._appeared.setdefault(path.name, now)
            most = 2 * keep if self.protected else keep
            while len(files) > 1:
                # A file's last packet came before the next file's first. By the monotonic clock: steps age nothing.
                aged = hold_s and not self.protected and self._appeared[files[1].name] < now - hold_s
                if len(files) <= most and not aged:
                    break
                self._evicted_until = max(self._evicted_until, files[0].stat().st_mtime)
                self._appeared.pop(files[0].name, None)
                files.pop(0).unlink()
                self._evicted += 1

    def held(self, now: float, counts: Dict[str, int]) -> Dict[str, int]:
        return {"bytes": sum(size_of(p) for p in self._files()), "packets": counts.get("captured", 0)}

    def wrap_up(self) -> None:
        if self._error:
            return
        try:
            for number, path in enumerate(self._files(), start=self._evicted + 1):
                self._archive(self._member_name(number), path)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def _archive(self, name: str, path: Path) -> None:
        assert self._context.open_member is not None
        cutter = self._new_cutter(None)
        member = self._context.open_member(name)
        source = Passing(path)
        try:
            while True:
                chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    break
                for piece in cutter.feed(chunk):
                    self._write(member, piece, cutter, source)
        finally:
            source.close()
            self._end_member(member)
        path.unlink(missing_ok=True)
        self._context.note_packets(name, cutter.packets_kept)

    def judge(self, status: int, text: bytes) -> None:
        counts = counts_of(text)
        verdict = self.judged(f"{self._context.base}{self._suffix}-*.pcap", counts)
        self.judge_end(verdict, status, text)
        self._judge_ring(verdict)
        self.judge_files(verdict, counts, status, whole=not self._evicted)

    def _judge_ring(self, verdict: Verdict) -> None:
        torn = sum(1 for c in self._cutters if c.leftover_bytes and c.broken is None)
        if (self._was_full or torn) and not self.failures:
            verdict.lower(PARTIAL, "the node's disk was full: packets are missing")
            self.failures.append(f"{self.interface}: the node's disk was full, packets are missing")
        if self._evicted:
            verdict.counts["files_evicted"] = self._evicted
            kept: List[object] = [*self._cutters]
            verdict.lower(PARTIAL, f"the ring kept the last {len(kept)} of {self._evicted + len(kept)} files")
