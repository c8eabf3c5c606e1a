"""The time series: one JSON object a line, each with what changed since the line before; and the thread that takes it.

Values are cumulative, so that a line that is missing (a slow node, a full quota) costs resolution and no counts.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from retina_runner.agent.context import utc
from retina_runner.agent.metrics.model import Labels, Number, Sample
from retina_runner.agent.metrics.plugins import GAUGE, Family
from retina_runner.agent.metrics.text import _json_number, family_of
from retina_runner.agent.passing import is_full


class Series:
    """Writes lines to a file until it would grow beyond its limit; `cut` says that it has.

    A line that a full disk has no room for is `unwritten`, and what it would have told is in the next one that fits.
    """

    def __init__(self, path: Path, families: Mapping[str, Family], limit_bytes: int):
        self._file = open(str(path), "wb", buffering=0)  # noqa: SIM115 - it is written all through the window
        self._families, self._limit_bytes = families, limit_bytes
        self._last: Dict[Tuple[str, Labels], Number] = {}
        self.lines, self.size_bytes, self.cut, self.unwritten = 0, 0, False, 0

    def write(self, when: float, elapsed_s: float, samples: Iterable[Sample]) -> None:
        """One line: the samples that changed, of families that belong into a series. `when` is Unix time."""
        changed: List[Dict[str, Any]] = []
        values: Dict[Tuple[str, Labels], Number] = {}
        for sample in samples:
            key = (sample.metric, sample.labels)
            family = family_of(sample.metric, self._families)
            # A counter that never moved is 0 in every line, and in the totals.
            if not family.series or sample.value == self._last.get(key, None if family.kind == GAUGE else 0):
                continue
            changed.append(
                {"metric": sample.metric, "labels": dict(sample.labels), "value": _json_number(sample.value)}
            )
            values[key] = sample.value
        entry = {"time": utc(when), "elapsed_s": round(elapsed_s, 3), "samples": changed}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        self.cut = self.cut or self.size_bytes + len(line) > self._limit_bytes
        if self.cut:
            return
        if not self._written(line):
            self.unwritten += 1
            return
        self._last.update(values)
        self.size_bytes += len(line)
        self.lines += 1

    def _written(self, line: bytes) -> bool:
        """Whether the whole line is on the disk; nothing of it is, otherwise."""
        try:
            if self._file.write(line) == len(line):
                return True
        except OSError as error:
            if not is_full(error):
                raise
        os.ftruncate(self._file.fileno(), self.size_bytes)
        self._file.seek(self.size_bytes)
        return False

    def close(self) -> None:
        self._file.close()


class Ticker(threading.Thread):
    """Calls `zero` at T0 and `tick` every `interval_s` after it, on the beat: a late tick doesn't delay the next ones.

    `missed` counts beats that passed while another was still being taken. What a call raises is kept in `trouble` (the
    first one), and the beat goes on. `begun` is set when `zero` is done.
    """

    def __init__(self, t0: float, interval_s: float, zero: Callable[[], None], tick: Callable[[], None]):
        super().__init__(name="metrics", daemon=True)
        self._t0, self._interval_s, self._zero, self._tick = t0, interval_s, zero, tick
        self._over = threading.Event()
        self.begun = threading.Event()
        self.missed = 0
        self.trouble: Optional[str] = None

    def run(self) -> None:
        if self._over.wait(max(0.0, self._t0 - time.time())):
            return
        self._call(self._zero)
        self.begun.set()
        begun, beat = time.monotonic(), 1
        while not self._over.wait(max(0.0, begun + beat * self._interval_s - time.monotonic())):
            self._call(self._tick)
            due = int((time.monotonic() - begun) / self._interval_s)
            self.missed += max(0, due - beat)
            beat = max(beat, due) + 1

    def _call(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            self.trouble = self.trouble or f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """No call is made after this has returned."""
        self._over.set()
        if self.is_alive():
            self.join()
