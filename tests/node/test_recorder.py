"""The flight recorder on one node: what a ring held around an event is an archive, to the packet, and the ring goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from retina_runner import schema
from retina_runner.verification import verify_archive
from tests.lab import Archive, Lab, Run, eventually

pytestmark = pytest.mark.root

RUNBOOK = """
name: recorder
duration: %(duration)s
trigger: {condition: '%(condition)s', every: 200ms, before: %(before)s, after: %(after)s, count: %(count)s, cooldown: 1s, %(more)s}
captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: "udp and not port 53", %(ring)s}}, iptables]}]
"""
GIVEN = {"duration": "10m", "condition": 'delta("Udp.NoPorts") > 0', "before": "60s", "after": "1s", "count": 1, "more": "", "ring": ""}
PAYLOAD_AT = 14 + 20 + 8


def runbook(**given: object) -> str:
    return RUNBOOK % {**GIVEN, **given}


def numbers(found: list[tuple[int, bytes]]) -> list[int]:
    """The numbers that tests/lab.py's sender put into its datagrams."""
    return [int.from_bytes(packet[PAYLOAD_AT : PAYLOAD_AT + 4], "big") for _, packet in found]


def recordings(run: Run) -> list[Archive]:
    return [a for a in run.archives() if "trigger" in a.manifest]


def test_what_the_ring_held_around_an_event_is_archived_and_the_run_ends(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(after="2s"), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 300)
    lab.send("10.93.0.2", 53, 1)  # a closed port
    run.wait_for("trigger")
    lab.send("10.93.0.2", 7000, 200, source=40001)
    run.wait_for("frozen")
    assert run.end() == 0, run.events
    (freeze,) = run.all("freeze")
    (archive,) = recordings(run)
    assert not verify_archive(archive.path).problems
    assert archive.path.name.endswith(f"-event-{freeze['stamp']}UTC.tar.gz")
    assert numbers(archive.pcap()) == [*range(300), *range(200)]
    told = archive.manifest["trigger"]
    assert (told["condition"], told["values"], told["alone"]) == ('delta("Udp.NoPorts") > 0', {"delta(Udp.NoPorts)": 1}, "")
    assert (told["instant"], told["before_s"], told["after_s"]) == (freeze["instant"], 60.0, 2.0)
    # The ring is younger than the minute that was asked for, and the verdict says so.
    assert archive.manifest["verdict"] == "partial"
    assert "wasn't listening yet" in archive.verdict(".pcap")["reasons"][0]
    moved = {c["name"]: c["delta"] for c in archive.json("state/delta/trigger.json")["counters"]}
    assert moved["Udp.NoPorts"] == 1
    (other,) = [a for a in run.archives() if "trigger" not in a.manifest]
    assert other.manifest["verdict"] == "complete", "the run's own archive: it ended as it should"
    assert not other.pcaps()
    assert "state/delta/iptables.json" in other.members
    rows = {n["id"]: n for n in run.summary()["nodes"]}
    (row,) = [n for i, n in rows.items() if "#" in i]
    assert (row["state"], row["packets"], row["trigger"]["stamp"]) == ("collected", 500, freeze["stamp"])
    assert not run.work.exists()


def test_events_keep_to_their_schema(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook(), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 53, 1)
    assert run.end() == 0, run.events
    for line in (run.directory / "events.jsonl").read_text().splitlines():
        assert schema.violations("event", json.loads(line)) == [], line
    assert schema.violations("run", run.summary()) == []
    for plan in (run.directory / "plans").iterdir():
        assert schema.violations("plan", json.loads(plan.read_text())) == []
