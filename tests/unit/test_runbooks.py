"""Every shipped runbook is valid, says its schema to editors, and explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from retina_runner import filter_compiling, filters, planning
from retina_runner.agent import process
from retina_runner.runbook_reading import load_runbook

RUNBOOKS = sorted((Path(__file__).parents[2] / "runbooks").glob("*.yaml"))
EXPECTED = {
    "quickstart",
    "packet-loss",
    "dns-latency",
    "tcp-timeouts",
    "conntrack-full",
    "mtu-black-hole",
    "iptables-counters",
    "long-ring",
    "flight-recorder",
    "shared-evidence",
    "kubernetes-service",
    "inside-pods",
}


def test_they_are_all_there() -> None:
    assert {p.stem for p in RUNBOOKS} >= EXPECTED


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda p: p.stem)
def test_valid_and_explained(path: Path) -> None:
    runbook = load_runbook(path)
    assert runbook.name == path.stem
    assert runbook.summary
    assert planning.compile_filters(runbook, process.run) == ()
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../schemas/runbook.json"
    assert lines[1].startswith("# ")


def test_the_filter_of_tcp_timeouts_means_what_it_says() -> None:
    entry = load_runbook(Path(RUNBOOKS[0].parent / "tcp-timeouts.yaml"), ["port=80"]).captures[0].collect[0]
    assert entry.options["filter"] == "tcp port 80 and tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0"
    assert filter_compiling.compile_check(filters.build(entry.options["filter"]), run=process.run) is None
