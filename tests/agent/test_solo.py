"""A pod's first process with a plan of its own: no runner, one archive, said and put where it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.executors.kubernetes.standalone import without_patience
from retina_runner.planning import Place, build
from retina_runner.runbook_reading import parse_runbook
from retina_runner.verification import verify_archive
from tests.lab import Archive, Lab, eventually, sh

RUNBOOK = b"""
name: alone
duration: 2s
limits: {disk_free_percent: 0, disk_free_bytes: %s, node_bytes: 50MB}
captures:
  - collect:
      - command: {argv: [%s, "hello"], when: [before]}
"""


def start(
    tmp_path: Path, command: bytes, *shelves: dict[str, Any], space: bytes = b"0B", text: bytes = b"", netns: str = ""
) -> tuple[list[str], subprocess.Popen[bytes]]:
    """The agent's command, and the first process of a pod that doesn't exist."""
    bundle = agent_bundle()
    (tmp_path / bundle.name).write_bytes(bundle.content)
    runbook = parse_runbook(text or RUNBOOK % (space, command), "alone.yaml")
    (made,) = build(runbook, {"": [Place("node-1", "kubernetes")]}, "alone-20260102030405UTC", bundle)
    document = without_patience(made.document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    agent = [*(("ip", "netns", "exec", netns) if netns else ()), sys.executable, "-I", str(tmp_path / bundle.name)]
    argv = [*agent, "hold", str(tmp_path / "work"), "--limit", "60", "--plan", str(tmp_path / "plan.json")]
    for shelf in shelves:
        argv += ["--shelf", json.dumps(shelf)]
    return agent, subprocess.Popen(argv, stdout=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]]]:
    out, _ = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


def test_the_archive_is_said_and_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    shelf = {
        "base": str(tmp_path / "archives"),
        "path": "incidents",
        "keep_count": 3,
        "keep_s": None,
        "keep_bytes": None,
    }
    status, said = end(start(tmp_path, b"echo", shelf)[1])
    assert (status, [s["event"] for s in said]) == (0, ["archive", "kept"])
    kept = Path(said[1]["location"])
    assert kept.parent == tmp_path / "archives" / "incidents"
    assert kept.stat().st_size == said[0]["size"]
    assert verify_archive(kept).ok
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("bad", [{"path": "../out"}, {"base": "relative"}])
def test_an_archive_that_cannot_be_put_away_waits_to_be_fetched(tmp_path: Path, bad: dict[str, Any]) -> None:
    agent, process = start(tmp_path, b"echo", {"base": str(tmp_path / "archives"), "path": "incidents", **bad})
    assert process.stdout is not None
    said = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [s["event"] for s in said] == ["archive", "failed"]
    assert verify_archive(Path(said[0]["path"])).ok
    subprocess.run(
        [*agent, "remove", str(tmp_path / "work" / "solo")], check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    assert end(process)[0] == 1


def test_a_job_that_is_deleted_after_its_archive_was_there_ends_at_once(tmp_path: Path) -> None:
    agent, process = start(tmp_path, b"echo")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "archive"
    process.terminate()
    assert end(process) == (0, [])
    # In a pod the rest ends with its first process.
    subprocess.run(
        [*agent, "remove", str(tmp_path / "work" / "solo")], check=True, timeout=120, stdout=subprocess.DEVNULL
    )


def test_a_plan_that_fails_fails_the_job(tmp_path: Path) -> None:
    """Its disk has to keep more free than any disk has."""
    status, said = end(start(tmp_path, b"echo", space=b"900TB")[1])
    assert (status, [s["event"] for s in said]) == (1, ["failed"])
    assert said[0]["state"] == "failed"
    assert "free" in said[0]["why"]
    assert not (tmp_path / "work").exists()


RECORDER = b"""
name: alone
duration: 10m
limits: {disk_free_percent: 0, disk_free_bytes: 0B, node_bytes: 50MB}
trigger: {condition: 'delta("Udp.NoPorts") > 0', every: 200ms, before: 60s, after: 1s, count: 3, cooldown: 1s}
captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: "udp and not port 53", max_size: 10MB}}]}]
"""


def happen(lab: Lab, events: Path, number: int) -> None:
    """Datagrams to a closed port, until the agent has seen that event: it doesn't look in its cool-down."""

    def seen() -> bool:
        lab.send("10.93.0.2", 53, 1)
        return events.read_text().count('"event":"trigger"') >= number

    eventually(seen, f"event {number} is seen")


def line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What it says next."""
    assert process.stdout is not None
    said: dict[str, Any] = json.loads(process.stdout.readline())
    return said


@pytest.mark.root
def test_a_trigger_keeps_each_window_as_it_comes_and_the_rings_go_on(lab: Lab, tmp_path: Path) -> None:
    """Nobody is waited for, each window is on the shelf before the next event, and a deleted Job ends with its archive."""
    lab.receive("10.93.0.2", 7000)
    folder = tmp_path / "archives" / "incidents"
    shelf = {"base": str(folder.parent), "path": folder.name, "keep_count": None, "keep_s": None, "keep_bytes": None}
    _, process = start(tmp_path, b"", shelf, text=RECORDER, netns=lab.b)
    events = tmp_path / "work" / "solo" / "events.jsonl"
    try:
        eventually(lambda: events.exists() and '"event":"window"' in events.read_text(), "the window is open")
        for number in (1, 2):
            lab.send("10.93.0.2", 7000, 100 * number)
            happen(lab, events, number)
            recording, kept = line(process), line(process)
            assert (recording["event"], kept["event"]) == ("recording", "kept")
            archive = Archive(Path(kept["location"]))
            assert not verify_archive(archive.path).problems
            assert len(archive.pcap()) == (100 if number == 1 else 300)
            assert archive.manifest["trigger"]["alone"] == "there is no runner"
            assert archive.manifest["trigger"]["instant"] == recording["event_time"]
            eventually(lambda path=recording["path"]: not Path(path).exists(), "the node has let go of its copy")  # type: ignore[misc]
            eventually(lambda n=number: events.read_text().count('"event":"frozen"') == n, "it goes on")  # type: ignore[misc]
        process.terminate()
        status, said = end(process)
    finally:
        process.kill()
    assert (status, [s["event"] for s in said]) == (0, ["archive", "kept"])
    assert len(list(folder.iterdir())) == 3
    assert not (tmp_path / "work").exists()
    receivers = [str(r.pid) for r in lab._receivers]
    eventually(lambda: sh("ip", "netns", "pids", lab.b).split() == receivers, "nobody else is in the namespace")


@pytest.mark.root
def test_a_window_that_cannot_be_put_away_fails_the_job_and_waits_to_be_fetched(lab: Lab, tmp_path: Path) -> None:
    _, process = start(tmp_path, b"", {"base": "relative", "path": "x"}, text=RECORDER.replace(b"count: 3", b"count: 1"),
                       netns=lab.b)  # fmt: skip
    events = tmp_path / "work" / "solo" / "events.jsonl"
    try:
        eventually(lambda: events.exists() and '"event":"window"' in events.read_text(), "the window is open")
        happen(lab, events, 1)
        said = [line(process) for _ in range(4)]
        assert [s["event"] for s in said] == ["recording", "failed", "archive", "failed"]
        assert not verify_archive(Path(said[0]["path"])).problems
        process.terminate()
        assert end(process) == (1, [])
    finally:
        process.kill()
        sh("ip", "netns", "exec", lab.b, sys.executable, "-I", str(next(tmp_path.glob("agent-*.pyz"))), "remove",
           str(tmp_path / "work" / "solo"))  # fmt: skip
