"""Clocks that don't keep step in the window: what the node sees itself, and what only a second comparison finds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.errors import Exit
from retina_runner.schema import violations
from tests.fleet.fleet import Fleet
from tests.fleet.test_faults import begin, lasting
from tests.fleet.test_ssh import SENDER, gone

pytestmark = [pytest.mark.root, pytest.mark.fleet]

RATE = 0.02
"""A node that looks at its clocks each second takes that for turning, not for steps."""


@pytest.fixture
def clock(fleet: Fleet, _unharmed: None) -> Iterator[int]:
    """A node whose clock will be told what to say."""
    fleet.set_clock(3, 0.0)
    yield 3
    fleet.mend_clock(3)


def test_a_clock_that_creeps_away_is_found_after_the_window(fleet: Fleet, tmp_path: Path, clock: int) -> None:
    run = begin(fleet, tmp_path, "fail_on_loss: true\n" + lasting(10), [1, clock])
    run.wait_for("node-clock", id=f"n{clock}")
    begun = time.time()
    fleet.set_clock(clock, 0.0, RATE)
    run.wait_for("archive", id=f"n{clock}")
    crept_s = RATE * (time.time() - begun)
    assert run.end() == Exit.LOSSY, run.events
    told = {e["id"]: e for e in run.all("clock-drift")}
    crept, sound = told[f"n{clock}"], told["n1"]
    assert (crept["stepped"], sound["stepped"]) == (True, False)
    assert abs(crept["drift_s"] - crept_s) < crept["error_s"] + crept_s / 2
    assert abs(sound["drift_s"]) <= sound["error_s"] + 0.005
    summary = run.summary()
    assert not violations("run", summary)
    nodes = {n["id"]: n for n in summary["nodes"]}
    sound_archive = next(a for a in run.archives() if a.manifest["node"] == "n1")
    assert (sound_archive.lacking(), nodes[f"n{clock}"]["verdict"]) == ({}, "unknown")
    assert any("its clock was moved by +0." in r for r in nodes[f"n{clock}"]["reasons"])
    assert nodes[f"n{clock}"]["drift_s"] == crept["drift_s"]
    gone(fleet, 1, clock)


def test_a_step_that_the_node_sees_is_known_and_costs_no_packet(fleet: Fleet, tmp_path: Path, clock: int) -> None:
    run = begin(fleet, tmp_path, lasting(15), [1, clock])
    run.wait_for("window", id=f"n{clock}")
    fleet.run(clock, "/usr/bin/python3", "-c", SENDER)
    # The wrong time is told to tcpdump when it writes, not when a packet comes. These are written but for what it keeps of its
    # own, 4 KiB; then whatever the kernel kept of them is as well, and the agent has looked at its clocks since.
    while run.wait_for("progress", id=f"n{clock}")["packets"] < 150:
        pass
    time.sleep(2.5)
    fleet.set_clock(clock, 30.0)
    run.wait_for("clock", id=f"n{clock}")
    fleet.run(clock, "/usr/bin/python3", "-c", SENDER)
    assert run.end() == 0, run.events
    (drift,) = [e for e in run.all("clock-drift") if e["id"] == f"n{clock}"]
    assert drift["known_s"] == pytest.approx(30.0, abs=0.05)
    assert drift["drift_s"] == pytest.approx(30.0, abs=0.05 + drift["error_s"])
    assert not drift["stepped"]
    (archive,) = [a for a in run.archives() if a.manifest["node"] == f"n{clock}"]
    assert [s["step_s"] for s in archive.manifest["clock"]["steps"]] == [pytest.approx(30.0, abs=0.05)]
    assert len(archive.pcap()) == 400
    assert [a.lacking() for a in run.archives() if a.lacking()] == []
    assert {n["verdict"] for n in run.summary()["nodes"]} <= {"complete", "partial"}
    gone(fleet, 1, clock)
