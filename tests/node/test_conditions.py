"""Conditions on real counters: a symptom that is there is captured, one that isn't costs nothing, expectations are judged."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retina_runner.errors import Exit
from tests.lab import Lab, Run

pytestmark = pytest.mark.root

SYMPTOM = """
name: symptom
duration: 6s
when: {condition: '%s', over: %s}
expect: ['delta("Udp.NoPorts") == 0', 'packets() >= 0', 'delta("No.SuchCounter") == 0']
captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp}}]}]
"""


def test_a_node_without_the_symptom_is_skipped_and_that_is_no_failure(lab: Lab, tmp_path: Path) -> None:
    run = Run(SYMPTOM % ('delta("Udp.NoPorts") > 0', "1s"), tmp_path, netns=lab.a)
    assert run.end() == 0, run.events
    (node,) = run.summary()["nodes"]
    assert node["state"] == "skipped"
    assert node["skipped"] == [{"what": "when", "why": "condition not met: delta(Udp.NoPorts) = 0", "hint": ""}]
    assert not run.all("collector"), "nothing was prepared"
    assert not list((run.directory / "archives").iterdir())
    (case,) = ElementTree.parse(run.directory / "junit.xml").iter("testcase")
    assert case.find("skipped") is not None
    assert not run.work.exists()


def test_a_symptom_is_captured_and_what_is_not_as_expected_is_found(lab: Lab, tmp_path: Path) -> None:
    run = Run(SYMPTOM % ('value("Udp.NoPorts") >= 0', "100ms"), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 5353, 20)
    assert run.end() == 7, run.events
    told = {e["expression"]: e for e in run.all("expectation")}
    assert told['delta("Udp.NoPorts") == 0'] == {**told['delta("Udp.NoPorts") == 0'], "ok": False,
                                                 "why": "delta(Udp.NoPorts) = 20"}  # fmt: skip
    assert told["packets() >= 0"]["ok"]
    assert not told['delta("No.SuchCounter") == 0']["ok"]
    (node,) = run.summary()["nodes"]
    assert [e["ok"] for e in node["expectations"]] == [False, True, False]
    cases = ElementTree.parse(run.directory / "junit.xml").iter("testcase")
    failed = [c.get("name") for c in cases if c.find("failure") is not None]
    assert failed == ['expect delta("Udp.NoPorts") == 0', 'expect delta("No.SuchCounter") == 0']
    assert any("not as expected" in w for w in run.archive().manifest["warnings"])


def test_a_rule_that_packets_take_is_a_symptom(lab: Lab, tmp_path: Path) -> None:
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "5353", "-j", "DROP")
    text = SYMPTOM.replace("delta(\"Udp.NoPorts\") == 0', 'packets() >= 0', 'delta(\"No.SuchCounter\") == 0",
                           "rule_delta(\"--dport 5353\") == 20', 'lossless() == 1")  # fmt: skip
    run = Run(text % ('rule_delta("DROP") == 0', "100ms"), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 5353, 20)
    run.end()
    archive = run.archive()
    late = archive.manifest["verdict"] != "complete"
    assert archive.lacking() == {}
    told = {e["expression"]: e["ok"] for e in run.all("expectation")}
    assert told == {'rule_delta("--dport 5353") == 20': True, "lossless() == 1": not late}
    assert run.status == (Exit.FINDINGS if late else 0), run.events


def test_a_counter_that_the_node_does_not_have_fails_it_with_the_nearest_name(lab: Lab, tmp_path: Path) -> None:
    run = Run(SYMPTOM % ('value("Udp.NoPort") >= 0', "100ms"), tmp_path, netns=lab.b)
    assert run.end() == 4, run.events
    (node,) = run.summary()["nodes"]
    assert "no counter Udp.NoPort" in node["trouble"]["why"]
    assert "Udp.NoPorts" in node["trouble"]["hint"]


METRICS = """
name: reason
duration: 6s
%s
captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp}}, {ebpf: {plugins: [dropreason], scope: netns}}]}]
"""
DROPS = 'delta("networkobservability_drop_count", reason="%s")'


def test_a_drop_reason_is_expected_or_not(lab: Lab, tmp_path: Path) -> None:
    """By the kernel's own reason, counted from T0 by the plan's own plugin; one that never came is none, not unknown."""
    expect = [DROPS % "NO_SOCKET" + " == 20", DROPS % "SOCKET_RCVBUFF" + " == 0", DROPS % "NO_SOCKET" + " == 0"]
    run = Run(METRICS % ("expect: " + json.dumps(expect)), tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 5353, 20)
    assert run.end() == 7, run.events
    assert [(e["ok"], e["why"].rpartition(" = ")[2]) for e in run.all("expectation")] == [
        (True, "20"), (True, "0"), (False, "20"),
    ]  # fmt: skip


def test_a_node_without_the_drop_reason_is_skipped(lab: Lab, tmp_path: Path) -> None:
    run = Run(METRICS % ("when: {condition: '" + DROPS % "NO_SOCKET" + " > 0', over: 200ms}"), tmp_path, netns=lab.b)
    assert run.end() == 0, run.events
    assert run.summary()["nodes"][0]["state"] == "skipped"
    assert not run.work.exists()


def test_a_drop_reason_triggers_the_flight_recorder(lab: Lab, tmp_path: Path) -> None:
    # A look may come between two of the datagrams: the event is the first look that has seen all of them.
    all_of_them = DROPS % "NO_SOCKET" + " > 0 and " + DROPS.replace("delta", "value") % "NO_SOCKET" + " >= 20"
    trigger = f"trigger: {{condition: '{all_of_them}', every: 200ms, before: 10s, after: 0s, count: 1}}"
    run = Run(METRICS.replace("duration: 6s", "duration: 10m") % trigger, tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 5353, 20)
    assert run.end() == 0, run.events
    (recorded,) = [a for a in run.archives() if "trigger" in a.manifest]
    assert len([packet for _, packet in recorded.pcap() if packet[36:38] == (5353).to_bytes(2, "big")]) == 20


def test_events_keep_to_their_schema(lab: Lab, tmp_path: Path) -> None:
    from retina_runner import schema

    run = Run(SYMPTOM % ('value("Udp.NoPorts") >= 0', "100ms"), tmp_path, netns=lab.b)
    assert run.end() == 7, run.events
    for line in (run.directory / "events.jsonl").read_text().splitlines():
        assert schema.violations("event", json.loads(line)) == [], line
    assert schema.violations("run", run.summary()) == []
    for plan in (run.directory / "plans").iterdir():
        assert schema.violations("plan", json.loads(plan.read_text())) == []
