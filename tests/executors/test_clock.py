"""How many round trips a comparison of clocks takes: as many as what it is for needs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from retina_runner.executors import serving
from retina_runner.executors.serving import ServedLink


class Slow:
    """Stands for a session whose answers take a moment, longer than the error that isn't worth another round trip."""

    def __init__(self) -> None:
        self.asked = 0

    def request(self, verb: str, **_: Any) -> None:
        assert verb == "clock"
        self.asked += 1

    def line(self, limit_s: float) -> bytes:
        time.sleep(0.002)
        return json.dumps({"time": time.time()}).encode()


class Interrupted:
    """The module `time` for somebody who is interrupted just before or just after reading what time it is."""

    def __init__(self, before_s: float, after_s: float):
        self._before_s, self._after_s = before_s, after_s

    def time(self) -> float:
        time.sleep(self._before_s)
        now = time.time()
        time.sleep(self._after_s)
        return now

    def monotonic(self) -> float:
        return time.monotonic()


class SlowLink(ServedLink):
    def __init__(self) -> None:
        super().__init__("/nowhere", "python3")
        self.slow = Slow()

    def _serving(self) -> Any:
        return self.slow


def test_a_comparison_that_is_good_enough_takes_one_round_trip() -> None:
    link = SlowLink()
    clock = link.clock(60.0)
    assert link.slow.asked == 1
    assert 0.001 <= clock.error_s < 60.0
    assert abs(clock.offset_s) <= clock.error_s


def test_before_t0_it_goes_on_while_that_makes_it_better() -> None:
    link = SlowLink()
    link.clock()
    assert link.slow.asked > 1


@pytest.mark.parametrize(("before_s", "after_s"), [(0.05, 0.0), (0.0, 0.05)])
def test_an_interruption_makes_the_error_larger_and_no_offset_wrong(
    monkeypatch: pytest.MonkeyPatch, before_s: float, after_s: float
) -> None:
    monkeypatch.setattr(serving, "time", Interrupted(before_s, after_s))
    clock = SlowLink().clock(60.0)
    assert abs(clock.offset_s) <= clock.error_s
