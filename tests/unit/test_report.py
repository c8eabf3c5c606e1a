"""The fold: exact reports and exit statuses for sequences of events, and what doesn't depend on their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.errors import Exit
from retina_runner.folding import Fold, fold
from retina_runner.report import RunReport, exit_code, from_json, to_json

SCHEMAS = Path(__file__).parents[2] / "schemas"
TIME = "2026-11-23T03:17:00.000000Z"
FACTS = {"kernel": "6.1.0", "distribution": "Debian 12", "free_bytes": 10**9}
Event = dict[str, Any]


def start(*nodes: str, fail_on_loss: bool = False) -> Event:
    entries = [{"id": n, "node": n, "capture": "", "executor": "ssh", "directory": f"/var/tmp/{n}"} for n in nodes]
    return {
        "event": "run-start", "time": TIME, "run": "q-20261123031658UTC", "runbook": "q", "runbook_sha256": "0" * 64,
        "version": "0.1.0", "directory": "runs/q", "duration_s": 60.0, "fail_on_loss": fail_on_loss, "pid": 7,
        "nodes": entries,
    }  # fmt: skip


def at(node: str, event: str, **fields: Any) -> Event:
    return {"time": TIME, "event": event, "id": node, "node": node, "capture": "", **fields}


def begun(node: str) -> list[Event]:
    return [
        at(node, "node-check", ok=True, problems=[], facts=FACTS),
        at(node, "started", agent="agent.pyz", pid=8, python="3.11.2"),
        at(node, "collector", collector="tcpdump", status="ready"),
        at(node, "ready", rehearsal_s=0.1, free_bytes=10**9),
        at(node, "phase", phase="capturing"),
        at(node, "window", t0=TIME, late_s=0.0),
        at(node, "progress", elapsed_s=30.0, total_s=60.0, bytes=4000, packets=40, dropped=0, free_bytes=10**9 - 1),
    ]


def packed(node: str, verdict: str = "complete", status: str = "done", dropped: int = 0) -> list[Event]:
    return [
        at(node, "collector", collector="tcpdump", status=status),
        at(node, "archive", name=f"q-{node}.tar.gz", size_bytes=900, sha256="a" * 64, verdict=verdict, reasons=[],
           packets=80, dropped=dropped),
        at(node, "end", state="collected"),
        at(node, "fetched", path=f"runs/q/archives/q-{node}.tar.gz", size_bytes=900, sha256="a" * 64),
    ]  # fmt: skip


def delivered(node: str, verdict: str = "complete", status: str = "done", dropped: int = 0) -> list[Event]:
    ends = [at(node, "verified", ok=True, problems=[]), at(node, "removed")]
    return [*begun(node), *packed(node, verdict, status, dropped), *ends]


def unreachable(node: str) -> list[Event]:
    return [at(node, "node-failed", what="connection", why="no route to host")]


def dead(node: str) -> list[Event]:
    return [*begun(node), at(node, "node-failed", what="agent", why="it is gone", remains=f"/var/tmp/{node}")]


def upload(node: str, state: str, target: str = "s3") -> Event:
    return at(node, "upload", target=target, state=state, **({"why": "403"} if state == "failed" else {}))


def interrupted(name: str) -> Event:
    return {"event": "interrupted", "time": TIME, "signal": name, "remains": []}


def cut_short(node: str) -> list[Event]:
    """As it is when the node is drained, or shut down."""
    return [
        {**e, "cut_short": "stopped by request"} if e["event"] == "archive" else e for e in delivered(node, "partial")
    ]


CASES: dict[str, tuple[Sequence[Event], Exit]] = {
    "all collected": ([start("a", "b"), *delivered("a"), *delivered("b")], Exit.OK),
    "nobody could be reached": ([start("a", "b"), *unreachable("a"), *unreachable("b")], Exit.UNTOUCHED),
    "the only agent died": ([start("a"), *dead("a")], Exit.NONE_SUCCEEDED),
    "one of two died": ([start("a", "b"), *delivered("a"), *dead("b")], Exit.SOME_FAILED),
    "one of two unreachable": ([start("a", "b"), *delivered("a"), *unreachable("b")], Exit.SOME_FAILED),
    "a collector failed": ([start("a"), *delivered("a", status="failed")], Exit.SOME_FAILED),
    "a collector was skipped": ([start("a"), *delivered("a", status="skipped")], Exit.OK),
    "a node's window was ended early": ([start("a", "b"), *delivered("a"), *cut_short("b")], Exit.SOME_FAILED),
    "Ctrl-C ends the windows early": ([start("a"), interrupted("SIGINT"), *cut_short("a")], Exit.INTERRUPTED),
    "not stored": ([start("a"), *delivered("a"), upload("a", "failed")], Exit.NOT_UPLOADED),
    "stored in one place of two": ([start("a"), *delivered("a"), upload("a", "failed", "x"), upload("a", "stored", "y")],
                                   Exit.NOT_UPLOADED),
    "a skipped upload": ([start("a"), *delivered("a"), upload("a", "skipped")], Exit.OK),
    "lossy, told": ([start("a"), *delivered("a", "lossy", dropped=3)], Exit.OK),
    "lossy, forbidden": ([start("a", fail_on_loss=True), *delivered("a", "lossy", dropped=3)], Exit.LOSSY),
    "partial, forbidden": ([start("a", fail_on_loss=True), *delivered("a", "partial")], Exit.LOSSY),
    "unknown, forbidden": ([start("a", fail_on_loss=True), *delivered("a", "unknown")], Exit.LOSSY),
    "complete, loss forbidden": ([start("a", fail_on_loss=True), *delivered("a")], Exit.OK),
    "stopped at the runbook's own limit": (
        [start("a"), *begun("a"), at("a", "limit", limit="max_size", why="200 MB"), *delivered("a", "partial")], Exit.OK),
    "failed comes before not stored": (
        [start("a", "b"), *delivered("a"), upload("a", "failed"), *dead("b")], Exit.SOME_FAILED),
    "not stored comes before lossy": (
        [start("a", fail_on_loss=True), *delivered("a", "lossy"), upload("a", "failed")], Exit.NOT_UPLOADED),
    "Ctrl-C comes before all": ([start("a"), interrupted("SIGINT"), *delivered("a")], Exit.INTERRUPTED),
    "Ctrl-C before anything": ([start("a"), interrupted("SIGINT")], Exit.INTERRUPTED),
    "SIGTERM": ([start("a"), *dead("a"), interrupted("SIGTERM")], Exit.TERMINATED),
    "the archive couldn't be removed from the node": (
        [start("a"), *delivered("a"), at("a", "node-failed", what="/var/tmp/a", why="busy")], Exit.SOME_FAILED),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exit_status(name: str) -> None:
    events, expected = CASES[name]
    assert exit_code(fold(events)) is expected


def test_a_whole_node_is_known_exactly() -> None:
    events = [start("a"), *delivered("a", "lossy", dropped=3), upload("a", "failed")]
    events.append({"event": "run-end", "time": TIME, "exit_code": 5})
    report = fold(events)
    (node,) = report.nodes
    assert (report.run, report.runbook, report.directory, report.exit_code) == ("q-20261123031658UTC", "q", "runs/q", 5)
    assert (node.state, node.verdict, node.packets, node.dropped) == ("collected", "lossy", 80, 3)
    assert (node.elapsed_s, node.total_s, node.bytes, node.free_bytes) == (30.0, 60.0, 4000, 10**9 - 1)
    assert (node.archive, node.size_bytes, node.sha256) == ("runs/q/archives/q-a.tar.gz", 900, "a" * 64)
    assert [(c.name, c.status) for c in node.collectors] == [("tcpdump", "done")]
    assert [(u.target, u.state, u.why) for u in node.uploads] == [("s3", "failed", "403")]
    assert node.removed
    assert node.trouble is None


def test_a_later_success_does_not_hide_a_failure() -> None:
    report = fold([start("a"), *begun("a"), at("a", "collector", collector="tcpdump", status="failed", why="killed"),
                   *packed("a"), at("a", "verified", ok=True, problems=[])])  # fmt: skip
    assert [(c.status, c.why) for c in report.nodes[0].collectors] == [("failed", "killed")]
    assert report.nodes[0].state == "partial"


def test_a_runner_that_died_leaves_a_run_without_an_end() -> None:
    report = fold([start("a"), *begun("a")])
    assert to_json(report)["state"] == "running"
    assert report.exit_code is None
    assert report.nodes[0].state == "capturing"


def test_unknown_events_and_fields_are_passed_over() -> None:
    known = [start("a"), *delivered("a")]
    newer = [{**e, "mood": 1} for e in known]
    newer.insert(3, {"event": "weather", "time": TIME})
    newer.insert(4, at("a", "horoscope", sign="ox"))
    assert fold(newer) == fold(known)


NODE_EVENTS = st.sampled_from([delivered, dead, unreachable])


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """The same nodes' events one node after the other, and mixed; each node's own order is kept."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 5)))]
    apart = {n: draw(NODE_EVENTS)(n) for n in names}
    order = draw(st.permutations([n for n in names for _ in apart[n]]))
    rests = {n: iter(apart[n]) for n in names}
    return [start(*names), *(e for n in names for e in apart[n])], [start(*names), *(next(rests[n]) for n in order)]


@given(interleavings())
def test_the_order_between_nodes_does_not_matter(pair: tuple[list[Event], list[Event]]) -> None:
    apart, mixed = pair
    assert fold(mixed) == fold(apart)


@given(interleavings(), st.data())
def test_asking_in_between_changes_nothing(pair: tuple[list[Event], list[Event]], data: st.DataObject) -> None:
    events = pair[1]
    cut = data.draw(st.integers(0, len(events)))
    folding = Fold()
    for event in events[:cut]:
        folding.add(event)
    assert folding.report() == fold(events[:cut])
    for event in events[cut:]:
        folding.add(event)
    assert folding.report() == fold(events)


@given(interleavings())
def test_run_json_is_valid_and_reads_back(pair: tuple[list[Event], list[Event]]) -> None:
    report = fold(pair[1])
    document = json.loads(json.dumps(to_json(report)))
    validator("run").validate(document)
    assert from_json(document) == report


def test_nodes_stay_in_the_order_of_the_run() -> None:
    names = [f"n{i}" for i in range(1000)]
    report = fold([start(*names), *(e for n in reversed(names) for e in delivered(n))])
    assert [n.id for n in report.nodes] == names
    assert {n.state for n in report.nodes} == {"collected"}
    assert exit_code(report) is Exit.OK


def test_an_empty_journal_is_a_report() -> None:
    assert fold([]) == RunReport()


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))


def every_event() -> Iterable[Event]:
    yield from (e for events, _ in CASES.values() for e in events)


def test_the_events_of_these_tests_are_the_schema_s() -> None:
    events = validator("event")
    for number, event in enumerate(every_event()):
        events.validate({"seq": number, **event})


@pytest.mark.parametrize("wrong", [
    {"event": "weather", "time": TIME},
    {**at("a", "removed"), "mood": 1},
    at("a", "progress", elapsed_s=1.0),
    at("a", "upload", target="s3", state="perhaps"),
    {"event": "run-end", "time": TIME},
])  # fmt: skip
def test_the_schema_is_strict_for_what_is_written(wrong: Event) -> None:
    assert not validator("event").is_valid({"seq": 0, **wrong})


def test_the_skew_of_the_windows_is_told_with_its_error() -> None:
    events = [start("a", "b", "c")]
    for node, error_s, late_s in (("a", 0.002, 0.0004), ("b", 0.001, 0.0), ("c", 0.0005, 0.0001)):
        events.append(at(node, "node-clock", offset_s=90.0, error_s=error_s))
        events.append(at(node, "window", t0=TIME, late_s=0.0, opened_s=late_s))
    skew = fold(events).skew
    assert skew is not None
    assert skew.nodes == 3
    assert skew.spread_s == pytest.approx(0.0004)
    assert skew.error_s == pytest.approx(0.003)
    assert (skew.p50_s, skew.p99_s, skew.after_error_s) == (0.0001, 0.0004, 0.002)
    assert to_json(fold(events))["skew"]["nodes"] == 3
    assert fold(events[:3]).skew is None


def test_of_two_hundred_windows_two_are_beyond_the_99th_of_a_hundred() -> None:
    events = [start(*(str(n) for n in range(200)))]
    for number in range(200):
        events.append(at(str(number), "node-clock", offset_s=0.0, error_s=0.001))
        events.append(at(str(number), "window", t0=TIME, late_s=0.0, opened_s=number / 1000))
    skew = fold(events).skew
    assert skew is not None
    assert (skew.p50_s, skew.p99_s) == (0.099, 0.197)


DRIFT = {"drift_s": 0.3, "error_s": 0.002, "elapsed_s": 60.0, "known_s": 0.0}


@pytest.mark.parametrize(("stepped", "verdict"), [(False, "complete"), (True, "unknown")])
def test_a_clock_that_was_moved_unseen_lowers_the_verdict(stepped: bool, verdict: str) -> None:
    events = [
        start("a"),
        *begun("a"),
        *packed("a"),
        at("a", "clock-drift", stepped=stepped, **DRIFT),
        *delivered("a")[-2:],
    ]
    report = fold(events)
    (node,) = report.nodes
    assert (node.verdict, node.drift_s, node.drift_error_s) == (verdict, 0.3, 0.002)
    assert any("+0.300 s" in reason for reason in node.reasons) == stepped
    assert from_json(json.loads(json.dumps(to_json(report)))) == report


def test_a_run_that_was_adopted_is_told_anew_for_the_nodes_that_were_not_done() -> None:
    first = [start("a", "b"), *begun("a"), *packed("a"), *delivered("a"), *begun("b"), at("b", "warning", why="once")]
    again = [{"event": "resumed", "time": TIME, "pid": 9, "ids": ["b"]}, *begun("b"), at("b", "warning", why="once")]
    report = fold([*first, *again])
    assert report.pid == 9
    assert report.nodes[0] == fold(first).nodes[0]
    assert report.nodes[1].warnings == ("once",)
    assert report.nodes[1].directory == "/var/tmp/b"


def test_a_run_that_was_held_back_says_why() -> None:
    report = fold([start("a", "b"), {"event": "held-back", "time": TIME, "failed": 1, "max_fail": 0}])
    assert "more than max_fail (0)" in report.held_back
    assert from_json(json.loads(json.dumps(to_json(report)))) == report
