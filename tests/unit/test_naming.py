"""Names: read back exactly, distinct for distinct nodes, in the order of time, and safe to unpack side by side."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from retina_runner import naming
from retina_runner.naming import archive_base, capture_prefix, parse_archive_name, run_id, safe_node

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
PREFIX = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True)
"""The runbook schema's own pattern of names."""
NODE = st.one_of(
    st.text(),
    st.text(alphabet="ab._-/: 01", max_size=12),
    st.from_regex(r"[a-z]_?[a-z]?-[0-9a-f]{6}", fullmatch=True),
    st.text(alphabet="a-", min_size=70, max_size=90),
    st.characters(categories=["Cs"]).map(lambda c: f"node{c}"),
)
T0 = st.floats(min_value=-62135596800, max_value=253402300799, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("node1", "node1"),
        ("ip-10-0-0-1.eu-west-1.compute.internal", "ip-10-0-0-1.eu-west-1.compute.internal"),
        ("aks-nodepool1-41844487-vmss000000", "aks-nodepool1-41844487-vmss000000"),
        ("node-000001", "node-000001"),
        ("web_1", "web_1"),
        ("_", "_"),
        ("a" * 80, "a" * 80),
        ("", "_-e3b0c4"),
        ("a/b", "a_b-c14cdd"),
        ("../etc", "_._etc-f7f912"),
        ("-w", "_w-65da4e"),
        ("a_b-0c1d2e", "a_b-0c1d2e-e0947d"),
        ("a" * 81, "a" * 72 + "_-8c4828"),
    ],
)
def test_safe_node(name: str, safe: str) -> None:
    assert safe_node(name) == safe


@given(NODE)
@example("a\n")
@example("\u0661")
@settings(max_examples=1000)
def test_a_node_is_safe_in_a_file_name(name: str) -> None:
    assert SAFE.fullmatch(safe_node(name))
    assert safe_node(name) == safe_node(name)


@given(NODE, NODE)
@settings(max_examples=1000)
def test_two_nodes_never_share_a_name(one: str, other: str) -> None:
    assume(one != other)
    assert safe_node(one) != safe_node(other)


@given(NODE)
@settings(max_examples=1000)
def test_no_node_can_pose_as_another(name: str) -> None:
    assume(safe_node(name) != name)
    assert safe_node(safe_node(name)) != safe_node(name)


@given(PREFIX, NODE, T0)
@settings(max_examples=1000)
def test_an_archive_name_is_read_back(prefix: str, node: str, t0: float) -> None:
    base = archive_base(prefix, node, t0)
    expected = (prefix, safe_node(node), float(t0 // 1))
    assert parse_archive_name(base, [prefix]) == expected
    assert parse_archive_name(f"{base}.tar.gz", [prefix, f"{prefix}x", "other"]) == expected


@given(PREFIX, NODE, NODE, T0, T0)
def test_archives_unpack_side_by_side(prefix: str, one: str, other: str, t0: float, t1: float) -> None:
    first, second = archive_base(prefix, one, t0), archive_base(prefix, other, t1)
    assert (first == second) == (one == other and t0 // 1 == t1 // 1)
    for base in (first, second):
        assert "/" not in base
        assert base.isascii()
        assert base[0] not in ".-"


@given(PREFIX, PREFIX, NODE, T0)
def test_the_longest_names_fit_a_directory_entry(runbook: str, capture: str, node: str, t0: float) -> None:
    base = archive_base(capture_prefix(runbook.ljust(63, "x"), capture.ljust(63, "y"), True), node.ljust(80, "z"), t0)
    assert len(f"{base}-{'i' * 15}-00001.pcap".encode()) <= 255
    assert len(f"{base}.tar.gz.part".encode()) <= 255


@given(PREFIX, NODE, T0, T0)
def test_names_sort_as_times_do(prefix: str, node: str, t0: float, t1: float) -> None:
    earlier, later = sorted((t0, t1))
    assert archive_base(prefix, node, earlier) <= archive_base(prefix, node, later)
    assert run_id(prefix, earlier) <= run_id(prefix, later)


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kathmandu"])
def test_the_time_is_utc_wherever_this_runs(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", zone)
        time.tzset()
        try:
            assert archive_base("q", "node1", 1795403820.999) == "q-node1-20261123031700UTC"
            assert run_id("q", 1795403820) == "q-20261123031700UTC"
            assert parse_archive_name("q-node1-20261123031700UTC", ["q"]) == ("q", "node1", 1795403820.0)
        finally:
            changed.undo()
            time.tzset()


def test_retinas_own_example_is_read() -> None:
    name = "retina-capture-aks-nodepool1-41844487-vmss000000-20230320013600UTC.tar.gz"
    assert parse_archive_name(name, ["retina-capture"]) == (
        "retina-capture",
        "aks-nodepool1-41844487-vmss000000",
        1679276160.0,
    )


@pytest.mark.parametrize(
    ("name", "prefixes", "said"),
    [
        ("q-node1", ["q"], "doesn't end in"),
        ("q-node1-20261123031700", ["q"], "doesn't end in"),
        ("q-node1-20261123031700UTC\n", ["q"], "doesn't end in"),
        ("q-node1-20261123031700UTC.zip", ["q"], "doesn't end in"),
        ("q-node1-\u0662\u0660261123031700UTC", ["q"], "doesn't end in"),
        ("q-node1-20261323031700UTC", ["q"], "is not a time"),
        ("q-node1-20260230031700UTC", ["q"], "is not a time"),
        ("q-node1-20261123246060UTC", ["q"], "is not a time"),
        ("q-node1-00000101000000UTC", ["q"], "is not a time"),
        ("q-node1-20261123031700UTC", [], "none of the known names"),
        ("q-node1-20261123031700UTC", ["r", "q-node", "q-node1"], "none of the known names"),
        ("q-20261123031700UTC", ["q"], "none of the known names"),
        ("q--20261123031700UTC", ["q"], "none of the known names"),
        ("q--node1-20261123031700UTC", ["q"], "none of the known names"),
        ("q-a/b-20261123031700UTC", ["q"], "none of the known names"),
        ("../q-node1-20261123031700UTC", ["../q"], "none of the known names"),
        (f"q-{'a' * 81}-20261123031700UTC", ["q"], "none of the known names"),
        ("q-a-b-20261123031700UTC", ["q", "q-a"], "can be of q or of q-a"),
    ],
)
def test_what_is_no_archive_name_is_refused(name: str, prefixes: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_archive_name(name, prefixes)


@pytest.mark.parametrize("prefix", ["", "-q", ".q", "a/b", "a b", "q\n", "\u00e4"])
def test_an_unsafe_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="can't begin a file name"):
        archive_base(prefix, "node1", 0.0)
    with pytest.raises(ValueError, match="can't begin a file name"):
        run_id(prefix, 0.0)


@pytest.mark.parametrize("when", [float("nan"), float("inf"), 1e30, 253402300800.0, -62135596801.0])
def test_no_time_is_refused(when: float) -> None:
    with pytest.raises(ValueError, match="is not a"):
        naming.stamp(when)


def test_a_prefix_names_the_capture_where_there_are_several() -> None:
    assert capture_prefix("checkout", "clients", several=True) == "checkout-clients"
    assert capture_prefix("checkout", "clients", several=False) == "checkout"
    assert capture_prefix("checkout", "", several=False) == "checkout"
