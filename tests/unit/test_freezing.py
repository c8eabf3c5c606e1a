"""One event is one order, whoever fired how often, and each node is told in its own clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from retina_runner.executors import Clock
from retina_runner.freezing import Duties, Freezes, Hands, Order, Postponed

EVENT = {"event": "trigger", "stamp": "20261123031700", "condition": "delta(\"x\") > 0", "values": {"delta(x)": 2},
         "instant": "2026-11-23T03:17:00.500000Z", "instant_node": "2026-11-23T03:18:30.500000Z"}  # fmt: skip


def freezes(count: int = 3) -> Freezes:
    return Freezes(before_s=30, after_s=10, count=count, cooldown_s=60)


def test_an_event_is_an_order_for_the_window_around_it() -> None:
    order = freezes().fired("web/n1", "n1", EVENT, 1000.0)
    assert order is not None
    assert order == Order(
        1, "20261123031700", "web/n1", "n1", 'delta("x") > 0', {"delta(x)": 2}, 1000.0, 970.0, 1010.0, False
    )
    told = json.loads(order.document(Clock(90.0, 0.25)))
    assert (told["instant"], told["reference"], told["start"], told["end"]) == (1090.0, 1000.0, 1060.0, 1100.0)
    assert (told["offset_s"], told["offset_error_s"], told["last"]) == (90.0, 0.25, False)


@pytest.mark.parametrize(
    ("instant", "makes"),
    [(999.5, False), (1000.0, False), (1009.0, False), (1069.0, False), (1071.0, True), (930.0, True)],
)
def test_what_another_event_covers_is_none(instant: float, makes: bool) -> None:
    all_of_them = freezes()
    assert all_of_them.fired("n1", "n1", EVENT, 1000.0)
    assert (all_of_them.fired("n2", "n2", EVENT, instant) is not None) == makes
    assert len(all_of_them.orders) == 1 + makes


def test_there_are_as_many_as_the_runbook_says_and_the_last_says_so() -> None:
    all_of_them = freezes(2)
    made = [all_of_them.fired("n1", "n1", EVENT, 1000.0 * n) for n in (1, 2, 3)]
    assert [m and m.last for m in made] == [False, True, None]


def test_a_plan_without_a_trigger_has_none() -> None:
    assert Freezes.of(b"{}") is None
    plan = {
        "trigger": {
            "before_s": 1,
            "after_s": 2,
            "count": 3,
            "cooldown_s": 4,
            "every_s": 1,
            "condition": "",
            "patience_s": 1,
        }
    }
    found = Freezes.of(json.dumps(plan).encode())
    assert found is not None
    assert (found.before_s, found.after_s, found.count, found.cooldown_s) == (1, 2, 3, 4)


@dataclass(frozen=True)
class Place:
    id: str
    node: str


class Rig:
    """Two nodes' duties, and everything that they did, in order."""

    def __init__(self, count: int = 3) -> None:
        self.freezes = freezes(count)
        self.did: list[Any] = []
        self.interrupt_bringing = False
        self.n1, self.n2 = self._duties("n1", 90.0), self._duties("n2", 0.0)

    def _duties(self, name: str, offset_s: float) -> Duties[Place]:
        def bring(row: Place, archive: Mapping[str, Any], urgent: Callable[[], bool]) -> bool:
            if self.interrupt_bringing:
                self.interrupt_bringing = False
                self.freezes.fired("n2", "n2", {**EVENT, "stamp": "20261123041700"}, 9e9)
                assert urgent()
                raise Postponed
            self.did.append(("bring", row.id))
            return True

        hands = Hands[Place](
            clock=lambda: Clock(offset_s, 0.1),
            order=lambda document: self.did.append(("order", name, json.loads(document)["stamp"])),
            say=lambda event, row=None, **fields: self.did.append((event, row.id if row else fields.get("at"))),
            row=lambda stamp: Place(f"{name}#{stamp}", name),
            bring=bring,
            fail=lambda row, what, why, hint: self.did.append(("fail", row.id, why)),
        )
        return Duties(Place(name, name), self.freezes, hands, brought={"n1#brought"})


def frozen(stamp: str) -> dict[str, Any]:
    return {"event": "frozen", "seq": 9, "time": "", "name": "a.tar.gz", "trigger": {"stamp": stamp}}


def test_every_node_is_told_and_what_it_froze_is_brought_home() -> None:
    rig = Rig()
    rig.n1.take(EVENT)
    assert rig.n1.due()
    assert not rig.n2.due()
    rig.n1.do()
    assert rig.did == [("freeze", "n1"), ("order", "n1", "20261123031700")]
    assert rig.freezes.orders[0].instant == pytest.approx(1795403820.5), "90 s are taken off"
    assert rig.n2.due()
    rig.n2.do()
    rig.n2.take(frozen("20261123031700"))
    rig.n2.do()
    assert rig.did[2:] == [
        ("order", "n2", "20261123031700"), ("recording", "n2#20261123031700"), ("archive", "n2#20261123031700"),
        ("bring", "n2#20261123031700"),
    ]  # fmt: skip
    assert not rig.n2.due()


def test_bringing_home_gives_way_to_the_next_order() -> None:
    rig = Rig()
    rig.n1.take(EVENT)
    rig.n1.do()
    rig.n1.take(frozen("20261123031700"))
    rig.interrupt_bringing = True
    rig.n1.do()
    assert [d for d in rig.did if d[0] in ("order", "bring")] == [
        ("order", "n1", "20261123031700"), ("order", "n1", "20261123041700"), ("bring", "n1#20261123031700"),
    ]  # fmt: skip


def test_what_an_earlier_runner_brought_home_stays_there() -> None:
    rig = Rig()
    rig.n1.take(frozen("brought"))
    assert not rig.n1.due()
    assert rig.did == []


def test_a_node_that_was_told_too_late_is_a_failure_of_that_window() -> None:
    rig = Rig()
    rig.n1.take(EVENT)
    rig.n1.do()
    rig.n1.finish()
    assert rig.did[-1] == ("fail", "n1#20261123031700", "this node's window was over before it was told")


def test_the_others_are_told_also_when_the_node_ended_before_anybody_listened() -> None:
    """Its trigger, what it froze by itself and its end are read at once by whoever adopts the run."""
    rig = Rig()
    rig.n1.take(EVENT)
    rig.n1.take(frozen("20261123031700"))
    rig.n1.finish()
    assert ("freeze", "n1") in rig.did
    assert ("bring", "n1#20261123031700") in rig.did
    rig.n2.do()
    assert rig.did[-1] == ("order", "n2", "20261123031700")
