"""The flight recorder on one node: what a ring held around an event is an archive, to the packet, and the ring goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
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
GIVEN = {
    "duration": "10m",
    "condition": 'delta("Udp.NoPorts") > 0',
    "before": "60s",
    "after": "1s",
    "count": 1,
    "more": "",
    "ring": "",
}
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
    run = Run(runbook(after="7s"), tmp_path, netns=lab.b)
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
    assert (told["condition"], told["values"], told["alone"]) == (
        'delta("Udp.NoPorts") > 0',
        {"delta(Udp.NoPorts)": 1},
        "",
    )
    assert (told["instant"], told["before_s"], told["after_s"]) == (freeze["instant"], 60.0, 7.0)
    # The ring is younger than the minute that was asked for, and the verdict says so.
    assert archive.manifest["verdict"] == "partial"
    assert "wasn't listening yet" in archive.verdict(".pcap")["reasons"][0]
    moved = {c["name"]: c["delta"] for c in archive.json("state/delta/trigger.json")["counters"]}
    assert moved["Udp.NoPorts"] == 1
    (other,) = [a for a in run.archives() if "trigger" not in a.manifest]
    assert other.lacking() == {}, "the run's own archive: it ended as it should"
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


def test_it_goes_on_to_the_next_event(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(count=2, before="5m"), tmp_path, netns=lab.b)
    run.wait_for("window")
    over = threading.Event()

    def again_and_again() -> None:
        while not over.wait(0.3):
            lab.send("10.93.0.2", 53, 1)

    lab.send("10.93.0.2", 7000, 100)
    events = threading.Thread(target=again_and_again)
    events.start()
    try:
        first = run.wait_for("freeze", number=1)
        second = run.wait_for("freeze", number=2)
        assert run.end() == 0, run.events
    finally:
        over.set()
        events.join()
    assert first["stamp"] < second["stamp"]
    assert [a.manifest["trigger"]["stamp"] for a in recordings(run)] == [first["stamp"], second["stamp"]]
    assert [len(a.pcap()) for a in recordings(run)] == [100, 100], (
        "five minutes before the second there was still a ring"
    )
    assert len(run.all("trigger")) == 2, "none in the cool-down"


def test_a_ring_too_small_for_its_window_says_how_much_is_missing(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(ring="ring: {files: 2, file_size: 1MB}, snaplen: 2kB"), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 8000, size=1000)
    ring = run.work / run.directory.name
    folder = next(run.work.glob(f"{ring.name}*")) / "raw" / "tcpdump"
    eventually(
        lambda: not (folder / "tap.pcap").exists() and not (folder / "tap-1.pcap").exists(), "the ring went round"
    )
    lab.send("10.93.0.2", 53, 1)
    assert run.end() == 0, run.events
    (archive,) = recordings(run)
    found = numbers(archive.pcap())
    assert found == list(range(found[0], 8000)), "the newest, none missing between them"
    assert found[0] > 0
    verdict = archive.verdict(".pcap")
    assert verdict["verdict"] == "partial"
    assert "s are missing: the ring is too small" in verdict["reasons"][0]


def test_ctrl_c_after_an_event_keeps_what_there_is_of_its_window(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(after="10m"), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 50)
    lab.send("10.93.0.2", 53, 1)
    run.wait_for("freeze")
    run.signal(signal.SIGINT)
    assert run.end() == 130, run.events
    (archive,) = recordings(run)
    assert numbers(archive.pcap()) == list(range(50))
    assert archive.manifest["window"]["stopped_early"] == "stopped by request"
    assert any("cut short" in r for r in archive.verdict(".pcap")["reasons"])
    assert not verify_archive(archive.path).problems
    assert not run.work.exists()


def test_without_an_event_there_is_the_run_s_own_archive_only(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook(duration="2s", condition='rule_delta("--dport 9") > 0'), tmp_path, netns=lab.b)
    assert run.end() == 0, run.events
    (warning,) = run.all("warning")
    assert warning["why"].startswith("trigger: no firewall rule here contains '--dport 9'"), "once, and no failure"
    assert not recordings(run)
    assert run.archive().lacking() == {}


def test_a_worker_that_is_killed_loses_no_recording(lab: Lab, tmp_path: Path) -> None:
    """Not even the ring as it was: its supervisor packs it, uncut."""
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(count=5), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 70)
    lab.send("10.93.0.2", 53, 1)
    run.wait_for("verified")
    lab.send("10.93.0.2", 7000, 30, source=40001)
    (worker,) = {e["pid"] for e in run.all("started")}
    os.kill(worker, signal.SIGKILL)
    assert run.end() == 3, run.events
    (archive,) = recordings(run)
    assert numbers(archive.pcap()) == list(range(70))
    (rest,) = [a for a in run.archives() if "trigger" not in a.manifest]
    assert len(rest.pcap()) >= 70, "what tcpdump had written by then: every packet at once"


def test_a_trigger_that_is_none_is_refused_with_its_place(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook(condition="delta(Udp.NoPorts) > 0", more="after_s: 3"), tmp_path, netns=lab.b)
    assert run.end() == 2
    said = run.stderr
    assert "trigger.condition" in said
    assert "delta takes names in quotes" in said
    assert "after_s" in said


def test_what_the_runner_brought_along_is_not_among_a_recording_s_options(lab: Lab, tmp_path: Path) -> None:
    """The first run compiles, the second is brought the programs: their bytes are no wish of the runbook's."""
    for name in ("compiles", "is brought them"):
        folder = tmp_path / name
        folder.mkdir()
        run = Run(runbook().replace("iptables]", "{ebpf: {plugins: [packetforward]}}]"), folder, netns=lab.b)
        run.wait_for("window")
        lab.send("10.93.0.2", 53, 1)
        run.wait_for("frozen")
        assert run.end() == 0, run.events
        (recording,) = recordings(run)
        assert recording.manifest["collectors"]["ebpf"]["options"]["plugins"] == ["packetforward"]
        assert "bytecode" not in recording.manifest["collectors"]["ebpf"]["options"]
    assert list((tmp_path / "cache/retina-run/bytecode").glob("*.json")), "the second run had something to bring"
