"""A node's clock against the runner's, compared twice: before T0 and after the window. Did it keep step meanwhile? Pure.

The second comparison finds what the node itself can't: a clock that was moved too slowly to look like a step there, or a
machine that stood still. What the runner's own clock did is left out, by its monotonic one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retina_runner.executors import Clock

TOLERANCE_S = 0.02
ENOUGH_S = TOLERANCE_S / 4
"""An error of the second comparison that tells as much as a smaller one: nodes wait for it at the end, one after the other."""
SLEW = 0.0005
"""What a clock may differ for each second: crystals are good to 100 ppm, and adjtime(3) turns them by 500 ppm at most."""


@dataclass(frozen=True)
class Reading:
    """One comparison, and the runner's own two clocks at that moment."""

    clock: Clock
    realtime_s: float
    monotonic_s: float


@dataclass(frozen=True)
class Drift:
    """How much the node's clock went ahead (or fell behind, negative) in `elapsed_s`, wrong by `error_s` at most.

    `known_s` of it are steps that the node saw itself: which of its time stamps are on which side is in its manifest.
    """

    drift_s: float
    error_s: float
    elapsed_s: float
    known_s: float = 0.0

    @property
    def allowed_s(self) -> float:
        return self.error_s + TOLERANCE_S + SLEW * self.elapsed_s

    @property
    def stepped(self) -> bool:
        """Whether it was moved, and nobody can say when."""
        return abs(self.drift_s - self.known_s) > self.allowed_s


def drift(before: Reading, after: Reading, known_s: Sequence[float] = ()) -> Drift:
    """What happened between two readings; `known_s` are the steps that the node told of."""
    elapsed_s = after.monotonic_s - before.monotonic_s
    runner_s = after.realtime_s - before.realtime_s - elapsed_s
    moved_s = after.clock.offset_s - before.clock.offset_s + runner_s
    return Drift(moved_s, before.clock.error_s + after.clock.error_s, elapsed_s, sum(known_s))
