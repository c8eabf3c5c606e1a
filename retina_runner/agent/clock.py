"""The node's two clocks: deadlines keep to the monotonic one, packets are stamped by the other, and that one may be stepped.

A step (NTP, an administrator, a resumed VM) during the window moves the time stamps of the packets after it. `NodeClock`
notices by comparing the clocks, and says which stamps belong to the window on either side of the step.
"""

from __future__ import annotations

import time
from typing import Callable, List, Tuple

from retina_runner.agent.records import dataclass

STEP_THRESHOLD_S = 0.05
"""Smaller differences are slewing or scheduling. adjtime(3) slews by at most 500 ppm, so far less between two samples."""
SAMPLE_PRECISION_S = 0.005


@dataclass(frozen=True)
class Step:
    """The realtime clock jumped by `step_s`, somewhere in the real time (new clock) between `after` and `before`."""

    step_s: float
    after: float
    before: float


class NodeClock:
    """Watches for steps from its construction on. Not thread-safe for `sample`: one thread samples, any may read."""

    def __init__(self, realtime: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic):
        self._realtime, self._monotonic = realtime, monotonic
        self._offset, self._last = self._measure()
        self.steps: List[Step] = []

    def _measure(self) -> Tuple[float, float]:
        return _measured(self._realtime, self._monotonic)

    def sample(self) -> List[Step]:
        """Compare the clocks; the steps since the last sample (none or one)."""
        offset, now = self._measure()
        change = offset - self._offset
        if abs(change) <= STEP_THRESHOLD_S:
            # Follow slow slewing, so that hours of it never add up to a false step.
            self._offset, self._last = offset, now
            return []
        step = Step(change, self._last + offset, now + offset)
        self._offset, self._last = offset, now
        self.steps.append(step)
        return [step]

    def intervals_ns(self, t0: float, end: float) -> Tuple[Tuple[int, int], ...]:
        """The stamps that lie in the window [t0, end) as half-open intervals of Unix nanoseconds.

        `t0` and `end` are on the clock as it was before any step. Each step opens an interval on the new clock, shifted
        by it, and closes the one before: a packet counts when the clock that stamped it says that it is in the window.
        """
        intervals: List[Tuple[int, int]] = []
        shift, opened = 0.0, float("-inf")
        for step in self.steps:
            closed = step.before - step.step_s  # the moment of detection, on the clock before this step
            intervals.append(_clip(t0 + shift, end + shift, opened, closed))
            shift += step.step_s
            opened = step.after
        intervals.append(_clip(t0 + shift, end + shift, opened, float("inf")))
        return tuple(i for i in intervals if i[0] < i[1])


def both() -> Tuple[float, float]:
    """Realtime and monotonic at one instant: whoever is interrupted between two reads takes that for a difference of the clocks."""
    offset, monotonic = _measured(time.time, time.monotonic)
    return monotonic + offset, monotonic


def _measured(realtime: Callable[[], float], monotonic: Callable[[], float]) -> Tuple[float, float]:
    """(realtime - monotonic, monotonic), from the best of a few tries: being descheduled between two reads isn't a step."""
    best = (float("inf"), 0.0, 0.0)
    for _ in range(8):
        before = monotonic()
        real = realtime()
        after = monotonic()
        if after - before < best[0]:
            best = (after - before, real - (before + after) / 2, after)
        if best[0] < SAMPLE_PRECISION_S:
            break
    return best[1], best[2]


def _clip(start: float, end: float, low: float, high: float) -> Tuple[int, int]:
    return round(max(start, low) * 1_000_000) * 1000, round(min(end, high) * 1_000_000) * 1000
