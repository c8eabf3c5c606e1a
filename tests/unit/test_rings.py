"""A ring that would be cut off by the bytes that a plan may hold is refused with the runbook, at its place."""

from __future__ import annotations

import pytest

from retina_runner.errors import DocumentError
from retina_runner.rings import most_bytes
from retina_runner.runbook_reading import parse_runbook

BOOK = """name: ring
%s
captures:
  - collect:
      - iptables
      - tcpdump: {interfaces: [%s], ring: {files: %d, file_size: %s}}
"""
TRIGGER = "trigger: {condition: 'delta(\"softnet.dropped\") > 0'}"


def said(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_runbook(text.encode(), "r.yaml")
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("more", "interfaces", "files", "size", "fits"),
    [
        ("", "eth0", 9, "200MB", True),
        ("", "eth0", 20, "200MB", False),
        ("", "eth0, eth1", 9, "200MB", False),
        ("limits: {node_bytes: 4GB}", "eth0, eth1", 9, "200MB", True),
        (TRIGGER, "eth0", 6, "100MB", True),
        (TRIGGER, "eth0", 9, "100MB", False),
    ],
)
def test_a_ring_has_to_fit(more: str, interfaces: str, files: int, size: str, fits: bool) -> None:
    text = BOOK % (more, interfaces, files, size)
    if fits:
        parse_runbook(text.encode(), "r.yaml")
        return
    problem = said(text)
    assert problem.startswith("r.yaml:6:"), problem
    assert "captures[0].collect[1].tcpdump.ring: the ring may hold" in problem
    assert "more than limits.node_bytes" in problem
    assert "limits: {node_bytes: " in problem


def test_what_the_message_says_is_what_helps() -> None:
    problem = said(BOOK % (TRIGGER, "eth0", 9, "100MB"))
    advice = problem.partition("or limits: {node_bytes: ")[2].partition("}")[0]
    parse_runbook((BOOK % (f"{TRIGGER}\nlimits: {{node_bytes: {advice}}}", "eth0", 9, "100MB")).encode(), "r.yaml")


def test_the_rings_of_a_capture_are_added_up_and_told_once() -> None:
    text = """name: rings
captures:
  - collect: [{tcpdump: {ring: {files: 8, file_size: 100MB}}}, {tcpdump: {ring: {files: 14, file_size: 100MB}}}]
"""
    assert "collect[1].tcpdump.ring: the rings of this capture may hold 2400MB on a node" in said(text)


def test_a_flight_recorders_own_ring_counts_though_the_runbook_does_not_name_it() -> None:
    text = f"name: r\n{TRIGGER}\n" + "captures: [{collect: [{tcpdump: {max_size: 1GB}}]}]"
    assert "r.yaml:3:" in said(text)
    book = parse_runbook(text.replace("1GB", "200MB").encode(), "r.yaml")
    assert most_bytes(book.captures[0].collect[0].options, book.trigger) == 3 * 11 * 20_000_000
