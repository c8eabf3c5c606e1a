"""The flight recorder's looks: from T0 on nothing that moves is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retina_runner.agent.counters import COUNTER, Snapshot
from retina_runner.agent.recorder import Recorder, Rings, Terms

TERMS = {
    "condition": 'delta("Udp.NoPorts") > 0', "every_s": 0.0, "before_s": 1.0, "after_s": 0.0, "count": 1, "cooldown_s": 0.0,
    "patience_s": 0.0,
}  # fmt: skip


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
