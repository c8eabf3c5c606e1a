"""Counters between two snapshots: wraps and resets are told apart, gauges aren't counters, and no input breaks a parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent import counters
from retina_runner.agent.counters import COUNTER, GAUGE, Snapshot, delta, parse_pairs, parse_snmp, parse_sockstat


def one(before: int, after: int, kind: str = COUNTER) -> list[tuple[int, str]]:
    moved = delta("s", {("n", ()): (before, kind)}, {("n", ()): (after, kind)})
    return [(m["delta"], m["status"]) for m in moved]


@given(st.integers(min_value=0, max_value=2**63), st.integers(min_value=1, max_value=2**40))
def test_what_grew_is_the_difference(before: int, grown: int) -> None:
    assert one(before, before + grown) == [(grown, "ok")]


@given(st.integers(min_value=2**31 + 2**30, max_value=2**32 - 1), st.integers(min_value=1, max_value=2**29))
def test_a_32_bit_counter_that_wrapped_is_right(before: int, grown: int) -> None:
    after = (before + grown) % 2**32
    assert one(before, after) == [(grown, "ok" if after >= before else "wrapped")]


@given(st.integers(min_value=1, max_value=2**31 - 1), st.data())
def test_a_counter_that_went_back_otherwise_is_at_least_what_it_holds(before: int, data: st.DataObject) -> None:
    after = data.draw(st.integers(min_value=0, max_value=before - 1))
    assert one(before, after) == [(after, "reset")]


def test_a_gauge_may_fall() -> None:
    assert one(10, 4, GAUGE) == [(-6, "ok")]
    assert one(10, 10) == []


def test_what_came_and_went_is_told() -> None:
    before: Snapshot = {("gone", (("interface", "eth0"),)): (5, COUNTER)}
    after: Snapshot = {("new", (("interface", "eth1"),)): (7, COUNTER)}
    moved = {m["name"]: (m["status"], m["delta"]) for m in delta("s", before, after)}
    assert moved == {"new": ("appeared", 7), "gone": ("vanished", None)}


def test_the_kernels_files_are_read() -> None:
    snmp = parse_snmp("Tcp: ActiveOpens CurrEstab MaxConn\nTcp: 17 3 -1\nUdp: InDatagrams\nUdp: 9\n")
    assert snmp[("Tcp.ActiveOpens", ())] == (17, COUNTER)
    assert snmp[("Tcp.CurrEstab", ())] == (3, GAUGE)
    assert snmp[("Udp.InDatagrams", ())] == (9, COUNTER)
    assert parse_pairs("Ip6InReceives 12\n")[("Ip6InReceives", ())][0] == 12
    assert parse_sockstat("TCP: inuse 4 orphan 0\n")[("TCP.inuse", ())] == (4, GAUGE)


PARSERS = [
    p for n, p in vars(counters).items() if n.startswith("parse_") and n not in ("parse_ethtool", "parse_number")
]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.__name__)
@given(text=st.text(alphabet='abc:0123456789-{}[]"\\n\\t ,x', max_size=200))
def test_no_text_breaks_a_parser(parser: object, text: str) -> None:
    assert isinstance(parser(text), dict)  # type: ignore[operator]
