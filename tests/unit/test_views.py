"""The views: golden texts for small runs, and what holds for any: bounded length, no markup, no control characters."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from xml.etree import ElementTree

import pytest
from rich.console import Console as RichConsole

from retina_runner.folding import Fold, fold
from retina_runner.report import RunReport
from retina_runner.views import View
from retina_runner.views.console import Console
from retina_runner.views.jsonlines import JsonLines
from retina_runner.views.junit import junit
from retina_runner.views.lines import Lines
from retina_runner.views.table import table
from tests.unit.test_report import TIME, Event, at, begun, dead, delivered, packed, start, unreachable, upload


def show(view: View, events: Iterable[Event]) -> RunReport:
    folding = Fold()
    for event in events:
        folding.add(event)
        view.event(event, folding.report())
    report = folding.report()
    view.close(report)
    return report


def run_end(status: int) -> Event:
    return {"event": "run-end", "time": TIME, "exit_code": status}


TWO = [
    start("a", "b"),
    *begun("a"), *begun("b"), {"event": "t0", "time": TIME, "t0": "2026-11-23T03:17:02.000000Z", "lead_s": 2.0},
    *packed("a", "lossy", dropped=12), at("a", "verified", ok=True, problems=[]), upload("a", "failed"), at("a", "removed"),
    at("b", "skipped", collector="ebpf", what="bcc", why="not installed", hint="apt-get install python3-bpfcc"),
    at("b", "node-failed", what="agent", why="it is gone", hint="its log is /var/tmp/b/agent.log", remains="/var/tmp/b"),
    run_end(3),
]  # fmt: skip

TABLE = """\
NODE  STATE      VERDICT  PACKETS  DROPPED  SIZE  ARCHIVE
a     collected  lossy         80       12  900B  runs/q/archives/q-a.tar.gz
b     failed     -              -        -     -  -

b: not collected: ebpf: bcc: not installed
    apt-get install python3-bpfcc
b: failed: agent: it is gone
    its log is /var/tmp/b/agent.log
a: not stored in s3: 403
b: left on the node: /var/tmp/b
to remove what is left: retina-run cleanup runs/q

run directory: runs/q
exit status 3: ended, but some node or collector failed, or was cut short"""


def test_the_table_says_what_is_there_what_is_not_and_what_to_do_next() -> None:
    assert table(fold(TWO)) == TABLE


def test_the_table_says_the_same_thing_of_many_nodes_once() -> None:
    names = [f"n{i}" for i in range(30)]
    gap = {"collector": "ebpf", "what": "bcc", "why": "not installed"}
    events = [start(*names), *(e for n in names for e in (at(n, "skipped", **gap), *delivered(n)))]
    assert [line for line in table(fold(events)).splitlines() if "bcc" in line] == [
        "all 30 nodes: not collected: ebpf: bcc: not installed"
    ]
    some = table(fold([e for e in events if e.get("id") != "n0" or e["event"] != "skipped"]))
    assert [line for line in some.splitlines() if "bcc" in line] == [
        "n1, n2, n3, n4, n5 and 24 more: not collected: ebpf: bcc: not installed"
    ]


def test_the_table_tells_the_numbers_of_a_loss() -> None:
    events = [start("a"), *delivered("a", "lossy", dropped=12)]
    archive = next(e for e in events if e["event"] == "archive")
    archive["reasons"] = ["q-a.pcap: 12 of 5000 packets dropped by kernel"]
    assert "a: lossy: q-a.pcap: 12 of 5000 packets dropped by kernel" in table(fold(events)).splitlines()


def test_lines_of_a_small_run() -> None:
    out = io.StringIO()
    show(Lines(out), [start("a"), *delivered("a")])
    lines = out.getvalue().splitlines()
    assert lines[:4] == [
        "03:17:00 checked: 1/1 node",
        "03:17:00 ready: 1/1 node",
        "03:17:00 capturing: 1/1 node",
        "03:17:00 collecting: 1/1 node",
    ]
    assert "03:17:00 collected: 1/1 node" in lines
    assert lines[-4:-2] == [
        "NODE  STATE      VERDICT   PACKETS  DROPPED  SIZE  ARCHIVE",
        "a     collected  complete       80        0  900B  runs/q/archives/q-a.tar.gz",
    ]


def test_lines_do_not_grow_with_the_nodes() -> None:
    def transitions(count: int) -> list[str]:
        out, folding = io.StringIO(), Fold()
        view = Lines(out)
        names = [f"n{i}" for i in range(count)]
        for event in [start(*names), *(e for row in zip(*(delivered(n) for n in names), strict=True) for e in row)]:
            folding.add(event)
            view.event(event, folding.report())
        return out.getvalue().splitlines()

    assert len(transitions(100)) == len(transitions(1)) < 10
    assert "03:17:00 capturing: 100/100 nodes" in transitions(100)


def test_lines_tell_nothing_again_of_a_run_whose_archives_are_only_stored_anew() -> None:
    out = io.StringIO()
    lines = Lines(out)
    before = [start("a"), *delivered("a")]
    report = show(Lines(io.StringIO()), before)
    lines.event({"event": "resumed", "ids": []}, report)
    lines.event(at("a", "upload", target="s3 b", state="stored"), report)
    assert out.getvalue() == ""


def test_lines_tell_a_lost_connection_when_it_happens() -> None:
    out = io.StringIO()
    show(Lines(out), [start("a"), *begun("a"), at("a", "lost", why="timed out")])
    assert "03:17:00 a: lost: timed out" in out.getvalue().splitlines()


def test_quiet_is_the_table_alone() -> None:
    out = io.StringIO()
    show(Lines(out, quiet=True), TWO)
    assert out.getvalue() == TABLE + "\n"


def test_json_lines_are_the_events() -> None:
    out = io.StringIO()
    show(JsonLines(out), TWO)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == TWO


STRANGE = "[red]n\x1b[31m\u202e\n<&\ud800"


@pytest.mark.parametrize("text", [STRANGE, "[/]", "\\[", ""])
def test_no_view_trips_over_strange_words(text: str) -> None:
    events = [
        start("a"),
        *begun("a"),
        at("a", "warning", why=text),
        at("a", "node-failed", what=text, why=text, hint=text),
    ]
    out, screen = io.StringIO(), io.StringIO()
    report = show(Lines(out), events)
    show(Console(RichConsole(file=screen, force_terminal=True, width=100, height=30, color_system=None)), events)
    for shown in (out.getvalue(), table(report)):
        assert not {c for c in shown if not c.isprintable()} - {"\n"}
    assert "\x1b[31m" not in screen.getvalue()
    assert ElementTree.fromstring(junit(report).encode()).tag == "testsuites"


def test_a_node_s_name_is_not_markup_on_the_console() -> None:
    screen = io.StringIO()
    show(
        Console(RichConsole(file=screen, force_terminal=True, width=100, height=30)),
        [start("web[bold]1"), *unreachable("web[bold]1")],
    )
    assert "web[bold]1" in screen.getvalue()


def test_the_console_leaves_the_table_behind() -> None:
    screen = io.StringIO()
    show(Console(RichConsole(file=screen, force_terminal=True, width=100, height=30, color_system=None)), TWO)
    assert screen.getvalue().endswith(TABLE + "\n")


def test_junit_reads_back() -> None:
    events = [*TWO[:-1], at("a", "collector", collector="iptables", status="failed", why="xtables lock"),
              at("b", "collector", collector="ebpf", status="skipped", why="bcc: not installed"), run_end(3)]  # fmt: skip
    root = ElementTree.fromstring(junit(fold(events)).encode())
    (suite,) = root.findall("testsuite")
    outcomes = {
        (c.get("classname"), c.get("name")): [(o.tag, o.get("message")) for o in c] for c in suite.findall("testcase")
    }
    assert outcomes == {
        ("a", "tcpdump"): [],
        ("a", "iptables"): [("failure", "xtables lock")],
        ("a", "archive"): [],
        ("a", "upload s3"): [("failure", "403")],
        ("b", "tcpdump"): [],
        ("b", "ebpf"): [("skipped", "bcc: not installed")],
        ("b", "archive"): [("error", "agent: it is gone")],
    }
    for element in (root, suite):
        assert {k: element.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
            "tests": "7", "failures": "2", "errors": "1", "skipped": "1",
        }  # fmt: skip
    assert suite.get("name") == "q"


def test_junit_has_a_suite_a_capture() -> None:
    events = [start("a", "b"), *delivered("a"), *dead("b")]
    events[0]["nodes"][0]["capture"], events[0]["nodes"][1]["capture"] = "clients", "database"
    root = ElementTree.fromstring(junit(fold(events)).encode())
    assert [(s.get("name"), s.get("errors")) for s in root] == [("clients", "0"), ("database", "1")]
