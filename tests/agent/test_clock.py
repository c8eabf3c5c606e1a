"""Clock steps: noticed, measured, and the window follows them; slewing and slowness are not steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent.clock import NodeClock


class FakeTime:
    """Two clocks that a test moves by hand."""

    def __init__(self) -> None:
        self.monotonic, self.realtime = 100.0, 1_700_000_000.0

    def go(self, seconds: float) -> None:
        self.monotonic += seconds
        self.realtime += seconds

    def clock(self) -> NodeClock:
        return NodeClock(lambda: self.realtime, lambda: self.monotonic)


def test_without_a_step_there_is_one_interval() -> None:
    fake = FakeTime()
    clock = fake.clock()
    for _ in range(100):
        fake.go(1.0)
        assert clock.sample() == []
    assert clock.intervals_ns(1000.5, 1010.25) == ((1_000_500_000_000, 1_010_250_000_000),)


def test_hours_of_slewing_are_not_a_step() -> None:
    fake = FakeTime()
    clock = fake.clock()
    for _ in range(10_000):
        fake.go(1.0)
        fake.realtime += 0.0005  # the most that adjtime(3) does
        assert clock.sample() == []


@given(step=st.floats(-3600, 3600).filter(lambda s: abs(s) > 0.1), at=st.floats(0.5, 9.0))
def test_every_stamp_of_the_window_is_inside_whichever_clock_made_it(step: float, at: float) -> None:
    fake = FakeTime()
    clock = fake.clock()
    t0 = fake.realtime
    stamps_inside: list[int] = []
    stamps_after: list[int] = []
    stepped = False
    while fake.realtime - t0 < 12 + (step if stepped else 0):
        fake.go(0.25)
        elapsed = fake.monotonic - 100.0
        if elapsed >= at and not stepped:
            fake.realtime += step
            stepped = True
        clock.sample()
        (stamps_inside if elapsed < 10 else stamps_after).append(round(fake.realtime * 1e6) * 1000)
    (found,) = clock.steps
    assert abs(found.step_s - step) < 1e-3
    intervals = clock.intervals_ns(t0, t0 + 10)
    assert all(any(a <= s < b for a, b in intervals) for s in stamps_inside)
    if step > 0:
        # A forward step makes later stamps that no earlier clock could have made in the window.
        assert not any(any(a <= s < b for a, b in intervals) for s in stamps_after)


def test_being_descheduled_between_two_reads_is_not_a_step() -> None:
    """The first tries of a sample are slow; a later one is quick and tells the truth."""
    fake = FakeTime()
    calls = {"count": 0}

    def slow_monotonic() -> float:
        calls["count"] += 1
        if 2 < calls["count"] < 9:
            fake.go(0.4)
        return fake.monotonic

    clock = NodeClock(lambda: fake.realtime, slow_monotonic)
    assert clock.sample() == []
