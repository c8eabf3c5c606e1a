"""The flight recorder over a fleet: an event on one node keeps the same window of every node's ring, whatever its clock says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner.agent.context import COMPLETE
from retina_runner.schema import violations
from retina_runner.verification import verify_archive
from tests.fleet.fleet import Fleet
from tests.fleet.test_faults import begin, kill, resume, skewed  # noqa: F401 - a fixture
from tests.fleet.test_ssh import gone
from tests.lab import Archive, Run, eventually

pytestmark = [pytest.mark.root, pytest.mark.fleet]

RUNBOOK = """
name: recorder
duration: 10m
limits: {disk_free_percent: 1, disk_free_bytes: 10MB}
trigger: {condition: 'delta("Udp.NoPorts") > 0', every: 200ms, before: 2s, after: 1s, count: 1, cooldown: 1s%s}
captures:
  - nodes: {hosts: nodes}
    collect: [{tcpdump: {interfaces: [eth0], filter: udp port 7000}}]
"""
EVERY_S = 0.005
BROADCAST = f"""
import itertools, socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for number in itertools.count():
    sender.sendto(number.to_bytes(4, "big"), ("10.94.255.255", 7000))
    if not number:
        print("sending", flush=True)
    time.sleep({EVERY_S})
"""
LISTEN = "import socket, time; s = socket.socket(2, 2); s.bind(('', 7000)); print('bound', flush=True); time.sleep(600)"
PAYLOAD_AT = 14 + 20 + 8


class Numbered:
    """Numbered datagrams from n1 to every node, until the end; a socket takes them where they would be an event themselves."""

    def __init__(self, fleet: Fleet, listeners: list[int]):
        self._fleet, self._listeners = fleet, listeners
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> None:
        for number in self._listeners:
            self._start(number, LISTEN)
        self._start(1, BROADCAST)

    def _start(self, number: int, script: str) -> None:
        pid = str(self._fleet.first_process(number))
        started = subprocess.Popen(
            ["nsenter", "-t", pid, "-n", sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        self._processes.append(started)
        assert started.stdout is not None
        assert started.stdout.readline()

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def event_on(fleet: Fleet, number: int) -> None:
    """A datagram to a closed port of that node, from the node itself."""
    script = "import socket; s = socket.socket(2, 2); s.sendto(b'x', ('127.0.0.1', 9))"
    fleet.run(number, "/usr/bin/python3", "-c", script)


def recordings(run: Run) -> dict[str, Archive]:
    return {a.manifest["node"]: a for a in run.archives() if "trigger" in a.manifest}


def reference(archive: Archive) -> dict[int, float]:
    """Each datagram's number, and when it was seen on the runner's clock."""
    offset_s = archive.manifest["clock"]["offset_s"]
    return {int.from_bytes(p[PAYLOAD_AT : PAYLOAD_AT + 4], "big"): at / 1e9 - offset_s for at, p in archive.pcap()}


def test_three_nodes_keep_the_same_packets_of_an_event_on_one(fleet: Fleet, tmp_path: Path, skewed: int) -> None:  # noqa: F811
    """One of them is 90 s off. Datagrams that all three saw are in all three archives, but for those so near to the window's
    ends that the clocks aren't known well enough."""
    nodes = [1, skewed, 3]
    run = begin(fleet, tmp_path, RUNBOOK % "", nodes)
    with Numbered(fleet, [skewed, 3]):
        # Rings go back to when each node's tcpdump began to listen: from two seconds after on, as far as the window does.
        for node in ("n1", f"n{skewed}", "n3"):
            while run.wait_for("progress", id=node)["elapsed_s"] < 2.5:
                pass
        event_on(fleet, 3)
        freeze = run.wait_for("freeze")
        assert freeze["at"] == "n3"
        assert run.end() == 0, run.events
    found = recordings(run)
    assert set(found) == {"n1", "n2", "n3"}
    assert {a.manifest["trigger"]["stamp"] for a in found.values()} == {freeze["stamp"]}
    assert {(a.manifest["trigger"]["node"], a.manifest["trigger"]["alone"]) for a in found.values()} == {("n3", "")}
    assert 89.0 < found["n2"].manifest["clock"]["offset_s"] < 91.0
    (window,) = {(a.manifest["window"]["t0"], a.manifest["window"]["end"]) for a in found.values()}
    error_s = sum(a.manifest["clock"]["offset_error_s"] for a in found.values())
    seen = {node: reference(archive) for node, archive in found.items()}
    every = set().union(*seen.values())
    assert len(every) > 50, "three seconds of a datagram every 5 ms, however busy the machine"
    for archive in found.values():
        assert not verify_archive(archive.path).problems
        assert archive.manifest["window"]["duration_s"] == pytest.approx(3.0)
    times: dict[int, float] = {}
    for numbers in seen.values():
        times.update(numbers)
    low, high = min(times.values()), max(times.values())
    assert high - low <= 3.0 + 2 * error_s
    for node, numbers in seen.items():
        missing = [n for n in every if n not in numbers]
        near = error_s + 2 * EVERY_S + 0.5  # and half a second that a busy machine may take from one veth to the next
        assert all(times[n] < low + near or times[n] > high - near for n in missing), (node, missing, window)
        assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1)), f"{node}: none is missing in between"
    assert not [v for e in run.events for v in violations("event", e)]
    gone(fleet, *nodes)


def test_a_node_that_is_away_for_the_event_is_told_when_it_is_back(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, RUNBOOK % "", [1, 3])
    with Numbered(fleet, [3]):
        for _ in range(2):
            run.wait_for("window")
        fleet.freeze(1)
        try:
            event_on(fleet, 3)
            run.wait_for("verified", id=f"n3#{run.wait_for('freeze')['stamp']}")
        finally:
            fleet.thaw(1)
        assert run.end() == 0, run.events
    found = recordings(run)
    assert set(found) == {"n1", "n3"}
    assert len(found["n1"].pcap()) > 50
    assert found["n1"].manifest["trigger"]["alone"] == ""
    gone(fleet, 1, 3)


@pytest.fixture
def killed(fleet: Fleet, tmp_path: Path) -> Run:
    run = begin(fleet, tmp_path, RUNBOOK % ", patience: 1s", [1, 3])
    for _ in range(2):
        run.wait_for("window")
    kill(run)
    return run


def test_a_node_whose_runner_is_dead_freezes_its_own_ring_and_says_so(
    fleet: Fleet, tmp_path: Path, killed: Run
) -> None:
    """Whoever adopts the run has the other's ring frozen as well, which goes back far enough if it isn't too late."""
    with Numbered(fleet, [3]):
        event_on(fleet, 3)
        journals = "cat /var/tmp/retina-run-root/*/events.jsonl"
        eventually(lambda: '"event":"frozen"' in fleet.run(3, "sh", "-c", journals), "n3 has frozen its ring")
    status, events = resume(fleet, killed)
    assert status == 0, events
    found = recordings(killed)
    assert set(found) == {"n1", "n3"}
    assert "the runner didn't answer" in found["n3"].manifest["trigger"]["alone"]
    assert any("no other node's ring" in w for w in found["n3"].manifest["warnings"])
    assert found["n1"].manifest["trigger"]["stamp"] == found["n3"].manifest["trigger"]["stamp"]
    assert found["n3"].verdict(".pcap")["verdict"] in (COMPLETE, "partial")
    assert found["n3"].pcap()
    gone(fleet, 1, 3)
