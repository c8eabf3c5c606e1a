"""The flight recorder's looks: from T0 on nothing that moves is missed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.clock import SAMPLE_PRECISION_S
from retina_runner.agent.counters import COUNTER, Snapshot
from retina_runner.agent.recorder import Freeze, Recorder, Rings, Terms

TERMS = {
    "condition": 'delta("Udp.NoPorts") > 0', "every_s": 0.0, "before_s": 1.0, "after_s": 0.0, "count": 1, "cooldown_s": 0.0,
    "patience_s": 0.0,
}  # fmt: skip


def frozen_when_stopped(tmp_path: Path, orders: int) -> Freeze:
    """What is recorded of an event whose window has an hour to go, when the node is stopped with so many orders read."""
    recorded: list[Freeze] = []
    rings = Rings(lambda on: None, lambda freeze, *_: recorded.append(freeze), lambda: no_ports(8))
    terms = Terms.of({**TERMS, "after_s": 3600.0, "patience_s": 60.0})
    told: list[dict[str, Any]] = []
    recorder = Recorder(terms, "n1", tmp_path, lambda event, **fields: told.append(fields), rings)
    recorder.begin(no_ports(7))

    def wait(seconds: float) -> bool:
        if told and orders:
            order = {"stamp": told[0]["stamp"], "node": "n1", "condition": "", "values": {}, "instant": time.time(),
                     "reference": time.time(), "start": time.time() - 1, "end": time.time() + 3600}  # fmt: skip
            (tmp_path / "order.json").write_text(json.dumps(order))
        return False

    rounds = iter(range(3))
    recorder.run(1e12, wait, lambda: None if next(rounds, None) is not None else "stopped by request")
    (freeze,) = recorded
    return freeze


@pytest.mark.parametrize("orders", [0, 1], ids=["before the runner's order", "after it"])
def test_a_window_that_is_stopped_ends_then_and_says_so_whether_its_order_has_come_or_not(
    tmp_path: Path, orders: int
) -> None:
    freeze = frozen_when_stopped(tmp_path, orders)
    assert freeze.stopped == "stopped by request"
    assert freeze.start < freeze.end <= time.time()
    assert bool(freeze.why_alone) == (not orders)


@pytest.mark.parametrize("alone", [True, False])
def test_nothing_is_recorded_before_its_window_is_over_however_slow_the_node_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Reading counters, or an order, may take a while: the instant of an event is after the look that saw it."""
    recorded: list[float] = []
    seconds, real = 0.3, Freeze.of

    def counters() -> Snapshot:
        time.sleep(seconds)
        return no_ports(8)

    def slow(order: dict[str, Any]) -> Freeze:
        time.sleep(seconds)
        return real(order)

    monkeypatch.setattr(Freeze, "of", staticmethod(slow))
    rings = Rings(lambda on: None, lambda freeze, *_: recorded.append(time.time() - freeze.end), counters)
    recorder = Recorder(Terms.of({**TERMS, "after_s": 0.1}), "n1", tmp_path, lambda event, **fields: None, rings)
    if alone:
        recorder.begin(no_ports(7))
    else:
        end = time.time() + 0.5
        order = {
            "stamp": "x",
            "node": "n2",
            "condition": "",
            "values": {},
            "instant": end,
            "reference": end,
            "start": 0.0,
            "end": end,
        }
        (tmp_path / "order.json").write_text(json.dumps(order))

    def wait(seconds: float) -> bool:
        time.sleep(0.01)
        return False

    recorder.run(1e12, wait, lambda: None)
    assert len(recorded) == 1
    # `counters` is read once more between the decision and the recording.
    assert recorded[0] >= seconds - SAMPLE_PRECISION_S


def no_ports(number: int) -> Snapshot:
    return {("Udp.NoPorts", ()): (number, COUNTER)}


def test_what_moves_between_t0_and_the_first_round_of_looking_is_an_event(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    recorded: list[tuple[Snapshot, Snapshot]] = []
    rings = Rings(lambda on: None, lambda freeze, before, after: recorded.append((before, after)), lambda: no_ports(8))
    recorder = Recorder(Terms.of(TERMS), "n1", tmp_path, lambda event, **fields: told.append(fields), rings)
    recorder.begin(no_ports(7))
    looks = iter(range(20))
    recorder.run(1e12, lambda seconds: False, lambda: None if next(looks, None) is not None else "it never fired")
    assert [fields["values"] for fields in told] == [{"delta(Udp.NoPorts)": 1}]
    assert recorded == [(no_ports(7), no_ports(8))]
