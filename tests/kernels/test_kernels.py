"""Debian's own kernels, each with its own Python and BCC: the plugins load, count exactly, and tell netfilter's drops apart.

These kernels have kprobes, which the other tests' machine may not: what `dropreason` and `tcpconnect` add by them is proved
here. See README.md.
"""

from __future__ import annotations

import pytest

from retina_runner.agent.ebpf.compiling import BROUGHT
from retina_runner.metrics_page import MATRIX
from tests.ebpf.counting import Counted
from tests.kernels.conftest import Seen

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(3000)]

DROPS, RETINA_DROPS = "retinarun_drop_packets_total", "networkobservability_drop_count"
NAMES_REASONS, RESETS_WITHOUT_SOCKETS, VETH_HAS_LISTS = (5, 17), (6, 10), (5, 13)
"""The first kernels whose kfree_skb says why, whose tcp_send_reset tells resets that belong to no socket, whose veth has NAPI."""


@pytest.fixture
def compiled(seen: Seen) -> Counted:
    """The window in which BCC compiled everything, and all traffic was sent."""
    return seen.window("compiled")


def test_the_table_in_the_documentation_has_this_kernel(seen: Seen) -> None:
    """docs/metrics.md says what was run: the distribution's own versions as the guest itself told them."""
    told = seen.facts
    kernel = ".".join(map(str, seen.version))
    distribution = told["distribution"].replace("GNU/Linux ", "").partition(" (")[0]
    bcc, python = (".".join(told[name].split("+")[0].split(".")[:2]) for name in ("bcc", "python"))
    assert (kernel, distribution, bcc, python) in [row[:4] for row in MATRIX]


def test_every_hook_of_every_plugin_is_there(seen: Seen, compiled: Counted) -> None:
    lacking = {key: told for key, told in compiled.hooks().items() if told[0] != "ok"}
    # It isn't switched on for this: the kernel's own default.
    assert set(lacking) <= {("conntrack", "file:/proc/net/nf_conntrack")}
    assert compiled.probes() == {
        (plugin, f"{kind}:{function}"): ("ok", "")
        for plugin, kind, function in (
            ("dropreason", "kprobe", "nf_hook_slow"),
            ("dropreason", "kprobe", "nf_hook_slow_list"),
            ("dropreason", "kprobe", "__nf_conntrack_confirm"),
            ("dropreason", "kretprobe", "__nf_conntrack_confirm"),
            ("tcpconnect", "kprobe", "security_sock_graft"),
        )
    }
    assert compiled.missed() == {}


def test_probes_are_tried_beforehand(seen: Seen) -> None:
    """As `doctor` and `plan` do; nothing of it stays, or the window `compiled` would have had it in its list of probes."""
    refusals = seen.facts["refusals"]
    assert refusals["security_sock_graft"] == ""
    assert refusals["no_such_function"].startswith("the kernel has no function no_such_function")


def test_a_rules_drops_are_told_by_chain_to_the_packet(seen: Seen, compiled: Counted) -> None:
    """Every chain another number, 1,000 at INPUT; the back end of nft and that of legacy iptables; REJECT is a drop too."""
    a, b = seen.truth["names"]["a"], seen.truth["names"]["b"]
    moved = seen.truth["moved"]
    found = compiled.parts(DROPS, "chain", "cause", "family", "netns", reason="NETFILTER_DROP", protocol="udp")
    assert found == {
        ("INPUT", "", "ipv4", b): 1000 + 120 + 40,
        ("INPUT", "", "ipv6", b): 700,
        ("PREROUTING", "", "ipv4", b): 200,
        ("FORWARD", "", "ipv4", b): 150,
        ("OUTPUT", "", "ipv4", a): 250,
        ("POSTROUTING", "", "ipv4", a): 60,
        ("POSTROUTING", "conntrack_insert", "ipv4", a): moved["conntrack a"]["insert_failed"],
    }
    assert moved["conntrack a"]["insert_failed"] == 199, "of 200 flows that are translated to one port"
    assert compiled.total(RETINA_DROPS, reason="CONNTRACK_ADD_DROP", netns=a, direction="egress") == 199
    assert compiled.total(RETINA_DROPS, reason="CONNTRACK_ADD_DROP") == 199
    ours = compiled.total(DROPS, reason="NETFILTER_DROP")
    assert compiled.total(RETINA_DROPS, reason="IPTABLE_RULE_DROP") + 199 == ours, "none is counted twice"
    # Only what netfilter dropped has a chain, whatever it passed before.
    assert {key for key in compiled.parts(DROPS, "reason", "chain") if key[1]} <= {
        ("NETFILTER_DROP", chain) for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    }


def test_the_plugin_conntrack_counts_what_the_kernel_does(seen: Seen, compiled: Counted) -> None:
    moved = seen.truth["moved"]["conntrack a"]
    for event in ("insert_failed", "drop"):
        assert compiled.total("retinarun_conntrack_events_total", event=event) == moved[event] > 0


def test_a_closed_port_has_the_reason_that_this_kernel_knows(seen: Seen, compiled: Counted) -> None:
    """Before 5.17 there are no reasons: the function that dropped is all that is told, and the reason isn't made up."""
    reason = "NO_SOCKET" if seen.version >= NAMES_REASONS else "NOT_SPECIFIED"
    closed = seen.truth["moved"]["counters b"]["UdpNoPorts"]
    assert closed >= 500
    at = compiled.parts(DROPS, "reason", "chain", protocol="udp", location="__udp4_lib_rcv")
    assert at == {(reason, ""): closed}


def test_forwarded_packets_and_bytes_are_the_interfaces_own(seen: Seen, compiled: Counted) -> None:
    for name in ("a", "b"):
        moved, where = seen.truth["moved"][f"device {name}"], {"netns": seen.truth["names"][name], "interface": "eth0"}
        for way, direction in (("rx", "ingress"), ("tx", "egress")):
            for what in ("packets", "bytes"):
                metric = f"retinarun_forward_{what}_total"
                assert compiled.total(metric, direction=direction, **where) == moved[f"{way}_{what}"] > 0, (name, way)


def test_dns_by_type_code_and_protocol(seen: Seen, compiled: Counted) -> None:
    requests, responses = "networkobservability_dns_request_count", "networkobservability_dns_response_count"
    for node in seen.truth["names"].values():
        assert compiled.parts(requests, "query_type", "protocol", netns=node) == {
            ("A", "udp"): 50, ("AAAA", "udp"): 30, ("TXT", "tcp"): 20,
        }  # fmt: skip
        assert compiled.parts(responses, "query_type", "return_code", netns=node) == {
            ("A", "NOERROR"): 50, ("AAAA", "NXDOMAIN"): 30, ("TXT", "SERVFAIL"): 20,
        }  # fmt: skip


def test_retransmitted_segments_and_connections_are_the_kernels_own(seen: Seen, compiled: Counted) -> None:
    a, b = seen.truth["names"]["a"], seen.truth["names"]["b"]
    moved = seen.truth["moved"]
    again = moved["counters a"]["TcpRetransSegs"]
    assert again > 5
    assert compiled.total("retinarun_tcp_retransmitted_segments_total", netns=a) == again
    opened, failed = "retinarun_tcp_connections_total", "retinarun_tcp_connect_failures_total"
    # Two that pour, three that wait, and each question over TCP has one of its own.
    assert compiled.parts(opened, "role", "netns") == {("connected", a): 25, ("accepted", b): 25}
    assert compiled.parts(failed, "error", "family") == {("ECONNREFUSED", "ipv4"): 30, ("ECONNREFUSED", "ipv6"): 20}
    resets = "retinarun_tcp_resets_total"
    assert compiled.total(resets, direction="received", netns=a) == moved["counters b"]["TcpOutRsts"] == 50
    sent = 50 if seen.version >= RESETS_WITHOUT_SOCKETS else 0
    assert compiled.total(resets, direction="sent", netns=b) == sent


def test_handshakes_are_measured_on_both_sides_and_so_is_what_waits_for_accept(seen: Seen, compiled: Counted) -> None:
    """Three connections were established 0.3 s and more before they were accepted."""
    a, b = seen.truth["names"]["a"], seen.truth["names"]["b"]
    handshake, wait = "retinarun_tcp_handshake_seconds", "retinarun_tcp_accept_wait_seconds"
    assert compiled.parts(f"{handshake}_count", "role", "netns") == {("connected", a): 25, ("accepted", b): 25}
    assert compiled.parts(f"{wait}_count", "netns") == {(b,): 25}
    assert compiled.total(f"{wait}_sum", netns=b) > 3 * 0.3
    quick = max(
        (v for m, given, v in compiled.samples if m == f"{wait}_bucket" and float(given["le"]) < 0.3), default=0
    )
    assert quick <= 22


def test_flows_of_udp_are_what_was_sent(seen: Seen, compiled: Counted) -> None:
    flows = compiled.parts(
        "networkobservability_adv_forward_count", "destination_port", protocol="udp", direction="ingress",
        netns=seen.truth["names"]["b"], destination_ip="10.93.0.2",
    )  # fmt: skip
    sent = {("7001",): 1000, ("7002",): 200, ("7006",): 120, ("7007",): 40, ("7008",): 500, ("7600",): 1, ("53",): 50}
    assert flows == sent


def test_bytecode_of_the_same_kernel_needs_no_compiler_and_lists_have_their_chain(seen: Seen) -> None:
    """From 5.13 on veth has NAPI: packets come to the stack as lists, by a function of their own."""
    brought = seen.window("brought")
    assert {why for _, why in brought.probes().values()} == {BROUGHT}
    assert brought.parts(DROPS, "chain", reason="NETFILTER_DROP", protocol="udp") == {
        ("INPUT",): 500,
        ("PREROUTING",): 300,
    }
    runs = {p["program"]: p["run_count"] for p in brought.archive.manifest["programs"]}
    assert (runs["on_hook_list"] > 0) == (seen.version >= VETH_HAS_LISTS), runs


def test_what_each_program_costs_is_measured(seen: Seen, compiled: Counted) -> None:
    """`pytest -rP` shows it. In translated code only the ratios between programs mean something."""
    costs = {p["program"]: (p["run_count"], p["run_time_ns"]) for p in compiled.archive.manifest["programs"]}
    for program in ("on_hook", "on_confirm", "on_confirmed", "on_kfree_skb_detailed", "on_packet"):
        assert costs[program][0] > 0, program
        assert costs[program][1] > 0, program
    assert "on_kfree_skb" not in costs, "the detailed one is attached in its place"
    for window in ("compiled", "brought"):
        for p in seen.window(window).archive.manifest["programs"]:
            if p["run_count"]:
                each = p["run_time_ns"] // p["run_count"]
                print(f"{seen.facts['kernel']} {window} {p['program']}: {each} ns x {p['run_count']}")


def test_nothing_stays_in_the_kernel(seen: Seen) -> None:
    """Neither after windows that ended nor after SIGKILL of every process of the agent."""
    programs, probes = seen.truth["programs"], seen.truth["probes"]
    assert len(set(programs["during"]) - set(programs["before"])) >= 10
    assert programs["between"] == programs["after"] == programs["before"]
    assert probes["compiled"] == sorted(
        ["nf_hook_slow", "nf_hook_slow_list", *["__nf_conntrack_confirm"] * 2, "security_sock_graft"]
    )
    assert probes["before"] == probes["after"] == []
