"""A node begins at T0. Other tests take it at its word when it was too busy to, so this one looks at whether it ever does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Lab, Run

pytestmark = pytest.mark.root

RUNBOOK = """
name: begin
duration: 1s
captures: [{collect: [{tcpdump: {interfaces: [eth0]}}, iptables, network-state, {ebpf: {plugins: [linuxutil], netns: [%s]}}]}]
"""
ATTEMPTS = 10


def test_a_node_begins_at_t0(lab: Lab, tmp_path: Path) -> None:
    """Of ten windows at least one, however busy the machine; most often it is the first."""
    said = []
    for attempt in range(ATTEMPTS):
        (tmp_path / str(attempt)).mkdir()
        run = Run(RUNBOOK % lab.b, tmp_path / str(attempt), netns=lab.b)
        assert run.end() == 0, run.events
        manifest = run.archive().manifest
        if manifest["verdict"] == "complete":
            (window,) = run.all("window")
            assert window["late_s"] == 0.0
            return
        said.append([v["reasons"] for v in manifest["verdicts"] if v["reasons"]])
    pytest.fail(f"each of {ATTEMPTS} windows began late: {said}")
