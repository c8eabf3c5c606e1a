"""Every kind of drop under the kernel's own reason, to the packet: known traffic into rules, closed ports, full buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ebpf.counting import Background, Counting, counters, python
from tests.lab import Lab, eventually, sh

pytestmark = pytest.mark.root

DROPS, BYTES = "retinarun_drop_packets_total", "retinarun_drop_bytes_total"
HEADERS_4, HEADERS_6 = 20 + 8, 40 + 8

SLOW_READER = """
import socket, sys
doors = []
for kind, address in ((socket.AF_INET, "10.93.0.2"), (socket.AF_INET6, "fd93:0::2")):
    doors.append(socket.socket(kind, socket.SOCK_DGRAM))
    doors[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    doors[-1].bind((address, 7020))
print("ready", flush=True)
sys.stdin.read()
"""
SHORT_LIVED = """
import socket, sys
six = ":" in sys.argv[1]
sender = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if six else (socket.IPPROTO_IP, socket.IP_TTL)), int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    sender.sendto(b"x", (sys.argv[1], 7031))
"""
CALLS = """
import socket, sys
for _ in range(int(sys.argv[3])):
    with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as caller:
        try:
            caller.connect((sys.argv[1], int(sys.argv[2])))
        except ConnectionRefusedError:
            pass
"""
BLIND = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    try:
        sender.sendto(b"x" * 72, ("10.93.0.2", int(sys.argv[1])))
    except PermissionError:
        pass
"""
FULL_LISTENER = """
import socket, sys
door = socket.socket()
door.bind(("10.93.0.2", 7040))
door.listen(1)
print("ready", flush=True)
sys.stdin.read()
"""
CROWD = """
import socket, sys
held = []
for _ in range(10):
    caller = socket.socket()
    caller.setblocking(False)
    caller.connect_ex(("10.93.0.2", 7040))
    held.append(caller)
print("ready", flush=True)
sys.stdin.read()
"""


def six_of(namespace: str, name: str) -> int:
    """A counter of /proc/net/snmp6."""
    lines = sh("ip", "netns", "exec", namespace, "cat", "/proc/net/snmp6").splitlines()
    return {key: int(value) for key, value in (line.split() for line in lines)}[name]


def test_each_kind_of_drop_has_its_own_reason_and_its_exact_count(lab: Lab, tmp_path: Path) -> None:
    """Every kind another number, all in one window: none can be taken for another, and nothing else may be there."""
    lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    lab.inside(lab.b, "ip6tables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    sh("ip", "-n", lab.a, "route", "add", "10.94.0.0/16", "via", "10.93.0.2")
    sh("ip", "-n", lab.b, "route", "add", "10.94.1.0/24", "via", "10.93.0.1")
    sh("ip", "-n", lab.a, "route", "add", "fd94::/32", "via", "fd93:0::2")
    sh("ip", "-n", lab.b, "route", "add", "fd94:0:1::/48", "via", "fd93:0::1")
    before = counters(lab.b)
    with Background(lab.b, SLOW_READER), Counting(tmp_path, "plugins: [dropreason], scope: netns", lab.b) as counting:
        lab.send("10.93.0.2", 7001, 1000)
        lab.send("fd93:0::2", 7001, 700)
        lab.send("10.93.0.2", 7002, 500)
        lab.send("fd93:0::2", 7002, 300)
        python(lab.a, CALLS, "10.93.0.2", "7003", "40")
        python(lab.a, CALLS, "fd93:0::2", "7003", "30")
        python(lab.a, SHORT_LIVED, "10.94.1.9", "1", "150")
        python(lab.a, SHORT_LIVED, "10.94.2.9", "64", "100")
        python(lab.a, SHORT_LIVED, "fd94:0:1::9", "1", "120")
        python(lab.a, SHORT_LIVED, "fd94:0:2::9", "64", "80")
        lab.send("10.93.0.2", 7020, 400, size=1000)
        lab.send("fd93:0::2", 7020, 300, size=1000)
        # A few datagrams of b's own wait for a neighbour that isn't there, until the kernel gives it up.
        python(lab.b, SHORT_LIVED, "10.93.0.77", "64", "3")
        python(lab.b, SHORT_LIVED, "fd93:0::77", "64", "2")
        for absent in ("10.93.0.77", "fd93::77"):
            eventually(lambda a=absent: "FAILED" in sh("ip", "-n", lab.b, "neigh", "show", a), "a failed neighbour")  # type: ignore[misc]
    overflows = counters(lab.b)["UdpRcvbufErrors"] - before["UdpRcvbufErrors"]
    overflows_6 = six_of(lab.b, "Udp6RcvbufErrors")
    assert overflows > 100
    assert overflows_6 > 100
    found = counting.parts(DROPS, "reason", "family", "protocol", "direction")
    udp, tcp = ("udp", "ingress"), ("tcp", "ingress")
    # What the kernel has no name for, and buffers without data that are let go with their sockets, is noise of its own.
    told = {key: n for key, n in found.items() if key[0] not in ("NOT_SPECIFIED", "QUEUE_PURGE")}
    assert told == {
        ("NETFILTER_DROP", "ipv4", *udp): 1000,
        ("NETFILTER_DROP", "ipv6", *udp): 700,
        ("NO_SOCKET", "ipv4", *udp): 500,
        ("NO_SOCKET", "ipv6", *udp): 300,
        ("NO_SOCKET", "ipv4", *tcp): 40,
        ("NO_SOCKET", "ipv6", *tcp): 30,
        ("IP_INHDR", "ipv4", *udp): 150,
        ("IP_INNOROUTES", "ipv4", *udp): 100,
        ("SOCKET_RCVBUFF", "ipv4", *udp): overflows,
        ("NEIGH_FAILED", "ipv4", "udp", "egress"): 3,
        ("IP_INHDR", "ipv6", *udp): 120,
        ("IP_INNOROUTES", "ipv6", *udp): 80,
        ("SOCKET_RCVBUFF", "ipv6", *udp): overflows_6,
    }
    # For IPv6's neighbours the kernel (6.18) gives no reason of its own.
    silent = counting.parts(DROPS, "direction", family="ipv6", protocol="udp", reason="NOT_SPECIFIED")
    assert silent == {("egress",): 2}
    assert counting.total(BYTES, reason="NETFILTER_DROP", family="ipv4") == 1000 * (100 + HEADERS_4)
    assert counting.total(BYTES, reason="NETFILTER_DROP", family="ipv6") == 700 * (100 + HEADERS_6)
    assert counting.missed() == {}
    # Retina's name for the same: a rule's drops, and no others, under its own reason.
    assert counting.total("networkobservability_drop_count", reason="IPTABLE_RULE_DROP", direction="ingress") == 1700
    assert counting.total("networkobservability_drop_count", reason="NO_SOCKET") == 870
    functions = {location for (location,) in counting.parts(DROPS, "location", reason="NETFILTER_DROP")}
    assert functions <= {"nf_hook_slow", "nf_hook_slow_list", "nft_do_chain"}, "where the kernel dropped them"


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_rules_of_any_chain_and_back_end(lab: Lab, tmp_path: Path, program: str) -> None:
    """A table that a rule of the legacy kind is put into belongs to a namespace of the test's own."""
    lab.receive("10.93.0.2", 7005)
    rules = (("INPUT", lab.b, 7006), ("PREROUTING", lab.b, 7007), ("OUTPUT", lab.a, 7008))
    for chain, node, port in rules:
        table = ["-t", "raw"] if chain == "PREROUTING" else []
        lab.inside(node, program, *table, "-A", chain, "-p", "udp", "--dport", str(port), "-j", "DROP")
    with Counting(tmp_path, f"plugins: [dropreason], netns: [{lab.a}, {lab.b}]") as counting:
        for number, (_, _, port) in enumerate(rules, 1):
            python(lab.a, BLIND, str(port), str(100 * number))
        lab.send("10.93.0.2", 7005, 100)  # these pass
    assert counting.parts(DROPS, "netns", "direction", reason="NETFILTER_DROP") == {
        (lab.b, "ingress"): 100 + 200,
        (lab.a, "egress"): 300,
    }
    assert counting.total(BYTES, reason="NETFILTER_DROP") == 600 * (72 + HEADERS_4)


def test_a_full_listener_has_no_event_and_is_told_by_the_kernels_counter(lab: Lab, tmp_path: Path) -> None:
    """The kernel frees what a full listener refuses without saying so; its own counter is what is left."""
    before = counters(lab.b)
    name = "TcpExtListenOverflows"
    with Background(lab.b, FULL_LISTENER):
        with Counting(tmp_path, "plugins: [dropreason, linuxutil], scope: netns", lab.b) as counting:
            with Background(lab.a, CROWD):
                eventually(lambda: counters(lab.b)[name] > before[name], "a listener that overflows")
            # The crowd is gone, and with it every SYN that would be sent again; who took himself for connected, since his SYN was
            # answered before others' places were taken, repeats his FIN to the full listener for a while.
            after = counters(lab.b)
        ended = counters(lab.b)
    overflows = counting.total("networkobservability_tcp_connection_stats", statistic_name="ListenOverflows")
    assert after[name] - before[name] <= overflows <= ended[name] - before[name]
    assert counting.total(DROPS, protocol="tcp", reason="NETFILTER_DROP") == 0
