"""What goes wrong between a runner and its nodes, one test each: it costs what it must, is told, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.verification import verify_archive
from tests.fleet.fleet import Fleet
from tests.fleet.test_ssh import RUNBOOK, SENDER, gone, retina_run
from tests.lab import Archive, Run, eventually, sh

pytestmark = [pytest.mark.root, pytest.mark.fleet]

LARGE = """
name: large
duration: 2s
limits: {disk_free_percent: 0, disk_free_bytes: 10MB}
captures:
  - nodes: {hosts: nodes}
    collect:
      - command: {argv: [head, -c, "8000000", /dev/urandom], output_limit: 10MB}
"""


def lasting(seconds: int, limits: str = "") -> str:
    """The runbook with a window that long."""
    return RUNBOOK.replace("duration: 4s", f"duration: {seconds}s").replace("10MB}", f"10MB{limits}}}")


def begin(fleet: Fleet, tmp_path: Path, runbook: str, numbers: list[int], *words: str, **variables: str) -> Run:
    inventory = fleet.inventory(tmp_path / "hosts.yaml", numbers, **variables)
    return Run(runbook, tmp_path, "-i", str(inventory), *words, netns=fleet.netns)


def state(run: Run) -> dict[str, str]:
    return {n["id"]: n["state"] for n in run.summary()["nodes"]}


# -- nodes that can't -------------------------------------------------------------------------------------------------


def test_a_dead_node_fails_alone(fleet: Fleet, tmp_path: Path) -> None:
    fleet.cut(3)
    try:
        run = begin(fleet, tmp_path, RUNBOOK, list(fleet.every_node()), ansible_ssh_timeout="4")
        assert run.end() == 3, run.events
    finally:
        fleet.heal(3)
    (failed,) = run.all("node-failed")
    assert (failed["id"], "unreachable" in failed["why"]) == ("n3", True)
    assert state(run) == {f"n{n}": "failed" if n == 3 else "collected" for n in fleet.every_node()}


def test_a_full_disk_on_a_node_is_that_node_s_trouble(fleet: Fleet, tmp_path: Path) -> None:
    fleet.run(2, "sh", "-c", "head -c 400000000 /dev/zero > /var/tmp/filler || true")
    try:
        run = begin(fleet, tmp_path, RUNBOOK, [1, 2])
        assert run.end() == 3, run.events
        (failed,) = run.all("node-failed")
        assert (failed["id"], failed["what"]) == ("n2", "disk space"), failed
        eventually(lambda: fleet.left(2) == ["/var/tmp/filler"], "nothing of the run is left on the node")
    finally:
        fleet.run(2, "rm", "-f", "/var/tmp/filler")
    gone(fleet, 1)


def test_a_node_without_tcpdump_gives_the_rest_and_says_what_is_missing(fleet: Fleet, tmp_path: Path) -> None:
    place = os.path.realpath(fleet.run(2, "which", "tcpdump").strip())
    fleet.run(2, "mv", place, place + ".away")
    try:
        run = begin(fleet, tmp_path, RUNBOOK, [1, 2])
        assert run.end() == 0, run.events
    finally:
        fleet.run(2, "mv", place + ".away", place)
    (archive,) = [a for a in run.archives() if a.manifest["node"] == "n2"]
    assert [s["collector"] for s in archive.manifest["skipped"]][:1] == ["tcpdump"]
    gone(fleet, 1, 2)


def test_a_node_that_hangs_after_connecting_does_not_hold_the_others(fleet: Fleet, tmp_path: Path) -> None:
    """sshd stops where it is: the connection stays up and nothing answers any more."""
    run = begin(
        fleet, tmp_path, lasting(4, ", ready_timeout: 8s, reconnect_timeout: 1s"), [1, 2, 3], ansible_ssh_timeout="2"
    )
    run.wait_for("node-clock", id="n2")
    fleet.freeze(2)
    try:
        assert run.end() == 3, run.events
    finally:
        fleet.thaw(2)
    assert state(run) == {"n1": "collected", "n2": "failed", "n3": "collected"}
    (failed,) = run.all("node-failed")
    assert failed["remains"]
    cleaned = retina_run(fleet, "cleanup", str(run.directory))
    assert cleaned.returncode == 0, (cleaned.stdout, cleaned.stderr, fleet.left(2), run.events[-12:])
    gone(fleet, 1, 2, 3)


def test_a_node_that_stands_still_in_the_window_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, RUNBOOK, [1, 2])
    run.wait_for("window", id="n2")
    fleet.freeze(2)
    try:
        run.wait_for("end", id="n1")
    finally:
        fleet.thaw(2)
    assert run.end() == 0, run.events
    assert state(run) == {"n1": "collected", "n2": "collected"}
    gone(fleet, 1, 2)


def test_too_many_failed_nodes_hold_the_others_back(fleet: Fleet, tmp_path: Path) -> None:
    numbers = [1, 2, 3, 4]
    inventory = fleet.inventory(tmp_path / "hosts.yaml", numbers)
    text = inventory.read_text()
    for number in (1, 2):
        text = text.replace(
            f"ansible_host: {fleet.address(number)}}}", f"ansible_host: {fleet.address(number)}, ansible_port: 23}}"
        )
    inventory.write_text(text)
    run = Run(RUNBOOK, tmp_path, "-i", str(inventory), "--max-fail", "1", netns=fleet.netns)
    assert run.end() == 2, run.events
    assert [(e["failed"], e["max_fail"]) for e in run.all("held-back")] == [(2, 1)]
    assert {e["id"]: e["what"] for e in run.all("node-failed") if e["id"] in ("n3", "n4")} == {
        "n3": "max_fail",
        "n4": "max_fail",
    }
    assert "max_fail" in run.summary()["held_back"]
    assert not run.all("started")
    gone(fleet, *numbers)


# -- links that break -------------------------------------------------------------------------------------------------


def test_a_link_that_is_cut_in_the_window_costs_nothing(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, lasting(8), [1, 2])
    run.wait_for("window", id="n2")
    fleet.run(2, "/usr/bin/python3", "-c", SENDER)
    fleet.cut(2)
    try:
        run.wait_for("lost", id="n2")
    finally:
        fleet.heal(2)
    assert run.end() == 0, run.events
    assert run.all("reattached")
    # Sent before the link went down; the bridge's own frames are no matter.
    assert [len(a.pcap()) for a in run.archives() if a.manifest["node"] == "n2"] == [200]
    gone(fleet, 1, 2)


def test_sessions_killed_in_the_window_cost_nothing(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, lasting(10), [1])
    run.wait_for("window", id="n1")
    fleet.kill_sessions(1)
    run.wait_for("lost", id="n1")
    assert run.end() == 0, run.events
    assert run.archive().lacking() == {}
    gone(fleet, 1)


def test_a_link_that_is_cut_while_fetching_goes_on_where_it_was(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, LARGE, [2], "--fetch-rate", "1MB/s")
    run.wait_for("end", id="n2")
    parts = run.directory / "archives"
    eventually(lambda: any(p.stat().st_size > 3_000_000 for p in parts.glob("*.part")), "some of it is here")
    sent = int(fleet.run(2, "cat", "/sys/class/net/eth0/statistics/tx_bytes"))
    fleet.kill_sessions(2)
    run.wait_for("reattached", id="n2")
    assert run.end() == 0, run.events
    assert not verify_archive(run.archive().path).problems
    size = run.archive().path.stat().st_size
    assert int(fleet.run(2, "cat", "/sys/class/net/eth0/statistics/tx_bytes")) - sent < size
    gone(fleet, 2)


@pytest.fixture
def small_disk(_unharmed: None, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "rrtest", str(place))
    yield place
    sh("umount", str(place))


def test_a_full_disk_here_keeps_the_copy_there(fleet: Fleet, tmp_path: Path, small_disk: Path) -> None:
    run = begin(fleet, tmp_path, LARGE, [1], "--output", str(small_disk / "runs"))
    assert run.end() == 4, run.events
    (failed,) = run.all("node-failed")
    assert "No space left" in failed["why"]
    kept = f"{failed['remains']}/archive"
    assert fleet.run(1, "ls", kept).endswith(".tar.gz\n")
    (directory,) = (small_disk / "runs").iterdir()
    assert retina_run(fleet, "cleanup", str(directory)).returncode == 0
    gone(fleet, 1)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "archived"),
    [
        ("run-start", False),
        ("node-check", False),
        ("ready", False),
        ("armed", False),
        ("window", True),
        ("archive", True),
    ],
)
def test_ctrl_c_in_each_phase(fleet: Fleet, tmp_path: Path, event: str, archived: bool) -> None:
    # A window, or a run, that doesn't end by itself before the signal has arrived: archives come at a snail's pace.
    book, rate = lasting(30) if event == "window" else RUNBOOK, "15kB/s" if event == "archive" else "40kB/s"
    run = begin(fleet, tmp_path, book, [1, 2], "--fetch-rate", rate)
    run.wait_for(event)
    if event in ("window", "archive"):
        run.wait_for(event)
    run.signal(signal.SIGINT)
    assert run.end() == 130, run.events
    opened = {e["id"] for e in run.all("window")}  # T0 may be upon a node that has just been told of it
    assert {a.manifest["node"] for a in run.archives()} == opened
    assert len(opened) == 2 or not archived
    for archive in run.archives():
        assert not verify_archive(archive.path).problems
    gone(fleet, 1, 2)


def test_what_is_left_on_a_node_that_is_away_is_listed_and_cleaned_up_later(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, lasting(60), [1, 2])
    for _ in range(2):
        run.wait_for("window")
    fleet.cut(2)
    try:
        run.signal(signal.SIGINT)
        assert run.end() == 130, run.events
    finally:
        fleet.heal(2)
    (place,) = run.all("interrupted")[-1]["remains"]
    assert place.startswith("n2: /var/tmp/")
    gone(fleet, 1)
    assert fleet.left(2)
    young = retina_run(fleet, "cleanup", "--older-than", "1h", "--runs", str(tmp_path / "runs"))
    assert "nothing to remove" in young.stdout
    cleaned = retina_run(fleet, "cleanup", "--older-than", "1s", "--runs", str(tmp_path / "runs"))
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    gone(fleet, 2)


# -- runners that die -------------------------------------------------------------------------------------------------


def resume(fleet: Fleet, run: Run, *words: str) -> tuple[int, list[dict[str, Any]]]:
    done = retina_run(fleet, "resume", str(run.directory), "--json", *words)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def kill(run: Run) -> None:
    run.process.kill()
    run.process.wait()


@pytest.mark.parametrize("journal", [True, False], ids=["with its journal", "from run.json alone"])
def test_a_killed_runner_s_run_is_adopted(fleet: Fleet, tmp_path: Path, journal: bool) -> None:
    run = begin(fleet, tmp_path, lasting(10), [1, 2])
    for _ in range(2):
        run.wait_for("window")
    kill(run)
    for number in (1, 2):
        fleet.run(number, "/usr/bin/python3", "-c", SENDER)
    if not journal:
        (run.directory / "events.jsonl").unlink()
    status, events = resume(fleet, run)
    assert status == 0, events
    assert [len(a.pcap()) for a in run.archives()] == [200, 200]
    assert [a.lacking() for a in run.archives() if a.lacking()] == []
    assert state(run) == {"n1": "collected", "n2": "collected"}
    gone(fleet, 1, 2)
    again = retina_run(fleet, "resume", str(run.directory))
    assert (again.returncode, "nothing is left to do" in again.stdout) == (0, True)


def test_a_run_whose_runner_died_before_t0_ends_cleanly(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, RUNBOOK, [1])
    run.wait_for("started")
    kill(run)
    status, events = resume(fleet, run)
    agreed = bool(run.summary()["t0"])  # if the runner was quicker than its killer, the run is whole
    assert status == (0 if agreed else 4), events
    gone(fleet, 1)


def test_a_run_whose_runner_died_while_fetching_is_brought_home(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, LARGE, [1], "--fetch-rate", "1MB/s")
    run.wait_for("end", id="n1")
    parts = run.directory / "archives"
    eventually(lambda: any(p.stat().st_size > 2_000_000 for p in parts.glob("*.part")), "some of it is here")
    kill(run)
    status, events = resume(fleet, run)
    assert status == 0, events
    assert not verify_archive(run.archive().path).problems
    gone(fleet, 1)


def test_a_run_that_goes_on_is_not_adopted(fleet: Fleet, tmp_path: Path) -> None:
    run = begin(fleet, tmp_path, lasting(10), [1])
    run.wait_for("window")
    refused = retina_run(fleet, "resume", str(run.directory))
    assert (refused.returncode, "still running" in refused.stderr) == (2, True)
    assert run.end() == 0
    gone(fleet, 1)


def test_the_failed_nodes_are_done_again(fleet: Fleet, tmp_path: Path) -> None:
    fleet.cut(2)
    try:
        run = begin(fleet, tmp_path, RUNBOOK, [1, 2], ansible_ssh_timeout="2")
        assert run.end() == 3, run.events
    finally:
        fleet.heal(2)
    again = retina_run(fleet, "retry", "--failed", str(run.directory), "--output", str(tmp_path / "again"))
    assert again.returncode == 0, again.stdout + again.stderr
    (directory,) = (tmp_path / "again").iterdir()
    (path,) = (directory / "archives").glob("*.tar.gz")
    archive = Archive(path)
    assert (archive.manifest["node"], archive.manifest["run"]) == ("n2", directory.name)
    assert not verify_archive(path).problems
    gone(fleet, 1, 2)


# -- bastions, mixtures, clocks ---------------------------------------------------------------------------------------


def test_twenty_nodes_behind_a_bastion_that_lets_few_knock_at_a_time(fleet: Fleet, tmp_path: Path) -> None:
    behind = [n for n in fleet.every_node() if n > 1]
    fleet.configure(1, "MaxStartups 3:100:3")
    before = fleet.logins(1)
    routes = [f"{fleet.address(n)}/32" for n in behind]
    for route in routes:
        sh("ip", "-n", fleet.netns, "route", "add", "unreachable", route)
    try:
        run = begin(fleet, tmp_path, RUNBOOK, behind,
                    ansible_ssh_common_args=f"'-o ProxyJump=root@{fleet.address(1)}'")  # fmt: skip
        assert run.end() == 0, run.events
        checked = retina_run(fleet, "--check", "-i", str(tmp_path / "hosts.yaml"), str(tmp_path / "runbook.yaml"))
        assert (checked.returncode, checked.stderr, checked.stdout.count(": ok\n")) == (0, "", len(behind)), checked
    finally:
        for route in routes:
            sh("ip", "-n", fleet.netns, "route", "del", "unreachable", route)
        fleet.configure(1)
    assert len(run.archives()) == len(behind)
    assert fleet.logins(1) - before == 2, "one for the run, and one for the check"
    gone(fleet, 1, *behind)


KNOCKER = """
import select, socket, sys, time
end, open_ones = time.monotonic() + float(sys.argv[2]), []
print("ready", flush=True)
while time.monotonic() < end:
    # Whoever has been let go of comes again: as long as this goes on, nobody else gets in, or hardly.
    open_ones = [s for s in open_ones if not select.select([s], [], [], 0)[0] or s.recv(4096)]
    while len(open_ones) < 6:
        open_ones.append(socket.create_connection((sys.argv[1], 22), 5))
    time.sleep(0.02)
"""


def test_a_bastion_that_cuts_everybody_off_and_is_crowded_when_they_come_back(fleet: Fleet, tmp_path: Path) -> None:
    """Its one connection dies in the window; others hold all the places for logins; it is got through again, once for all."""
    behind = [2, 3, 4, 5, 6]
    fleet.configure(1, "MaxStartups 2:100:2", "LogLevel VERBOSE")
    before, dropped = fleet.logins(1), fleet.log(1).count("MaxStartups")
    try:
        run = begin(
            fleet, tmp_path, lasting(15), behind, ansible_ssh_common_args=f"'-o ProxyJump=root@{fleet.address(1)}'"
        )
        for _ in behind:
            run.wait_for("window")
        knocker = subprocess.Popen(
            ["ip", "netns", "exec", fleet.netns, sys.executable, "-c", KNOCKER, fleet.address(1), "8"],
            stdout=subprocess.PIPE,
        )
        assert knocker.stdout is not None
        knocker.stdout.readline()
        fleet.kill_sessions(1)
        assert run.end() == 0, run.events
        knocker.communicate(timeout=30)
    finally:
        fleet.configure(1)
    assert {e["id"] for e in run.all("lost")} == {e["id"] for e in run.all("reattached")} == {f"n{n}" for n in behind}
    assert fleet.log(1).count("MaxStartups") > dropped, fleet.log(1)[-3000:]
    assert fleet.logins(1) - before == 2
    assert [a.lacking() for a in run.archives() if a.lacking()] == []
    assert len(run.archives()) == len(behind)
    gone(fleet, 1, *behind)


def test_this_machine_and_two_inventories_at_one_t0(fleet: Fleet, tmp_path: Path) -> None:
    fleet.inventory(tmp_path / "eu.yaml", [1])
    fleet.inventory(tmp_path / "us.yaml", [2, 3])
    collect = "collect: [{tcpdump: {interfaces: [any], filter: udp port 7000}}]"
    run = Run(f"""
name: mixed
duration: 3s
limits: {{disk_free_percent: 0, disk_free_bytes: 10MB}}
captures:
  - {{name: here, nodes: local, {collect}}}
  - {{name: eu, nodes: {{inventory: eu.yaml}}, {collect}}}
  - {{name: us, nodes: {{inventory: us.yaml, hosts: "nodes:!n3"}}, {collect}}}
""", tmp_path, netns=fleet.netns)  # fmt: skip
    assert run.end() == 0, run.events
    assert {a.manifest["executor"] for a in run.archives()} == {"local", "ssh"}
    assert [a.path.name.rsplit("-", 1)[0] for a in run.archives()][0:1] == ["mixed-eu-n1"]
    assert len({a.path.name.rsplit("-", 1)[1] for a in run.archives()}) == 1
    assert len(run.archives()) == 3
    assert run.summary()["skew"]["nodes"] == 3
    gone(fleet, 1, 2, 3)


@pytest.fixture
def skewed(fleet: Fleet, _unharmed: None) -> Iterator[int]:
    fleet.set_clock(2, 90)
    yield 2
    fleet.mend_clock(2)


def test_one_packet_seen_on_two_nodes_one_of_which_is_90_s_off(fleet: Fleet, tmp_path: Path, skewed: int) -> None:
    """In the nodes' own time stamps it arrives 90 s before it was sent; corrected, no sooner than the clocks are known."""
    run = begin(fleet, tmp_path, lasting(8).replace("udp port 7000", "udp port 7001"), [1, skewed])
    for _ in range(2):
        run.wait_for("window")
    script = f"import socket; s = socket.socket(2, 2); [s.sendto(bytes([n]), ('{fleet.address(1)}', 7001)) for n in range(50)]"
    fleet.run(skewed, "/usr/bin/python3", "-c", script)
    assert run.end() == 0, run.events
    one, two = sorted(run.archives(), key=lambda a: str(a.manifest["node"]))
    assert 89.0 < two.manifest["clock"]["offset_s"] < 91.0
    assert abs(one.manifest["clock"]["offset_s"]) < 1.0
    assert one.path.name.rsplit("-", 1)[1] == two.path.name.rsplit("-", 1)[1]
    sent, received = two.pcap(), one.pcap()
    assert len(sent) == len(received) == 50
    apart_s = two.manifest["clock"]["offset_s"] - one.manifest["clock"]["offset_s"]
    error_s = two.manifest["clock"]["offset_error_s"] + one.manifest["clock"]["offset_error_s"]
    for (there_ns, packet), (here_ns, same) in zip(sent, received, strict=True):
        assert packet == same
        assert here_ns < there_ns
        delay_s = here_ns / 1e9 - (there_ns / 1e9 - apart_s)
        # Both time stamps are one kernel's own, of one packet on one veth: whatever isn't the offset's error is no delay.
        assert -error_s <= delay_s <= error_s + 0.5
    gone(fleet, 1, skewed)


def test_a_node_that_comes_late_says_so_and_holds_nobody(fleet: Fleet, tmp_path: Path) -> None:
    fleet.freeze(2)
    try:
        run = begin(fleet, tmp_path, lasting(25, ", ready_timeout: 10s"), [1, 2], ansible_ssh_timeout="10")
        run.wait_for("window", id="n1")
    finally:
        fleet.thaw(2)
    assert run.end() == 0, run.events
    one, two = sorted(run.archives(), key=lambda a: str(a.manifest["node"]))
    assert one.lacking() == {}
    assert two.manifest["verdict"] == "partial"
    assert any("after T0" in r for r in two.verdict(".pcap")["reasons"])
    assert two.manifest["window"]["t0"] == one.manifest["window"]["t0"]
    gone(fleet, 1, 2)
