"""Exact truth: what was sent is what the archive holds, to the packet and the byte. Real tcpdump, iptables, veth pairs."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.ebpf.counting import Background
from tests.lab import Lab, Run

pytestmark = pytest.mark.root

UDP_HEADERS = 8 + 20
ETHERNET = 14
TO_PORT = (7000).to_bytes(2, "big")


STEADY = """
import json, select, socket, sys, time
door, sent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    before = time.time()
    door.sendto(len(sent).to_bytes(4, "big") + bytes(60), (sys.argv[1], int(sys.argv[2])))
    sent.append((before, time.time()))
print(json.dumps(sent), flush=True)
"""


def ours(found: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What went to port 7000: without a filter there is also what neighbours ask each other when they like (ARP, MLD)."""
    return [(stamp, packet) for stamp, packet in found if packet[12:14] == b"\x08\x00" and packet[36:38] == TO_PORT]


def udp_numbers(found: list[tuple[int, bytes]], payload_at: int) -> list[int]:
    """The numbers that tests/lab.py's sender put into its datagrams."""
    return [int.from_bytes(packet[payload_at : payload_at + 4], "big") for _, packet in found]


@pytest.mark.parametrize(
    "options", ["", "filter: udp port 7000", "include: ['10.93.0.2:7000']", "source: [10.93.0.1], filter: udp"]
)
def test_a_thousand_datagrams_sent_are_a_thousand_in_the_pcap(lab: Lab, tmp_path: Path, options: str) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(f"""
name: exact
duration: 6s
captures:
  - collect:
      - tcpdump: {{interfaces: [eth0], {options}}}
""", tmp_path, netns=lab.a)  # fmt: skip
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 1000)
    assert run.end() == 0, run.events
    archive = run.archive()
    found = archive.pcap()
    assert sorted(udp_numbers(ours(found), ETHERNET + UDP_HEADERS)) == list(range(1000))
    assert len(found) == 1000 or not options, "with a filter there is nothing else"
    t0_ns = int(float(run.all("t0")[0]["t0"][17:19]))
    assert {stamp // 10**9 for stamp, _ in found} <= {found[0][0] // 10**9 + n for n in range(7)}
    assert t0_ns % 60 == t0_ns
    verdict = archive.verdict(".pcap")
    assert (archive.lacking(), verdict["counts"]["in_window"]) == ({}, len(found))
    assert verdict["counts"]["dropped_by_kernel"] == 0
    checked = verify_archive(archive.path)
    assert (checked.problems, checked.packets) == ((), len(found))


def test_the_window_is_cut_by_time_stamp(lab: Lab, tmp_path: Path) -> None:
    """Packets before T0 and after the end are seen by tcpdump and are not in the pcap. Numbered datagrams go all the time, and
    the sender says when: each that is in the pcap was sent in the window, and each that was sent in the window is in it."""
    lab.receive("10.93.0.2", 7000)
    with Background(lab.a, STEADY, "10.93.0.2", "7000") as sender:
        run = Run(
            # Without a filter an ARP request, which neighbours send as they like, would be counted too.
            "{name: cut, duration: 4s, captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp port 7000}}]}]}",
            tmp_path,
            netns=lab.a,
        )
        assert run.end() == 0
        sender.say("enough")
        sent: list[tuple[float, float]] = json.loads(sender.line())
    window, found = run.archive().manifest["window"], run.archive().pcap()
    t0 = datetime.fromisoformat(window["t0"].replace("Z", "+00:00")).timestamp()
    end = t0 + 4.0
    numbers = udp_numbers(found, ETHERNET + UDP_HEADERS)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert all(t0 <= stamp / 1e9 < end for stamp, _ in found)
    # On a busy node tcpdump may begin late, and says so: by its log's time stamp, which is some milliseconds old.
    late = [
        float(r.split()[3]) for r in run.archive().verdict(".pcap")["reasons"] if r.startswith("tcpdump was listening")
    ]
    seen_from = t0 + max(late, default=0.0) + (0.02 if late else 0.0)
    certain = [n for n, (before, after) in enumerate(sent) if seen_from <= before and after < end]
    possible = [n for n, (before, after) in enumerate(sent) if t0 <= after and before < end]
    assert set(certain) <= set(numbers) <= set(possible)
    assert len(certain) > 50
    counts = run.archive().verdict(".pcap")["counts"]
    assert counts["in_window"] == len(found)
    assert counts["outside_window"] > 0


def test_ipv6(lab: Lab, tmp_path: Path) -> None:
    lab.receive("fd93:0::2", 7000)
    run = Run(
        "{name: six, duration: 6s, captures: [{collect: [{tcpdump: {interfaces: [eth0], include: ['[fd93::2]:7000']}}]}]}",
        tmp_path,
        netns=lab.a,
    )
    run.wait_for("window")
    lab.send("fd93:0::2", 7000, 300)
    assert run.end() == 0
    assert sorted(udp_numbers(run.archive().pcap(), ETHERNET + 40 + 8)) == list(range(300))


def test_two_interfaces_are_two_pcaps_each_with_its_own_traffic(two_links: Lab, tmp_path: Path) -> None:
    for n in (0, 1):
        two_links.receive(f"10.93.{n}.2", 7000)
    run = Run(
        "{name: two, duration: 6s, captures: [{collect: [{tcpdump: {interfaces: ['eth*'], filter: udp}}]}]}",
        tmp_path,
        netns=two_links.a,
    )
    run.wait_for("window")
    two_links.send("10.93.0.2", 7000, 400)
    two_links.send("10.93.1.2", 7000, 250)
    assert run.end() == 0
    archive = run.archive()
    sizes = {name.rpartition("-")[2]: len(found) for name, found in archive.pcaps().items()}
    assert sizes == {"eth0.pcap": 400, "eth1.pcap": 250}
    assert archive.verdict("eth1.pcap")["counts"]["in_window"] == 250


def test_a_rule_that_drops_three_hundred_has_a_delta_of_three_hundred(lab: Lab, tmp_path: Path) -> None:
    """With traffic before the window, and an unrelated rule inserted above it in the middle."""
    lab.receive("10.93.0.2", 7000)
    for command in (
        ["iptables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP"],
        ["ip6tables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP"],
    ):
        lab.inside(lab.b, *command)
    lab.send("10.93.0.2", 7001, 77)
    run = Run(
        "{name: rules, duration: 8s, captures: [{collect: [iptables, {tcpdump: {interfaces: [eth0], filter: udp}}]}]}",
        tmp_path,
        netns=lab.b,
    )
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 700, size=100)
    lab.send("10.93.0.2", 7001, 200, size=100)
    lab.inside(lab.b, "iptables", "-I", "INPUT", "1", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
    lab.send("10.93.0.2", 7001, 100, size=60)
    lab.send("fd93:0::2", 7001, 40, size=100)
    assert run.end() == 0, run.events
    archive = run.archive()
    sources = archive.json("state/delta/iptables.json")["sources"]
    moved = {r["text"]: r for r in sources["iptables-nft"]["rules"]}
    drop = moved["-p udp -m udp --dport 7001 -j DROP"]
    assert (drop["packets"], drop["bytes"]) == (300, 200 * (100 + UDP_HEADERS) + 100 * (60 + UDP_HEADERS))
    assert (drop["position_before"], drop["position_after"], drop["status"]) == (1, 2, "ok")
    assert moved["-p tcp -m tcp --dport 9 -j ACCEPT"]["status"] == "added"
    (six,) = sources["ip6tables-nft"]["rules"]
    assert (six["packets"], six["bytes"]) == (40, 40 * (100 + 8 + 40))
    assert len(archive.pcap()) == 1040  # tcpdump sees packets before the firewall does
    assert archive.whole("iptables.json"), archive.lacking()
    typed = archive.json("state/after/iptables.json")["iptables-nft"]["rules"][1]
    assert (typed["protocol"], typed["destination_port"], typed["target"]) == ("udp", "7001", "DROP")


def test_the_legacy_back_end_is_read_and_never_made(lab: Lab, tmp_path: Path) -> None:
    lab.inside(lab.b, "iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    run = Run("{name: legacy, duration: 6s, captures: [{collect: [iptables]}]}", tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7001, 123)
    assert run.end() == 0
    sources = run.archive().json("state/delta/iptables.json")["sources"]
    assert sources["iptables-legacy"]["rules"][0]["packets"] == 123
    assert "ip6tables-legacy" not in sources
    assert lab.inside(lab.b, "cat", "/proc/net/ip6_tables_names") == ""
    assert "table ip " not in lab.inside(lab.b, "nft", "list", "ruleset")


def test_network_state_counts_what_the_kernel_counted(lab: Lab, tmp_path: Path) -> None:
    """500 datagrams to a closed port: NoPorts on b by 500; its interface received them all."""
    run = Run("{name: state, duration: 6s, captures: [{collect: [network-state]}]}", tmp_path, netns=lab.b)
    run.wait_for("window")
    lab.send("10.93.0.2", 7002, 500)
    assert run.end() == 0
    archive = run.archive()
    moved = {
        (c["name"], tuple(c["labels"].items())): c for c in archive.json("state/delta/network-state.json")["counters"]
    }
    assert moved[("Udp.NoPorts", ())]["delta"] == 500
    assert moved[("interface.rx_packets", (("interface", "eth0"),))]["delta"] >= 500
    assert moved[("interface.rx_bytes", (("interface", "eth0"),))]["delta"] >= 500 * (ETHERNET + UDP_HEADERS + 100)
    addresses = archive.json("state/before/ip-addr.json")
    assert {"10.93.0.2", "fd93::2"} <= {a["local"] for link in addresses for a in link.get("addr_info", [])}
    assert archive.whole("network-state.json"), archive.lacking()


def test_a_named_namespace_is_looked_into_from_outside(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run(f"""
name: outside
duration: 6s
captures:
  - collect:
      - tcpdump: {{interfaces: [eth0], filter: udp, netns: {lab.b}}}
      - iptables: {{netns: {lab.b}}}
      - network-state: {{netns: [{lab.b}], include: [snmp, ip-addr]}}
""", tmp_path)  # fmt: skip
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 60)
    assert run.end() == 0, run.events
    archive = run.archive()
    assert len(archive.pcap()) == 60
    assert "10.93.0.2" in archive.members[f"state/before/netns-{lab.b}/ip-addr.json"].decode()
    moved = archive.json("state/delta/network-state.json")["counters"]
    assert [c["delta"] for c in moved if c["netns"] == lab.b and c["name"] == "Udp.InDatagrams"] == [60]


def test_a_ring_keeps_the_newest_packets_in_bounded_files(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run("""
name: ring
duration: 9s
captures:
  - collect:
      - tcpdump: {interfaces: [eth0], filter: udp, snaplen: 1600B, ring: {files: 2, file_size: 1MB}}
""", tmp_path, netns=lab.a)  # fmt: skip
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 4000, size=1400)
    assert run.end() == 0, run.events
    archive = run.archive()
    kept = [n for name in sorted(archive.pcaps()) for n in udp_numbers(archive.pcaps()[name], ETHERNET + UDP_HEADERS)]
    assert len(archive.pcaps()) == 2
    assert kept == list(range(4000 - len(kept), 4000))
    assert 1000 < len(kept) < 1600
    verdict = archive.verdict("-*.pcap")
    assert verdict["verdict"] == "partial"
    assert verdict["counts"]["captured"] == 4000
    assert any("ring kept the last 2 of" in r for r in verdict["reasons"])
    assert not verify_archive(archive.path).problems


def test_max_size_stops_one_capture_and_not_the_others(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    run = Run("""
name: full
duration: 6s
captures:
  - collect:
      - tcpdump: {interfaces: [eth0], filter: udp, max_size: 50kB}
      - network-state: {include: [snmp]}
""", tmp_path, netns=lab.a)  # fmt: skip
    run.wait_for("window")
    lab.send("10.93.0.2", 7000, 1000)
    run.wait_for("limit", limit="max_size")
    assert run.end() == 0, run.events
    archive = run.archive()
    (content,) = [c for n, c in archive.members.items() if n.endswith(".pcap")]
    record = 16 + ETHERNET + UDP_HEADERS + 100
    assert len(content) == 24 + (50_000 - 24) // record * record
    assert udp_numbers(archive.pcap(), ETHERNET + UDP_HEADERS) == list(range(len(archive.pcap())))
    assert archive.verdict(".pcap")["verdict"] == "partial"
    assert archive.manifest["window"]["duration_s"] == 6.0
    assert archive.whole("network-state.json"), archive.lacking()
