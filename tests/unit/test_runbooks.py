"""Every shipped runbook is valid, says its schema to editors, and explains itself."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest

from retina_runner import filters, planning
from retina_runner.agent import process
from retina_runner.runbook_reading import load_runbook
from tests.unit import reference_matcher as reference

RUNBOOKS = sorted((Path(__file__).parents[2] / "runbooks").glob("*.yaml"))
EXPECTED = {
    "quickstart",
    "packet-loss",
    "dns-latency",
    "tcp-timeouts",
    "conntrack-full",
    "mtu-black-hole",
    "iptables-counters",
    "long-ring",
    "flight-recorder",
    "shared-evidence",
    "kubernetes-service",
    "inside-pods",
}


def test_they_are_all_there() -> None:
    assert {p.stem for p in RUNBOOKS} >= EXPECTED


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda p: p.stem)
def test_valid_and_explained(path: Path) -> None:
    runbook = load_runbook(path)
    assert runbook.name == path.stem
    assert runbook.summary
    assert planning.compile_filters(runbook, process.run) == ()
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../schemas/runbook.json"
    assert lines[1].startswith("# ")


FIN, SYN, RST, ACK = 1, 2, 4, 16
PEER, OTHER, ROUTER, HERE = "192.0.2.9", "192.0.2.8", "198.51.100.1", "192.0.2.1"


def frame(kind: int, body: bytes) -> bytes:
    return bytes.fromhex("020000000001020000000002") + struct.pack(">H", kind) + body


def ipv4(protocol: int, payload: bytes, source: str = PEER, piece: int = 0) -> bytes:
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(HERE).packed
    return frame(
        0x0800, struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, piece, 64, protocol, 0) + ends + payload
    )


def ipv6(following: int, payload: bytes) -> bytes:
    ends = ipaddress.IPv6Address("2001:db8::9").packed + ipaddress.IPv6Address("2001:db8::1").packed
    return frame(0x86DD, struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + ends + payload)


def tcp(flags: int, port: int = 80) -> bytes:
    return struct.pack(">HHIIBBHHH", 40000, port, 1, 1, 0x50, flags, 1024, 0, 0)


UDP = struct.pack(">HHHH", 40000, 53, 8, 0)
SEEN = {
    "tcp-timeouts": (
        ["port=80"],
        [ipv4(6, tcp(SYN)), ipv4(6, tcp(FIN | ACK)), ipv6(6, tcp(SYN)), ipv6(6, tcp(SYN | ACK)), ipv6(6, tcp(RST))],
        [ipv4(6, tcp(ACK)), ipv6(6, tcp(ACK)), ipv4(6, tcp(SYN, 81)), ipv6(6, tcp(SYN, 81)), ipv6(17, UDP)],
    ),
    "conntrack-full": (
        [],
        [ipv4(6, tcp(SYN)), ipv6(6, tcp(SYN)), ipv4(17, UDP), ipv6(17, UDP)],
        [ipv4(6, tcp(SYN | ACK)), ipv6(6, tcp(SYN | ACK)), ipv6(6, tcp(ACK))],
    ),
    "listen-queue": (
        [],
        [ipv4(6, tcp(SYN)), ipv4(6, tcp(RST | ACK)), ipv6(6, tcp(SYN)), ipv6(6, tcp(RST))],
        [ipv4(6, tcp(ACK)), ipv6(6, tcp(FIN | ACK)), ipv6(17, UDP)],
    ),
    "mtu-black-hole": (
        [f"peer={PEER}"],
        # "Fragmentation needed" comes from a router on the way, not from the peer.
        [ipv4(1, bytes(36), ROUTER), ipv6(58, bytes(48)), ipv4(17, bytes(64), OTHER, 0x2000), ipv6(44, bytes(64)),
         ipv4(6, tcp(ACK) + bytes(1300))],
        [ipv4(6, tcp(ACK)), ipv4(6, tcp(ACK) + bytes(1300), OTHER), ipv6(6, tcp(ACK))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_the_filter_of_a_runbook_sees_what_it_says(name: str, tmp_path: Path) -> None:
    extra, wanted, unwanted = SEEN[name]
    (entry,) = [
        e for e in load_runbook(RUNBOOKS[0].with_name(f"{name}.yaml"), extra).captures[0].collect if e.name == "tcpdump"
    ]
    path = tmp_path / "packets.pcap"
    path.write_bytes(reference.write_pcap([*wanted, *unwanted], reference.ETHERNET))
    text = filters.render(filters.build(entry.options["filter"]))
    outcome = process.run(["tcpdump", "-r", str(path), "-w", "-", "--", text])
    assert outcome.ok, outcome.why()
    assert reference.numbers(outcome.stdout) == set(range(len(wanted)))
