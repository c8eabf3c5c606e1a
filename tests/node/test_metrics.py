"""Metrics without BPF against other witnesses: nstat, /proc/net/dev, conntrack and what was sent, in network namespaces."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner import schema
from retina_runner.verification import verify_archive
from tests.lab import Archive, Lab, Run, sh

pytestmark = pytest.mark.root

HOLDER = """
import socket, sys
here, there = sys.argv[1], sys.argv[2]
listener = socket.create_server((here, 7100))
print("listening", flush=True)
held = [listener.accept()[0] for _ in range(int(there))]
print("accepted", flush=True)
sys.stdin.read()
"""
CALLER = """
import socket, sys
held = [socket.create_connection((sys.argv[1], 7100)) for _ in range(int(sys.argv[2]))]
print("connected", flush=True)
sys.stdin.read()
"""


def runbook(options: str, duration: str = "6s", more: str = "") -> str:
    return f"{{name: metrics, duration: {duration}, captures: [{{collect: [{more}{{ebpf: {{{options}}}}}]}}]}}"


def totals(archive: Archive, path: str = "metrics/metrics.json") -> dict[tuple[str, ...], float]:
    """(metric, label values…) to value."""
    return {
        (s.get("metric", m["name"]), *s["labels"].values()): s["value"]
        for m in archive.json(path)["metrics"]
        for s in m["samples"]
    }


def nstat(namespace: str) -> dict[str, int]:
    """Every counter of nstat(8), in the namespace, absolute, without its history file."""
    found: dict[str, int] = json.loads(sh("ip", "netns", "exec", namespace, "nstat", "-a", "-s", "-z", "-j"))["kernel"]
    return found


def as_nstat_names_it(metric: str, labels: list[str]) -> str:
    if metric == "retinarun_protocol_total":
        return labels[0] + labels[1]
    return {"networkobservability_tcp_connection_stats": "TcpExt", "networkobservability_ip_connection_stats": "IpExt"}[
        metric
    ] + labels[0]


def interface(namespace: str, name: str) -> dict[str, int]:
    found = json.loads(sh("ip", "-n", namespace, "-s", "-j", "link", "show", name))[0]["stats64"]
    return {f"{way}_{what}": number for way in ("rx", "tx") for what, number in found[way].items()}


def check(archive: Archive) -> None:
    """What holds for every archive with metrics."""
    checked = verify_archive(archive.path)
    assert not checked.problems
    assert {"metrics/metrics.json", "metrics/metrics.prom", "metrics/series.jsonl"} <= set(archive.members)
    assert schema.violations("manifest", archive.manifest) == []
    described = {m["name"]: m for m in archive.json("metrics/metrics.json")["metrics"]}
    assert all(m["type"] in ("counter", "gauge", "histogram") for m in described.values()), "an undescribed metric"
    last: dict[tuple[str, str], float] = {}
    for line in archive.members["metrics/series.jsonl"].splitlines():
        for sample in json.loads(line)["samples"]:
            key = (sample["metric"], json.dumps(sample["labels"]))
            if described.get(sample["metric"], {"type": "histogram"})["type"] != "gauge":
                assert sample["value"] >= last.get(key, 0), f"{key} fell"
            last[key] = sample["value"]
    final = {
        (s.get("metric", m["name"]), json.dumps(s["labels"])): s["value"]
        for m in described.values()
        for s in m["samples"]
    }
    assert all(final[key] == value for key, value in last.items()), "the series doesn't end at the totals"


def test_every_counter_moves_as_far_as_nstat_and_the_interface_say(lab: Lab, tmp_path: Path) -> None:
    """Nothing else happens in the namespace, so that two witnesses must agree on each of some two hundred counters."""
    before, eth0 = nstat(lab.a), interface(lab.a, "eth0")
    run = Run(runbook("plugins: [linuxutil], interval: 500ms"), tmp_path, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 200)  # a closed port: ICMP comes back, as far as its rate is limited
    lab.send("fd93:0::2", 7000, 100)
    assert run.end() == 0, run.events
    after, eth1 = nstat(lab.a), interface(lab.a, "eth0")
    archive = run.archive()
    check(archive)
    found = totals(archive)
    compared = 0
    for (metric, *labels), value in found.items():
        if metric in ("retinarun_protocol_total", "networkobservability_tcp_connection_stats",
                      "networkobservability_ip_connection_stats"):  # fmt: skip
            name = as_nstat_names_it(metric, labels)
            if name in after:
                moved = after[name] - before.get(name, 0)
                if labels[0] in ("Ip6", "Icmp6"):
                    # Interfaces that come up send multicast reports of their own accord, some outside the window.
                    assert value <= moved, name
                else:
                    compared += 1
                    assert value == moved, name
    assert compared > 150
    assert found["retinarun_protocol_total", "Udp", "OutDatagrams"] == 200
    assert found["retinarun_protocol_total", "Udp6", "OutDatagrams"] == 100
    for name in (
        "rx_bytes",
        "rx_packets",
        "rx_errors",
        "rx_dropped",
        "tx_bytes",
        "tx_packets",
        "tx_errors",
        "tx_dropped",
    ):
        assert found["networkobservability_interface_stats", "eth0", name] <= eth1[name] - eth0[name], name
    assert found["networkobservability_interface_stats", "eth0", "tx_packets"] >= 300
    assert found["networkobservability_interface_stats", "eth0", "tx_bytes"] >= 200 * 142 + 100 * 162
    assert archive.lacking() == {}
    assert {r["status"] for r in archive.manifest["capabilities"]} == {"ok"}
    assert b"# TYPE networkobservability_interface_stats counter" in archive.members["metrics/metrics.prom"]


@pytest.fixture
def connections(lab: Lab) -> Iterator[int]:
    """Three connections from a to a listener on b, held open."""
    started: list[subprocess.Popen[str]] = []

    def start(namespace: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-c", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    def said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    try:
        holder = start(lab.b, HOLDER, "10.93.0.2", "3")
        assert said(holder) == "listening\n"
        assert said(start(lab.a, CALLER, "10.93.0.2", "3")) == "connected\n"
        assert said(holder) == "accepted\n"
        yield 3
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_named_namespaces_are_counted_apart_and_nothing_else_is(lab: Lab, tmp_path: Path, connections: int) -> None:
    """The agent is in neither of them, and has traffic of its own namespace beside it."""
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(f"plugins: [linuxutil], netns: [{lab.a}, {lab.b}]"), tmp_path)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 300)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.sendto(b"x", ("127.0.0.1", 9))
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    found = totals(archive)
    udp, state = "retinarun_protocol_total", "networkobservability_tcp_state"
    assert found[udp, "Udp", "OutDatagrams", lab.a] == found[udp, "Udp", "InDatagrams", lab.b] == 300
    assert found[udp, "Udp", "InDatagrams", lab.a] == found[udp, "Udp", "OutDatagrams", lab.b] == 0
    assert found[state, "ESTABLISHED", lab.a] == found[state, "ESTABLISHED", lab.b] == connections
    assert (found[state, "LISTEN", lab.a], found[state, "LISTEN", lab.b]) == (0, 1)
    assert found["networkobservability_tcp_connection_remote", "AllIPs", lab.a] == connections
    assert found["networkobservability_udp_connection_stats", "ACTIVE", lab.b] == 1
    assert {labels[-1] for labels in found if labels[0] == udp} == {lab.a, lab.b}


def conntrack_statistics(namespace: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in sh("ip", "netns", "exec", namespace, "conntrack", "-S").splitlines():
        for word in line.split():
            name, _, number = word.partition("=")
            found[name] = found.get(name, 0) + int(number)
    return found


def test_conntrack_by_direction_and_failed_insertions(lab: Lab, tmp_path: Path) -> None:
    """Twenty flows that are all to leave by one port: one of them gets it. conntrack(8) is the second witness."""
    lab.inside(lab.a, "sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1")
    lab.inside(lab.a, "iptables", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", "7001", "-j", "SNAT",
               "--to-source", "10.93.0.1:5000")  # fmt: skip
    lab.receive("10.93.0.2", 7000)
    lab.receive("10.93.0.2", 7001)
    before = conntrack_statistics(lab.a)
    lab.send("10.93.0.2", 7000, 70)  # on a connection that is counted on: these aren't in the window
    run = Run(runbook("plugins: [conntrack], interval: 500ms"), tmp_path, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 200)
    refused = _send_each(lab, range(41000, 41020))
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    found = totals(archive)
    after = conntrack_statistics(lab.a)
    events: dict[str, float] = {}
    for (metric, *labels), value in found.items():
        if metric == "retinarun_conntrack_events_total":
            events[labels[0]] = events.get(labels[0], 0) + value
    for event in ("insert_failed", "drop", "early_drop", "invalid"):
        assert events[event] == after[event] - before[event], event
    assert events["insert_failed"] + events["drop"] >= 19
    assert found["networkobservability_conntrack_packets_tx",] == 201
    assert found["networkobservability_conntrack_bytes_tx",] == 200 * 128 + 32
    assert found["networkobservability_conntrack_packets_rx",] == 0
    assert found["networkobservability_conntrack_total_connections",] == 2
    assert found["retinarun_conntrack_limit",] > 0
    assert refused == 19


def _send_each(lab: Lab, sources: range) -> int:
    """One datagram of four bytes from each of these ports; how many the kernel refused to send."""
    script = """
import socket, sys
refused = 0
for source in range(int(sys.argv[1]), int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("", source))
        try:
            door.sendto(b"1234", ("10.93.0.2", 7001))
        except PermissionError:
            refused += 1
print(refused)
"""
    return int(lab.inside(lab.a, sys.executable, "-c", script, str(sources.start), str(sources.stop)))


def test_what_this_node_lacks_is_a_gap_and_no_failure(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook("plugins: [infiniband, softirq, linuxutil]", "2s"), tmp_path, netns=lab.a)
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (gap,) = archive.manifest["skipped"]
    assert (gap["what"], "No such file" in gap["why"]) == ("plugin infiniband", True)
    rows: list[dict[str, Any]] = archive.manifest["capabilities"]
    assert {r["status"] for r in rows if r["plugin"] == "infiniband"} == {"skipped"}
    assert {r["status"] for r in rows if r["plugin"] == "softirq"} == {"ok"}
    found = totals(archive)
    processed = [v for k, v in found.items() if k[:2] == ("retinarun_softnet_total", "processed")]
    assert len(processed) >= 1
    assert any(k[0] == "retinarun_softirq_seconds_total" for k in found)
    assert archive.manifest["collectors"]["ebpf"]["status"] == "done"


def test_no_plugin_at_all_loses_no_other_evidence(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook("plugins: [infiniband]", "2s", more="iptables, "), tmp_path, netns=lab.a)
    assert run.end() == 0, run.events
    archive = run.archive()
    assert archive.manifest["collectors"]["ebpf"]["status"] == "skipped"
    assert archive.manifest["collectors"]["iptables"]["status"] == "done"
    assert not any(name.startswith("metrics/") for name in archive.members)


def test_a_namespace_that_is_not_there_is_named(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook(f"plugins: [linuxutil], netns: [{lab.a}, no-such-place]", "2s"), tmp_path, netns=lab.b)
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (failed,) = [r for r in archive.manifest["capabilities"] if r["status"] != "ok"]
    assert "no-such-place" in failed["why"]
    assert failed["hint"] == "ip netns list"
    assert any(gap["what"] == "plugin linuxutil" for gap in archive.manifest["skipped"])
    assert {k[-1] for k in totals(archive) if k[0] == "networkobservability_tcp_state"} == {lab.a}


def test_two_entries_have_their_own_files(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        runbook("plugins: [softirq], interval: 500ms", "2s", more="{ebpf: {plugins: [linuxutil]}}, "),
        tmp_path,
        netns=lab.a,
    )
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    assert "metrics/ebpf-2/metrics.json" in archive.members
    assert any(k[0] == "retinarun_softnet_total" for k in totals(archive, "metrics/ebpf-2/metrics.json"))
    assert not any(k[0] == "retinarun_softnet_total" for k in totals(archive))
