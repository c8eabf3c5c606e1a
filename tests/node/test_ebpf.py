"""BPF plugins against the truth: what was sent, what a rule counted, what nstat, the interface and the pcap say.

Two (or three) network namespaces, everything counted in them alone; each run provokes many things at once, as a start
takes longer than what it measures.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.agent.ebpf import syscalls
from tests.lab import REPOSITORY, Archive, Lab, Run, eventually, processes, sh
from tests.node.test_metrics import check, totals

pytestmark = pytest.mark.root

Found = dict[tuple[str, ...], float]

SCENE = """
import json, os, socket, struct, sys, time
UDP4 = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
UDP6 = lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
def send(door, address, count, size=100):
    refused = 0
    for number in range(count):
        try:
            door.sendto(bytes(size), address)
        except ConnectionRefusedError:
            refused += 1
        except PermissionError:
            refused += 1
        if number % 50 == 49:
            time.sleep(0.002)
    return refused
"""
QUERY_TYPES = {"A": 1, "AAAA": 28, "MX": 15, "TXT": 16, "HTTPS": 65, "TYPE999": 999}
DNS_SERVER = (
    SCENE
    + """
import threading
def answer(query):
    code = 3 if b"nothere" in query else 2 if b"broken" in query else 0
    return query[:2] + bytes([0x84, 0x80 | code]) + query[4:]
def udp(door):
    while True:
        query, peer = door.recvfrom(4096)
        if b"silence" not in query:
            door.sendto(answer(query), peer)
for family, address in ((socket.AF_INET, "10.93.0.2"), (socket.AF_INET6, "fd93:0::2")):
    door = socket.socket(family, socket.SOCK_DGRAM)
    door.bind((address, 53))
    threading.Thread(target=udp, args=(door,), daemon=True).start()
listener = socket.create_server(("10.93.0.2", 53))
print("ready", flush=True)
while True:
    with listener.accept()[0] as peer:
        while (head := peer.recv(2)):
            query = peer.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
            given = answer(query)
            peer.sendall(struct.pack("!H", len(given)) + given)
"""
)
DNS_CLIENT = (
    SCENE
    + """
def question(number, name, kind):
    labels = b"".join(bytes([len(p)]) + p for p in name.encode().split(b"."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + bytes(1) + struct.pack("!HH", kind, 1)
number = 0
for over, name, kind, count in json.loads(sys.argv[1]):
    if over == "tcp":
        with socket.create_connection(("10.93.0.2", 53)) as door:
            for _ in range(count):
                number += 1
                query = question(number, name, kind)
                door.sendall(struct.pack("!H", len(query)) + query)
                door.recv(struct.unpack("!H", door.recv(2, socket.MSG_WAITALL))[0], socket.MSG_WAITALL)
        continue
    door = UDP4() if over == "udp4" else UDP6()
    door.connect(("10.93.0.2", 53) if over == "udp4" else ("fd93:0::2", 53))
    door.settimeout(60)
    for _ in range(count):
        number += 1
        door.send(question(number, name, kind))
        if "silence" not in name:
            door.recv(4096)
"""
)
TCP_SERVER = (
    SCENE
    + """
listener = socket.create_server((sys.argv[1], 7100), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, backlog=1000)
print("ready", flush=True)
while True:
    with listener.accept()[0] as peer:
        while peer.recv(1 << 20):
            pass
"""
)
TCP_CLIENT = (
    SCENE
    + """
address, connections, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(connections):
    with socket.create_connection((address, 7100)) as door:
        door.sendall(bytes(size))
        door.shutdown(socket.SHUT_WR)
        door.recv(1)
"""
)


@pytest.fixture
def servers(lab: Lab) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def serve(started: list[subprocess.Popen[str]], namespace: str, program: str, *arguments: str) -> None:
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def runbook(lab: Lab, plugins: str, duration: str = "8s", more: str = "", options: str = "") -> str:
    return (
        f"{{name: bpf, duration: {duration}, captures: [{{collect: [{more}"
        f"{{ebpf: {{plugins: [{plugins}], netns: [{lab.a}, {lab.b}], {options}}}}}]}}]}}"
    )


def drops(found: Found, namespace: str) -> dict[tuple[str, str], float]:
    """(Retina's reason, direction) to packets, in that namespace."""
    return {
        (k[1], k[2]): v for k, v in found.items() if k[0] == "networkobservability_drop_count" and k[3] == namespace
    }


def check_bpf(archive: Archive) -> Found:
    check(archive)
    rows = archive.manifest["capabilities"]
    assert {r["status"] for r in rows} == {"ok"}, rows
    verdict = archive.verdict("metrics.json")
    assert verdict["verdict"] == "complete", verdict
    return totals(archive)


def test_drops_each_under_its_own_reason(lab: Lab, tmp_path: Path) -> None:
    """What iptables dropped, closed ports, no route, TTL, a full receive buffer: counted exactly, and nothing beside."""
    lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for target in ("10.94.0.0/24", "10.95.0.0/24"):
        lab.inside(lab.a, "ip", "route", "add", target, "via", "10.93.0.2")
    lab.inside(lab.b, "ip", "route", "add", "10.94.0.0/24", "via", "10.93.0.1")
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    lab.inside(lab.b, "ip6tables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    lab.inside(lab.a, "iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "7003", "-j", "DROP")
    lazy = subprocess.Popen(
        ["ip", "netns", "exec", lab.b, sys.executable, "-c",
         "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
         "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)\ns.bind(('10.93.0.2', 7004))\n"
         "print('ready', flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert lazy.stdout is not None
        assert lazy.stdout.readline() == "ready\n"
        run = Run(
            runbook(lab, "dropreason, linuxutil", more=f"{{iptables: {{netns: {lab.b}, nft: false, ipset: false}}}}, "),
            tmp_path,
        )
        run.wait_for("window")
        lab.inside(lab.a, sys.executable, "-c", SCENE + """
send(UDP4(), ("10.93.0.2", 7001), 1000)
send(UDP6(), ("fd93:0::2", 7001), 300)
send(UDP4(), ("10.93.0.2", 7002), 200)
assert send(UDP4(), ("10.93.0.2", 7003), 70) == 70
send(UDP4(), ("10.93.0.2", 7004), 400)
send(UDP4(), ("10.95.0.9", 7005), 100)
door = UDP4()
door.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
send(door, ("10.94.0.9", 7005), 150)
""")  # fmt: skip
        assert run.end() == 0, run.events
    finally:
        lazy.kill()
        lazy.communicate()
    archive = run.archive()
    found = check_bpf(archive)
    at_b = drops(found, lab.b)
    full = found["retinarun_protocol_total", "Udp", "RcvbufErrors", lab.b]
    assert full > 0
    assert at_b == {
        ("IPTABLE_RULE_DROP", "ingress"): 1300,
        ("NO_SOCKET", "ingress"): 200,
        ("SOCKET_RCVBUFF", "ingress"): full,
        ("IP_INNOROUTES", "ingress"): 100,
        ("IP_INHDR", "ingress"): 150,
    }
    # A's own rule, and the ICMP errors that its unconnected sockets have no ear for.
    assert drops(found, lab.a)["IPTABLE_RULE_DROP", "egress"] == 70
    rules = archive.json("state/delta/iptables.json")["sources"]
    (counted,) = [r["packets"] for r in rules["iptables-nft"]["rules"] if "7001" in r["text"]]
    family = {
        k[3]: v for k, v in found.items() if k[:3] == ("retinarun_drop_packets_total", "NETFILTER_DROP", "ingress")
    }
    assert (counted, family["ipv4"], family["ipv6"]) == (1000, 1000, 300)
    (size,) = [
        v for k, v in found.items()
        if k[0] == "retinarun_drop_bytes_total" and k[1] == "NETFILTER_DROP" and k[3] == "ipv4" and k[2] == "ingress"
    ]  # fmt: skip
    assert size == 1000 * 128
    locations = {k[5] for k in found if k[0] == "retinarun_drop_packets_total" and k[1] == "NETFILTER_DROP"}
    assert locations <= {"nft_do_chain", "nf_hook_slow"}, locations
    (program,) = [p for p in archive.manifest["programs"] if p["program"] == "on_kfree_skb"]
    assert program["run_count"] >= 2220
    assert program["run_time_ns"] > 0


def test_forwarded_packets_are_what_the_interface_counted(
    lab: Lab, tmp_path: Path, servers: list[subprocess.Popen[str]]
) -> None:
    """Both directions, UDP of both families and TCP with and without segmentation offload; flows to the byte."""
    serve(servers, lab.b, TCP_SERVER, "10.93.0.2")
    lab.receive("10.93.0.2", 7000)
    lab.receive("fd93:0::2", 7000)
    run = Run(runbook(lab, "packetforward, packetparser, linuxutil"), tmp_path)
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 1000)
    lab.send("fd93:0::2", 7000, 400, size=200)
    lab.inside(lab.a, sys.executable, "-c", TCP_CLIENT, "10.93.0.2", "3", "2000000")
    lab.inside(lab.a, "ethtool", "-K", "eth0", "tso", "off", "gso", "off")
    lab.inside(lab.a, sys.executable, "-c", TCP_CLIENT, "10.93.0.2", "2", "1000000")
    assert run.end() == 0, run.events
    found = check_bpf(run.archive())
    for namespace in (lab.a, lab.b):
        for way, column in (("egress", "tx"), ("ingress", "rx")):
            for what in ("packets", "bytes"):
                counted = found[f"retinarun_forward_{what}_total", "eth0", way, namespace]
                interface = found["networkobservability_interface_stats", "eth0", f"{column}_{what}", namespace]
                assert counted == interface, (namespace, way, what)
            segments = found["retinarun_forward_segments_total", "eth0", way, namespace]
            assert segments >= found["retinarun_forward_packets_total", "eth0", way, namespace]
    # With offload, the wire has many more packets than the stack.
    assert (
        found["retinarun_forward_segments_total", "eth0", "egress", lab.a]
        > found["retinarun_forward_packets_total", "eth0", "egress", lab.a]
    )

    def at(metric: str, labels: tuple[str, ...]) -> float:
        key = (metric, *labels)
        return found[key]

    for here, way in ((lab.a, "egress"), (lab.b, "ingress")):
        flow4 = (way, "10.93.0.1", "40000", "10.93.0.2", "7000", "udp", "eth0", here)
        flow6 = (way, "fd93::1", "40000", "fd93::2", "7000", "udp", "eth0", here)
        assert at("networkobservability_adv_forward_count", flow4) == 1000
        assert at("networkobservability_adv_forward_bytes", flow4) == 1000 * (100 + 42)
        assert at("networkobservability_adv_forward_count", flow6) == 400
        assert at("networkobservability_adv_forward_bytes", flow6) == 400 * (200 + 62)
        first, last = (
            at("retinarun_flow_first_seen_seconds", flow4),
            at("retinarun_flow_last_seen_seconds", flow4),
        )
        assert first < last < first + 60
        opened = [
            v
            for k, v in found.items()
            if k[:3] == ("networkobservability_adv_tcpflags_count", "SYN", way) and k[-1] == here
        ]
        assert opened == [1] * 5
    assert run.archive().manifest["verdicts"][0]["counts"]["flows_evicted"] == 0


@pytest.mark.parametrize("family", ["10.93.0.2", "fd93:0::2"])
def test_retransmissions_are_as_many_as_nstat_says(
    lab: Lab, tmp_path: Path, servers: list[subprocess.Popen[str]], family: str
) -> None:
    """A rule that drops every fortieth packet makes TCP send again; connections opened, accepted, refused and reset."""
    serve(servers, lab.b, TCP_SERVER, family)
    tables = "ip6tables" if ":" in family else "iptables"
    lab.inside(lab.b, tables, "-A", "INPUT", "-p", "tcp", "--dport", "7100", "-m", "length", "--length", "500:65535",
               "-m", "statistic", "--mode", "nth", "--every", "40", "--packet", "0", "-j", "DROP")  # fmt: skip
    run = Run(runbook(lab, "tcpretrans, tcpconnect, linuxutil"), tmp_path)
    run.wait_for("window")
    lab.inside(lab.a, "ethtool", "-K", "eth0", "tso", "off", "gso", "off")
    lab.inside(lab.a, sys.executable, "-c", TCP_CLIENT, family, "10", "200000")
    lab.inside(lab.a, sys.executable, "-c", SCENE + f"""
for _ in range(20):
    try:
        socket.create_connection(("{family}", 7999))
    except ConnectionRefusedError:
        continue
    raise SystemExit("nobody refused")
""")  # fmt: skip
    assert run.end() == 0, run.events
    found = check_bpf(run.archive())
    sent_again = sum(
        v for k, v in found.items()
        if k[0] == "retinarun_tcp_retransmitted_segments_total" and k[1] in ("data", "syn") and k[-1] == lab.a
    )  # fmt: skip
    assert sent_again == found["retinarun_protocol_total", "Tcp", "RetransSegs", lab.a]
    assert sent_again >= 1
    by_flow = [v for k, v in found.items() if k[0] == "networkobservability_adv_tcpretrans_count" and k[-1] == lab.a]
    assert sum(by_flow) == sent_again
    version = "ipv6" if ":" in family else "ipv4"
    assert found["retinarun_tcp_connections_total", "connected", version, lab.a] == 10
    assert found["retinarun_tcp_connections_total", "accepted", version, lab.b] == 10
    assert found["retinarun_tcp_connect_failures_total", "ECONNREFUSED", version, lab.a] == 20
    assert found["retinarun_tcp_handshake_seconds_count", lab.a] == 10
    assert found["retinarun_tcp_handshake_seconds_bucket", lab.a, "+Inf"] == 10
    resets = {k[1]: 0.0 for k in found if k[0] == "retinarun_tcp_resets_total"}
    for key, value in found.items():
        if key[0] == "retinarun_tcp_resets_total" and key[-1] == (lab.b if key[1] == "sent" else lab.a):
            resets[key[1]] += value
    assert resets == {"sent": 20, "received": 20}
    assert found["retinarun_protocol_total", "Tcp", "OutRsts", lab.b] == 20


def test_dns_by_type_and_code_each_message_once(lab: Lab, tmp_path: Path, servers: list[subprocess.Popen[str]]) -> None:
    """A server of our own, asked over UDP and TCP, IPv4 and IPv6; both ends count the same."""
    serve(servers, lab.b, DNS_SERVER)
    asked = [
        ("udp4", "www.example", 1, 25), ("udp4", "www.example", 28, 10), ("udp4", "nothere.example", 1, 7),
        ("udp6", "mail.example", 15, 9), ("udp6", "broken.example", 16, 4), ("tcp", "www.example", 65, 6),
        ("udp4", "silence.example", 999, 3), ("tcp", "nothere.example", 1, 2),
    ]  # fmt: skip
    run = Run(runbook(lab, "dns"), tmp_path)
    run.wait_for("window")
    lab.inside(lab.a, sys.executable, "-c", DNS_CLIENT, json.dumps(asked))
    assert run.end() == 0, run.events
    found = check_bpf(run.archive())
    request, response = "networkobservability_dns_request_count", "networkobservability_dns_response_count"
    for here in (lab.a, lab.b):
        assert {k[1:3]: v for k, v in found.items() if k[0] == request and k[-1] == here} == {
            ("A", "udp"): 32, ("AAAA", "udp"): 10, ("MX", "udp"): 9, ("TXT", "udp"): 4, ("HTTPS", "tcp"): 6,
            ("TYPE999", "udp"): 3, ("A", "tcp"): 2,
        }  # fmt: skip
        assert {k[1:4]: v for k, v in found.items() if k[0] == response and k[-1] == here} == {
            ("A", "NOERROR", "udp"): 25, ("A", "NXDOMAIN", "udp"): 7, ("AAAA", "NOERROR", "udp"): 10,
            ("MX", "NOERROR", "udp"): 9, ("TXT", "SERVFAIL", "udp"): 4, ("HTTPS", "NOERROR", "tcp"): 6,
            ("A", "NXDOMAIN", "tcp"): 2,
        }  # fmt: skip
        assert found["retinarun_dns_latency_seconds_count", here] == 63
        assert found["retinarun_dns_unanswered", here] == 3


def test_three_witnesses_agree_on_one_loss(lab: Lab, tmp_path: Path) -> None:
    """Sender's pcap minus receiver's, the rule's counter, and dropreason: 500 = 500 = 500; three runs side by side."""
    far = f"{lab.b}-far"
    sh("ip", "netns", "add", far)
    try:
        sh("ip", "-n", lab.b, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", far)
        for namespace, address, device in ((lab.b, "10.94.0.1/24", "eth1"), (far, "10.94.0.2/24", "eth0")):
            sh("ip", "-n", namespace, "addr", "add", address, "dev", device)
            sh("ip", "-n", namespace, "link", "set", device, "up")
        sh("ip", "-n", far, "route", "add", "default", "via", "10.94.0.1")
        sh("ip", "-n", lab.a, "route", "add", "10.94.0.0/24", "via", "10.93.0.2")
        lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.inside(far, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7000", "-j", "ACCEPT")
        lab.inside(lab.b, "iptables", "-A", "FORWARD", "-p", "udp", "--dport", "7000", "-m", "statistic", "--mode", "nth",
                   "--every", "2", "--packet", "0", "-j", "DROP")  # fmt: skip
        tap = "{name: tap, duration: 14s, captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp port 7000}}]}]}"
        runs = []
        for name, namespace, text in (
            ("sender", lab.a, tap),
            ("receiver", far, tap),
            ("router", lab.b, "{name: router, duration: 14s, captures: [{collect: [iptables, {ebpf: "
                              "{plugins: [dropreason], scope: netns}}]}]}"),
        ):  # fmt: skip
            (tmp_path / name).mkdir()
            runs.append(Run(text, tmp_path / name, netns=namespace))
        for run in runs:
            run.wait_for("window")
        lab.send("10.94.0.2", 7000, 1000)
        for run in runs:
            assert run.end() == 0, run.events
        sender, receiver, router = (run.archive() for run in runs)
        lost = len(sender.pcap()) - len(receiver.pcap())
        rules = router.json("state/delta/iptables.json")["sources"]["iptables-nft"]["rules"]
        (dropped,) = [r["packets"] for r in rules if "7000" in r["text"]]
        counted = totals(router)["networkobservability_drop_count", "IPTABLE_RULE_DROP", "ingress"]
        assert len(sender.pcap()) == 1000
        assert (lost, dropped, counted) == (500, 500, 500)
    finally:
        sh("ip", "netns", "del", far)


def test_without_a_scope_the_whole_node_is_counted_and_the_namespace_named(lab: Lab, tmp_path: Path) -> None:
    """Two runs at once: one of the node, one of another namespace; neither sees the other's maps."""
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    texts = {
        "node": "{name: node, duration: 8s, captures: [{collect: [{ebpf: {plugins: [dropreason]}}]}]}",
        "other": "{name: other, duration: 8s, captures: [{collect: [{ebpf: {plugins: [dropreason], netns: [ALONE]}}]}]}".replace(
            "ALONE", lab.a
        ),
    }
    runs = {}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        runs[name] = Run(text, tmp_path / name)
    for run in runs.values():
        run.wait_for("window")
    lab.send("10.93.0.2", 7001, 321)
    for run in runs.values():
        assert run.end() == 0, run.events
    node, other = totals(runs["node"].archive()), totals(runs["other"].archive())
    (counted,) = [
        v for k, v in node.items()
        if k[:2] == ("retinarun_drop_packets_total", "NETFILTER_DROP") and k[-1] == lab.b
    ]  # fmt: skip
    assert counted == 321
    assert node["networkobservability_drop_count", "IPTABLE_RULE_DROP", "ingress"] >= 321
    assert not any(k[1] == "IPTABLE_RULE_DROP" for k in other if k[0] == "networkobservability_drop_count")


def test_flows_that_do_not_fit_are_counted_and_the_verdict_says_so(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(runbook(lab, "packetparser", options="flow_entries: 64"), tmp_path)
    run.wait_for("window")
    lab.inside(lab.a, sys.executable, "-c", SCENE + """
for _ in range(400):
    send(UDP4(), ("10.93.0.2", 7000), 1)
""")  # fmt: skip
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    verdict = archive.verdict("metrics.json")
    assert verdict["verdict"] == "lossy"
    assert verdict["counts"]["flows_evicted"] >= 400 - 64
    assert any("flows_evicted" in reason for reason in verdict["reasons"])


def documented() -> dict[str, str]:
    """The example of docs/metrics.md, as it stands there: c and json."""
    return dict(re.findall(r"```(c|json)\n(.*?)```", (REPOSITORY / "docs" / "metrics.md").read_text(), re.DOTALL))


def test_a_plugin_of_ones_own(lab: Lab, tmp_path: Path, servers: list[subprocess.Popen[str]]) -> None:
    """The documented one, beside a shipped one, in the same run."""
    for ending, text in documented().items():
        (tmp_path / f"slow-start.{ending}").write_text(text)
    serve(servers, lab.b, TCP_SERVER, "10.93.0.2")
    run = Run(runbook(lab, "tcpconnect", options="files: [./slow-start.c]"), tmp_path)
    run.wait_for("window")
    lab.inside(lab.a, sys.executable, "-c", TCP_CLIENT, "10.93.0.2", "4", "1000")
    assert run.end() == 0, run.events
    found = check_bpf(run.archive())
    assert found["myteam_tcp_states_total", "ESTABLISHED"] == 8
    assert found["retinarun_tcp_connections_total", "connected", "ipv4", lab.a] == 4


def test_a_plugin_that_does_not_compile_is_told_with_the_compilers_words(lab: Lab, tmp_path: Path) -> None:
    given = documented()
    (tmp_path / "broken.c").write_text(given["c"].replace("u64 sk =", "u64 sk = nonsense +"))
    (tmp_path / "broken.json").write_text(given["json"])
    run = Run(runbook(lab, "dropreason", "2s", options="files: [./broken.c]"), tmp_path)
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    rows = {r["plugin"]: r for r in archive.manifest["capabilities"]}
    assert rows["dropreason"]["status"] == "ok"
    assert rows["broken"]["status"] == "failed"
    assert "nonsense" in rows["broken"]["why"]


def programs_of(pid: int) -> set[int]:
    """The BPF programs that a process holds, by the kernel's number; proc(5), fdinfo."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            found |= {
                int(n) for n in re.findall(r"^prog_id:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{name}").read_text(), re.M)
            }
        except OSError:
            continue
    return found


def exists(program: int) -> bool:
    try:
        os.close(syscalls.call(13, struct.pack("=III", program, 0, 0)))  # BPF_PROG_GET_FD_BY_ID
    except FileNotFoundError:
        return False
    return True


def test_killed_it_leaves_nothing_in_the_kernel(lab: Lab, tmp_path: Path) -> None:
    run = Run(runbook(lab, "dropreason, packetforward, tcpretrans, tcpconnect, dns, packetparser", "120s"), tmp_path)
    run.wait_for("window")
    held = {pid: programs_of(pid) for pid, command in processes().items() if str(tmp_path) in command}
    programs = set().union(*held.values())
    assert len(programs) >= 7
    assert all(exists(p) for p in programs)
    for pid in held:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    run.process.wait(60)
    eventually(lambda: not any(exists(p) for p in programs), f"programs {programs} gone")
    for namespace in (lab.a, lab.b):
        assert "clsact" not in sh("ip", "netns", "exec", namespace, "tc", "qdisc")
        assert len(sh("ip", "netns", "exec", namespace, "cat", "/proc/net/packet").splitlines()) == 1


def test_a_node_without_bcc_says_so_and_still_counts_the_rest(lab: Lab, tmp_path: Path) -> None:
    """BCC's module is hidden from the node by an empty folder mounted over it, in a mount namespace of this run's own."""
    (tmp_path / "empty").mkdir()
    hidden = next(Path("/usr/lib/python3/dist-packages").glob("bcc"))
    run = Run(
        runbook(lab, "dropreason, linuxutil", "2s", more="iptables, "), tmp_path,
        wrapper=("unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path / "empty"} {hidden} && exec "$@"', "sh"),
    )  # fmt: skip
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (row,) = [r for r in archive.manifest["capabilities"] if r["plugin"] == "dropreason"]
    assert row["status"] == "failed"
    assert "BCC" in row["why"]
    assert "python3-bpfcc" in row["hint"]
    assert archive.manifest["collectors"]["iptables"]["status"] == "done"
    assert any(k[0] == "retinarun_protocol_total" for k in totals(archive))


def test_without_rights_nothing_is_tried(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        "{name: poor, duration: 2s, captures: [{collect: [{ebpf: {plugins: [dropreason, linuxutil]}}]}]}", tmp_path, netns=lab.a,
        wrapper=("setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon", "--inh-caps", "-sys_admin,-bpf,-perfmon", "--"),
    )  # fmt: skip
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (row,) = [r for r in archive.manifest["capabilities"] if r["plugin"] == "dropreason"]
    assert (row["status"], row["hint"]) == ("skipped", "run as root")
    assert "CAP_BPF" in row["why"]
