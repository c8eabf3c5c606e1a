"""Two comparisons of a node's clock: what is drift, what is error, what the node knows, what the runner did itself."""

from __future__ import annotations

import pytest

from retina_runner.clocks import SLEW, TOLERANCE_S, Reading, drift
from retina_runner.executors import Clock


def reading(offset_s: float, error_s: float, at_s: float, runner_ahead_s: float = 0.0) -> Reading:
    return Reading(Clock(offset_s, error_s), 1_800_000_000.0 + at_s + runner_ahead_s, 500.0 + at_s)


def test_a_clock_that_keeps_step() -> None:
    told = drift(reading(90.0, 0.001, 0), reading(90.0012, 0.002, 60))
    assert told.drift_s == pytest.approx(0.0012)
    assert told.error_s == pytest.approx(0.003)
    assert told.elapsed_s == pytest.approx(60)
    assert not told.stepped


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_more_than_errors_and_wandering_explain_is_a_step(sign: int) -> None:
    most_s = 0.003 + TOLERANCE_S + SLEW * 60
    below = drift(reading(0, 0.001, 0), reading(sign * (most_s - 0.001), 0.002, 60))
    above = drift(reading(0, 0.001, 0), reading(sign * (most_s + 0.001), 0.002, 60))
    assert (below.stepped, above.stepped) == (False, True)


def test_steps_that_the_node_saw_are_known() -> None:
    assert not drift(reading(0, 0.001, 0), reading(3.0, 0.001, 60), [5.0, -2.0]).stepped
    assert drift(reading(0, 0.001, 0), reading(3.0, 0.001, 60), [5.0]).stepped


def test_a_step_of_the_runner_s_own_clock_is_nobody_else_s() -> None:
    told = drift(reading(0.5, 0.001, 0), reading(0.5 - 7.0, 0.001, 60, runner_ahead_s=7.0))
    assert told.drift_s == pytest.approx(0.0, abs=1e-6)
    assert not told.stepped


def test_an_hour_s_wandering_is_no_step() -> None:
    assert not drift(reading(0, 0.001, 0), reading(0.3, 0.001, 3600)).stepped
