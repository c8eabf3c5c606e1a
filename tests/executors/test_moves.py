"""A run follows pods that move before T0: real agents on this machine, and a scripted watch that says what has moved.

(Real pods move in tests/cluster/test_moving_pods.py; what comes too late to be acted on can only be scripted.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.delivery import Delivery, open_places
from retina_runner.errors import Exit
from retina_runner.executors.local import LocalLink
from retina_runner.fleet import Fleet
from retina_runner.folding import fold
from retina_runner.moving import MOVES_MOST, Changes
from retina_runner.report import exit_code
from retina_runner.schema import violations
from retina_runner.targets import Target, Terms
from retina_runner.verification import verify_archive
from tests.agent.test_verbs import plan
from tests.lab import Archive, eventually, processes

pytestmark = pytest.mark.root

TAP = {"id": "tcpdump", "name": "tcpdump", "options": {"interfaces": ["lo"], "snaplen": 64, "max_size": 10**6,
       "promiscuous": False, "buffer_size": 2 << 20, "expression": "udp port 7"}}  # fmt: skip


class Scripted:
    """A watch that answers each look with the next of these; then with the last, for ever, if `for_ever`."""

    def __init__(self, folder: Path, looks: Sequence[Changes], for_ever: bool = False):
        self.folder, self.looks, self.for_ever = folder, list(looks), for_ever
        self.asked = 0
        self.targets: dict[str, Target] = {}

    def target(self, node: str, says: str = "first") -> Target:
        work = self.folder / f"work-{node}"
        command = plan()["collectors"][0]
        collector = {**command, "options": {**command["options"], "argv": ["echo", says]}}
        document = plan(node=node, prefix=f"moves-{node}", collectors=[collector, TAP])
        old = self.targets.get(node)
        directory = f"{old.directory}+" if old else str(work / "plan")
        self.targets[node] = Target(node, node, "moves", "local", directory, json.dumps(document).encode(), 1.0,
                                    old.link if old else LocalLink(str(work)), str(work))  # fmt: skip
        return self.targets[node]

    def look(self, give_up: Callable[[], bool]) -> Changes:
        self.asked += 1
        if self.for_ever:
            return self.looks[0]
        return self.looks.pop(0) if self.looks else Changes()

    def take(self, changes: Changes) -> list[Target]:
        return [self.target(node, why) for node, why in {**changes.replanned, **changes.joined}.items()]

    def late(self, identifier: str) -> Target:
        return replace(self.target(identifier), directory="")


def run(watch: Scripted, *nodes: str) -> list[dict[str, Any]]:
    """All events of a run of these nodes."""
    archives = watch.folder / "archives"
    archives.mkdir()
    carried = Fleet(
        [watch.target(node) for node in nodes], agent_bundle(), archives, Terms(60.0),
        verify=verify_archive, delivery=Delivery(open_places([]), "moves", "always"), watch=watch,
    )  # fmt: skip
    events = list(carried.events())
    assert carried.remains() == (), events
    for number, event in enumerate(events):
        if event["event"] in ("node-joined", "node-left", "node-replanned"):
            assert violations("event", {"seq": number, **event}) == []
    eventually(lambda: not any(str(watch.folder) in command for command in processes().values()), "no agent is left")
    return events


def started(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    nodes = [{"id": n, "node": n, "capture": "moves", "executor": "local"} for n in ("a", "b")]
    known = {e["id"] for e in events if "id" in e} - {e["id"] for e in events if e["event"] == "node-joined"}
    begin = {"event": "run-start", "run": "moves", "runbook": "moves", "nodes": [n for n in nodes if n["id"] in known]}
    return [begin, *events]


def said(watch: Scripted, node: str) -> str:
    """What the command of the plan that was carried out on the node has said."""
    (path,) = (watch.folder / "archives").glob(f"moves-{node}-*.tar.gz")
    return Archive(path).members["commands/command/before.stdout"].decode().strip()


def all_of(events: list[dict[str, Any]], kind: str, node: str) -> list[dict[str, Any]]:
    return [e for e in events if e["event"] == kind and e.get("id") == node]


def test_nothing_moves(tmp_path: Path) -> None:
    watch = Scripted(tmp_path, [])
    run(watch, "a")
    assert (said(watch, "a"), watch.asked) == ("first", 2)


def test_a_node_is_planned_again_before_its_agent_begins(tmp_path: Path) -> None:
    watch = Scripted(tmp_path, [Changes(replanned={"a": "second"})])
    events = run(watch, "a", "b")
    assert (said(watch, "a"), said(watch, "b")) == ("second", "first")
    assert len(all_of(events, "started", "a")) == 1
    assert [e["why"] for e in events if e["event"] == "node-replanned"] == ["second"]
    assert exit_code(fold(started(events))) == Exit.OK


def test_an_agent_that_was_ready_begins_again(tmp_path: Path) -> None:
    watch = Scripted(tmp_path, [Changes(), Changes(replanned={"a": "second"}), Changes(replanned={"a": "third"})])
    events = run(watch, "a", "b")
    assert (said(watch, "a"), said(watch, "b")) == ("third", "first")
    assert (len(all_of(events, "started", "a")), len(all_of(events, "started", "b"))) == (3, 1)
    report = fold(started(events))
    assert exit_code(report) == Exit.OK
    assert [n.trouble for n in report.nodes] == [None, None]
    assert report.nodes[0].warnings == ("planned again before T0: second", "planned again before T0: third")


@pytest.mark.parametrize("looks", [0, 1], ids=["before its agent begins", "when it is ready"])
def test_a_node_that_nothing_is_left_on_leaves(tmp_path: Path, looks: int) -> None:
    watch = Scripted(tmp_path, [*[Changes()] * looks, Changes(left={"a": "pod x has gone"})])
    events = run(watch, "a", "b")
    assert not list((tmp_path / "archives").glob("moves-a-*"))
    assert said(watch, "b") == "first"
    assert not (tmp_path / "work-a").exists()
    report = fold(started(events))
    assert exit_code(report) == Exit.OK
    assert (report.nodes[0].state, report.nodes[0].skipped[0].why) == ("skipped", "pod x has gone")


def test_when_all_leave_nothing_was_touched(tmp_path: Path) -> None:
    watch = Scripted(tmp_path, [Changes(), Changes(left={"a": "pod x has gone"})])
    assert exit_code(fold(started(run(watch, "a")))) == Exit.UNTOUCHED


@pytest.mark.parametrize("looks", [0, 1], ids=["before agents begin", "when they are ready"])
def test_a_node_joins_at_the_same_t0(tmp_path: Path, looks: int) -> None:
    watch = Scripted(tmp_path, [*[Changes()] * looks, Changes(joined={"b": "it has come"}, left={"a": "it has gone"})])
    events = run(watch, "a")
    assert said(watch, "b") == "it has come"
    assert len([e for e in events if e["event"] == "t0"]) == 1
    report = fold(started(events))
    assert [(n.id, n.state) for n in report.nodes] == [("a", "skipped"), ("b", "collected")]
    assert report.nodes[1].executor == "local"


def test_what_comes_too_late_is_told_by_the_archive_itself(tmp_path: Path) -> None:
    """Event, manifest and verdict: of the pcap, whose filter is old, and of nothing else."""
    watch = Scripted(tmp_path, [Changes(replanned={"a": "pod x has moved"})], for_ever=True)
    events = run(watch, "a")
    assert watch.asked == 2 * (MOVES_MOST + 1)
    (path,) = (tmp_path / "archives").glob("*.tar.gz")
    archive = Archive(path)
    verdict = archive.verdict(".pcap")
    assert (verdict["verdict"], verdict["reasons"]) == (
        "partial",
        ["its filter is of pods as they were before T0: pod x has moved"],
    )
    others = {v["artefact"]: v["verdict"] for v in archive.manifest["verdicts"] if v is not verdict and v != verdict}
    assert set(others.values()) <= {"complete"}, others
    assert "pod x has moved" in archive.manifest["warnings"]
    assert "pod x has moved" in [e["why"] for e in all_of(events, "warning", "a")]


def test_a_node_that_would_have_joined_too_late_is_a_failure_of_the_run(tmp_path: Path) -> None:
    moving = [Changes(replanned={"a": "again"})] * MOVES_MOST
    watch = Scripted(tmp_path, [Changes(), *moving, Changes(joined={"b": "pod y has come"})])
    events = run(watch, "a")
    (failed,) = all_of(events, "node-failed", "b")
    assert failed["why"] == "pod y has come, too late to be captured at this T0"
    assert said(watch, "a") == "again"
    assert exit_code(fold(started(events))) == Exit.SOME_FAILED


def test_a_watch_that_breaks_holds_nobody_up(tmp_path: Path) -> None:
    """Everybody waits for the thread that looks: whatever happens there is told, and the run goes on."""

    class Broken(Scripted):
        def look(self, give_up: Callable[[], bool]) -> Changes:
            raise KeyError("status")

    run(Broken(tmp_path, []), "a")
    (path,) = (tmp_path / "archives").glob("*.tar.gz")
    assert Archive(path).manifest["warnings"] == ["its pods couldn't be looked at again before T0: KeyError: 'status'"]


def test_what_could_not_be_looked_at_is_told_and_lowers_nothing(tmp_path: Path) -> None:
    watch = Scripted(tmp_path, [Changes(unseen={"a": "the API server is away"})], for_ever=True)
    run(watch, "a")
    (path,) = (tmp_path / "archives").glob("*.tar.gz")
    assert Archive(path).manifest["warnings"] == ["the API server is away"]
    assert Archive(path).manifest["verdict"] == "complete"
