"""What every executor's link must do, over this machine and over SSH to a real sshd: the one suite for all of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.executors import Link, LinkLost, LinkRefused
from retina_runner.executors.local import LocalLink
from retina_runner.executors.ssh import SshLink
from retina_runner.executors.ssh_connect import Connector
from retina_runner.inventory.connection import Connection
from retina_runner.schema import violations
from tests.fleet.fleet import Fleet
from tests.lab import eventually

pytestmark = pytest.mark.root

RELAY = """
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], 22))
def up():
    while piece := os.read(0, 65536):
        there.sendall(piece)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while piece := there.recv(65536):
    os.write(1, piece)
"""
"""The node is in a network namespace and this process isn't: a proxy command leads there."""


@dataclass
class Place:
    """A link, the folder of agents on its node, what is left in there, and a way to break the connection."""

    link: Link
    work: str
    left: Callable[[], list[str]]
    cut: Callable[[], None] | None


@pytest.fixture(scope="module")
def node() -> Iterator[Fleet]:
    with Fleet(1) as made:
        yield made


@pytest.fixture(params=["local", "ssh", "ssh with sudo"])
def place(request: pytest.FixtureRequest, tmp_path: Path, node: Fleet, _unharmed: None) -> Iterator[Place]:
    if request.param == "local":
        work = tmp_path / "work"
        made = Place(LocalLink(str(work)), str(work), lambda: [at for at, *_ in os.walk(work)], None)
        connector = None
    else:
        script = tmp_path / "relay.py"
        script.write_text(RELAY)
        to = Connection(
            host="n1", address=node.address(1), user="root" if request.param == "ssh" else "ops",
            key_files=(str(node.key),), known_hosts=(str(node.known_hosts),), python="/usr/bin/python3",
            become=request.param != "ssh", identities_only=True,
            proxy_command=f"ip netns exec {node.netns} /usr/bin/python3 {script} {node.address(1)}",
        )  # fmt: skip
        connector = Connector(1)
        link = SshLink(to, "/var/tmp/links", connector)
        made = Place(link, "/var/tmp/links", lambda: node.left(1), lambda: node.kill_sessions(1))
    made.link.connect()
    made.link.install(agent_bundle())
    yield made
    made.link.call("remove", f"{made.work}/nothing")  # the last one out takes the agent with it
    made.link.close()
    if connector is not None:
        connector.close()
    eventually(lambda: made.left() == [], "nothing is left on the node")


def plan(**changes: Any) -> bytes:
    """One command's output, a window of some seconds: one that is over when its node is told of T0 is none."""
    agent = agent_bundle()
    made: dict[str, Any] = {
        "format": 1, "run": "links-20261123031658UTC", "runbook": {"name": "links", "sha256": "0" * 64},
        "capture": "links", "node": "n1", "executor": "ssh", "prefix": "links-n1",
        "agent": {"name": agent.name, "sha256": agent.sha256}, "duration_s": 5.0, "t0": None, "ready_timeout_s": 60.0,
        "expiry_s": 3600.0, "compression": "gzip",
        "limits": {"node_bytes": 10**8, "disk_free_percent": 0, "disk_free_bytes": 0, "nice": 0, "memory": 1 << 29},
        "collectors": [{"id": "command", "name": "command", "options": {
            "argv": ["echo", "hello"], "when": ["before"], "limit": 10.0, "output_limit": 1000, "env": {}, "ok_exit": [0]}}],
        **changes,
    }  # fmt: skip
    return json.dumps(made).encode()


def follow(link: Link, directory: str, first: int, until: str) -> list[dict[str, Any]]:
    found = []
    for event in link.events(directory, first, threading.Event()):
        found.append(event)
        if event["event"] == until:
            break
    return found


def ask_until_it_is_lost(link: Link, directory: str) -> None:
    for _ in range(200):
        link.call("alive", directory)
        time.sleep(0.05)


def release(link: Link, directory: str) -> dict[str, Any]:
    clock = link.clock()
    t0 = time.time() + 1.0
    text = {"t0": t0 + clock.offset_s, "reference_t0": t0, "offset_s": clock.offset_s, "offset_error_s": clock.error_s}
    return link.call("release", directory, stdin=json.dumps(text).encode())


def test_a_plan_from_check_to_removal(place: Place) -> None:
    link, directory = place.link, f"{place.work}/one"
    link.install(agent_bundle())  # again: nothing changes
    answer = link.call("check", "--directory", place.work, stdin=plan())
    assert answer["ok"], answer
    assert link.call("start", directory, stdin=plan())["state"] == "started"
    assert link.call("start", directory, stdin=plan())["state"] == "already"
    seen = follow(link, directory, 0, "ready")
    assert release(link, directory)["ok"]
    seen += follow(link, directory, len(seen), "end")
    assert [e["seq"] for e in seen] == list(range(len(seen)))
    assert not [v for e in seen for v in violations("event", e)]
    assert seen[-1]["state"] == "collected", seen[-1]
    (archive,) = [e for e in seen if e["event"] == "archive"]
    whole = b"".join(link.fetch(directory, archive["name"], 0))
    assert len(whole) == archive["size_bytes"]
    assert b"".join(link.fetch(directory, archive["name"], 100)) == whole[100:]
    assert b"".join(link.fetch(directory, archive["name"], len(whole))) == b""
    for _ in range(2):
        assert link.call("remove", directory)["removed"]


def test_a_plan_that_is_none_is_refused_with_its_reason(place: Place) -> None:
    with pytest.raises(LinkRefused, match="format"):
        place.link.call("check", "--directory", place.work, stdin=plan(format=99))


def test_events_of_a_directory_that_is_not_there_end_at_once(place: Place) -> None:
    assert list(place.link.events(f"{place.work}/nowhere", 0, threading.Event())) == []


def test_whoever_gives_up_listening_is_free_for_the_next_call(place: Place) -> None:
    link, directory = place.link, f"{place.work}/wait"
    link.call("start", directory, stdin=plan())
    follow(link, directory, 0, "ready")
    give_up = threading.Event()
    threading.Timer(0.5, give_up.set).start()
    assert list(link.events(directory, 1000, give_up)) == []
    assert give_up.is_set()
    assert link.call("stop", directory)["signalled"]
    assert follow(link, directory, 0, "end")[-1]["state"] == "abandoned"
    assert link.call("remove", directory)["removed"]


def test_the_clock_is_known_to_half_a_round_trip(place: Place) -> None:
    clock = place.link.clock()
    assert abs(clock.offset_s) <= clock.error_s  # one kernel, one clock


def test_a_lost_connection_is_told_and_made_again(place: Place) -> None:
    if place.cut is None:
        return  # this machine is never away from itself
    link, directory = place.link, f"{place.work}/cut"
    link.call("start", directory, stdin=plan())
    place.cut()
    with pytest.raises(LinkLost):
        ask_until_it_is_lost(link, directory)
    link.connect()
    assert link.call("alive", directory)["alive"]
    assert link.call("remove", directory)["removed"]
