"""A hundred nodes, on a runner whose sessions at a time are a quarter of that: one T0, every archive, nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.fleet.fleet import Fleet
from tests.fleet.test_faults import begin
from tests.lab import eventually

NODES = 100
RUNBOOK = """
name: hundred
duration: 5s
limits: {ready_timeout: 5m, disk_free_bytes: 10MB, disk_free_percent: 0}
captures:
  - nodes: {hosts: nodes}
    collect:
      - tcpdump: {filter: "udp port 7000", interfaces: [eth0]}
"""


@pytest.fixture(scope="module")
def hundred() -> Iterator[Fleet]:
    with Fleet(NODES) as made:
        yield made


@pytest.mark.fleet100
@pytest.mark.timeout(1200)
def test_a_hundred_nodes_at_one_instant(hundred: Fleet, tmp_path: Path) -> None:
    run = begin(hundred, tmp_path, RUNBOOK, list(hundred.every_node()), "--forks", "25")
    run.wait_s = 600.0
    assert run.end() == 0, {(e["what"], e["why"]) for e in run.events if e["event"] == "node-failed"}
    archives = run.archives()
    assert {a.manifest["node"] for a in archives} == {f"n{n}" for n in hundred.every_node()}
    assert len({a.manifest["window"]["t0"] for a in archives}) == 1
    assert all(not verify_archive(a.path).problems for a in archives)
    skew = run.summary()["skew"]
    assert (skew["nodes"], skew["error_s"] > 0) == (NODES, True)
    eventually(lambda: not hundred.all_left(), "nothing is left on the nodes", 180.0)
