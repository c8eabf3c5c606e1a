"""Conditions: what they mean, what they can't do, and what is told of a mistake and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent.conditions import ConditionError, Measured, Unknown, holds, parse
from retina_runner.agent.counters import COUNTER, GAUGE, Snapshot
from retina_runner.errors import DocumentError
from retina_runner.runbook_reading import load_runbook


def snapshot(errors: int, eth0: int, eth1: int) -> Snapshot:
    return {
        ("Udp.InErrors", ()): (errors, COUNTER),
        ("interface.rx_errors", (("interface", "eth0"),)): (eth0, COUNTER),
        ("interface.rx_errors", (("interface", "eth1"),)): (eth1, COUNTER),
        ("conntrack.use", ()): (85, GAUGE),
    }


MEASURED = Measured(
    snapshot(10, 1, 5),
    snapshot(30, 2, 9),
    5.0,
    ({"filter INPUT -j DROP": 3}, {"filter INPUT -j DROP": 10}),
    {"packets": 12},
)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ('delta("Udp.InErrors") == 20', True),
        ('rate("Udp.InErrors") >= 4 and value("conntrack.use") > 80', True),
        ('rate("Udp.InErrors") > 4', False),
        ('delta("interface.rx_errors") == 5', True),
        ('delta("interface.rx_errors", interface="eth1") == 4', True),
        ('rule_delta("DROP") == 7', True),
        ('not rule_delta("DROP") == 7', False),
        ("1 < 2 < 3", True),
        ("-1 < 0 or 1 / 0 > 5", True),
        ("2 * 3 - 1 == 5", True),
        ("packets() == 12 and dropped() == 0", True),
    ],
)
def test_what_a_condition_means(text: str, met: bool) -> None:
    assert holds(parse(text, afterwards=True), MEASURED)[0] is met


def test_the_numbers_are_told_even_where_they_decided_nothing() -> None:
    met, numbers = holds(
        parse('delta("Udp.InErrors") > 0 or rate("interface.rx_errors", interface="eth0") > 0'), MEASURED
    )
    assert met
    assert numbers == {"delta(Udp.InErrors)": 20, "rate(interface.rx_errors, interface=eth0)": 0.2}


def test_a_counter_that_was_reset_counts_from_nothing() -> None:
    reset = Measured(snapshot(100, 0, 0), snapshot(7, 0, 0), 1.0)
    assert holds(parse('delta("Udp.InErrors") == 7'), reset)[0]


def test_a_counter_that_the_node_lacks_is_neither_yes_nor_no() -> None:
    with pytest.raises(Unknown, match=r"no counter Udp\.InError") as unknown:
        holds(parse('value("Udp.InError") > 0'), MEASURED)
    assert "Udp.InErrors" in unknown.value.hint
    with pytest.raises(Unknown, match="no firewall rule"):
        holds(parse('rule_delta("ACCEPT") > 0'), MEASURED)


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("", 1, "not an expression"),
        ("1 +", 4, "not an expression"),
        ('__import__("os") == 1', 1, "no function __import__"),
        ('vaule("x") > 1', 1, "did you mean value?"),
        ("1 < Udp", 5, 'value("Udp")'),
        ('value("x").real > 1', 1, "means nothing here"),
        ("9 ** 9 > 1", 1, "means nothing here"),
        ("[1] == [1]", 1, "means nothing here"),
        ('value("a", "b") > 1', 1, "takes 1 name"),
        ("value(3) > 1", 1, "in quotes"),
        ("(lambda: 1)() > 1", 1, "no function"),
        ("packets() > 1", 1, "no function packets here"),
        ("1 + 1", 1, "neither yes nor no"),
        ("True", 1, "means nothing here"),
        ("(" * 60 + "1" + ")" * 60 + " > " + "-" * 60 + "1", 125, "nested"),
        ("1 > " + "1" * 1000, 1, "longer than"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text: str, column: int, said: str) -> None:
    with pytest.raises(ConditionError) as refused:
        parse(text)
    assert said in str(refused.value)
    if said not in ("nested", "not an expression"):
        assert refused.value.column == column


@given(st.text(max_size=60))
def test_no_text_does_anything_but_be_refused_or_hold(text: str) -> None:
    try:
        condition = parse(text, afterwards=True)
    except ConditionError:
        return
    try:
        assert holds(condition, MEASURED)[0] in (True, False)
    except Unknown:
        pass


def test_a_mistake_in_a_runbook_has_its_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\nwhen:\n  condition: rate('A') > b\nexpect:\n  - lossless() == 1\n  - losless() == 1\n"
        "captures:\n  - collect: [iptables]\n"
    )
    with pytest.raises(DocumentError) as refused:
        load_runbook(path)
    first, second = refused.value.problems
    assert (first.line, first.path) == (3, "when.condition")
    assert "at character 13: b is no number" in first.message
    assert (second.line, second.path) == (6, "expect[1]")
    assert "did you mean lossless?" in second.message


def test_a_metric_whose_label_set_has_not_come_up_is_none_and_a_counter_is_unknown() -> None:
    from retina_runner.agent.counters import FAMILY

    before: Snapshot = {("drop_count", ()): (0, FAMILY)}
    after: Snapshot = {
        **before,
        ("drop_count", (("reason", "NO_SOCKET"),)): (7, COUNTER),
        ("Udp.InErrors", ()): (1, COUNTER),
    }
    measured = Measured(before, after, 1.0)
    condition = parse('delta("drop_count", reason="NO_SOCKET") == 7 and delta("drop_count", reason="TCP_RESET") == 0')
    assert condition.metrics == ("drop_count",)
    assert holds(condition, measured)[0]
    kernel = parse('delta("Udp.InErrors", interface="eth9") == 0')
    assert kernel.metrics == ()
    with pytest.raises(Unknown):
        holds(kernel, measured)
