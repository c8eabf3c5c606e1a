"""A second opinion on filters: packets made at random, read back from their bytes, and matched in plain Python.

It shares no code with `retina_runner.filters`, and takes the entries of a filter as numbers, not as text. What the
words mean is pcap-filter(7), with libpcap's own limits: ports are seen in the first fragment only, and in IPv6 only
where no extension header precedes them; a frame with a VLAN tag has neither addresses nor ports.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ETHERNET, COOKED2 = 1, 276
"""LINKTYPE_ETHERNET and LINKTYPE_LINUX_SLL2, tcpdump.org/linktypes.html."""
TCP, UDP, ICMP, ICMP6, SCTP, FRAGMENT = 6, 17, 1, 58, 132, 44
PORTS = (22, 53, 80, 81, 443, 8079, 8080, 8081, 65535, 1)
IPV4 = tuple((10 << 24) + (net << 8) + host for net in (0, 1, 2) for host in (1, 2, 3, 130))
IPV6 = tuple((0xFD00 << 112) + (net << 64) + host for net in (0, 1, 2) for host in (1, 2, 3, 0x80))


@dataclass(frozen=True)
class Net:
    """`length` leading bits of `bits`, which is an address of IP `version` as a number."""

    version: int
    bits: int
    length: int

    def holds(self, version: int, address: int | None) -> bool:
        shift = (32 if self.version == 4 else 128) - self.length
        return version == self.version and address is not None and address >> shift == self.bits >> shift


@dataclass(frozen=True)
class Entry:
    """A network, ports, or both; None is any."""

    net: Net | None
    ports: tuple[int, int] | None


@dataclass(frozen=True)
class Packet:
    """What a filter can see. `version` is 0 for neither IP nor ARP; ARP and RARP have version 4 and no protocol.

    `arp` is true for ARP alone: pcap-filter has a word of its own for RARP.
    """

    version: int = 0
    source: int | None = None
    destination: int | None = None
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    tcp_flags: int | None = None
    arp: bool = False

    def meets(self, entry: Entry) -> bool:
        net, ports = entry.net, entry.ports
        ends = (self.source, self.destination)
        if net is not None and not any(net.holds(self.version, end) for end in ends):
            return False
        return ports is None or any(ports[0] <= port <= ports[1] for port in self.ports or ())


def parse(frame: bytes, linktype: int) -> Packet:
    if linktype == ETHERNET:
        kind, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    else:
        kind, body = int.from_bytes(frame[:2], "big"), frame[20:]
    if kind in (0x0806, 0x8035):
        return Packet(4, int.from_bytes(body[14:18], "big"), int.from_bytes(body[24:28], "big"), arp=kind == 0x0806)
    if kind == 0x0800:
        header = (body[0] & 15) * 4
        first = int.from_bytes(body[6:8], "big") & 0x1FFF == 0
        ends = int.from_bytes(body[12:16], "big"), int.from_bytes(body[16:20], "big")
        return _with_ports(4, *ends, body[9], body[header:] if first else None)
    if kind == 0x86DD:
        ends = int.from_bytes(body[8:24], "big"), int.from_bytes(body[24:40], "big")
        if body[6] == FRAGMENT:
            return Packet(6, *ends, body[40])
        return _with_ports(6, *ends, body[6], body[40:])
    return Packet()


def _with_ports(version: int, source: int, destination: int, protocol: int, segment: bytes | None) -> Packet:
    if segment is None or protocol not in (TCP, UDP, SCTP):
        return Packet(version, source, destination, protocol)
    ports = struct.unpack(">HH", segment[:4])
    flags = segment[13] if protocol == TCP else None
    return Packet(version, source, destination, protocol, (ports[0], ports[1]), flags)


RAW: dict[str, Callable[[Packet], bool]] = {
    "tcp": lambda p: p.protocol == TCP,
    "arp": lambda p: p.arp,
    "not arp": lambda p: not p.arp,
    "icmp or icmp6": lambda p: (p.version, p.protocol) in ((4, ICMP), (6, ICMP6)),
    "udp port 53 or tcp port 53": lambda p: p.protocol in (TCP, UDP) and 53 in (p.ports or ()),
    "tcp[tcpflags] & tcp-syn != 0": lambda p: p.version == 4 and bool((p.tcp_flags or 0) & 2),
    "ip6 or (tcp and not port 80)": lambda p: p.version == 6 or (p.protocol == TCP and 80 not in (p.ports or ())),
    "len > -1": lambda p: False,  # -1 is 0xffffffff to BPF
    "src port 443": lambda p: p.ports is not None and p.ports[0] == 443,
}
"""Texts that a user may write, and what they mean."""


def matches(packet: Packet, scope: Sequence[Net], include: Sequence[Entry], exclude: Sequence[Entry],
            source: Sequence[Net], destination: Sequence[Net], raw: str) -> bool:  # fmt: skip
    """Scope and include and not exclude and source and destination and raw; what is empty asks for nothing."""
    return (
        (not scope or any(packet.meets(Entry(n, None)) for n in scope))
        and (not include or any(packet.meets(e) for e in include))
        and not any(packet.meets(e) for e in exclude)
        and (not source or any(n.holds(packet.version, packet.source) for n in source))
        and (not destination or any(n.holds(packet.version, packet.destination) for n in destination))
        and (not raw or RAW[raw](packet))
    )


def frames(seed: int, count: int, linktype: int) -> list[bytes]:
    """Frames of all kinds between few addresses and ports, so that most entries of a filter meet some."""
    chance = random.Random(seed)
    return [_frame(chance, linktype) for _ in range(count)]


def _frame(chance: random.Random, linktype: int) -> bytes:
    what = chance.choices(("ip", "ip6", "arp", "rarp", "other"), (45, 40, 6, 2, 3))[0]
    kind, body = {"ip": _ipv4, "ip6": _ipv6}.get(what, lambda c: _odd(c, what))(chance)
    if linktype == COOKED2:
        return struct.pack(">HHIHBB8x", kind, 0, 1, 1, chance.choice((0, 4)), 6) + body
    tag = struct.pack(">HH", 0x8100, 5) if chance.random() < 0.05 else b""
    return bytes.fromhex("020000000001020000000002") + tag + struct.pack(">H", kind) + body


def _odd(chance: random.Random, what: str) -> tuple[int, bytes]:
    if what == "other":
        return 0x88CC, chance.randbytes(60)
    ends = [struct.pack(">6sI", chance.randbytes(6), chance.choice(IPV4)) for _ in range(2)]
    return (0x0806 if what == "arp" else 0x8035), struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + b"".join(ends) + bytes(18)


def _segment(chance: random.Random, protocol: int) -> bytes:
    if protocol not in (TCP, UDP, SCTP):
        return chance.randbytes(40)
    ports = struct.pack(">HH", chance.choice(PORTS), chance.choice(PORTS))
    return ports + chance.randbytes(9) + bytes([chance.choice((2, 16, 18, 17, 4))]) + chance.randbytes(26)


def _ipv4(chance: random.Random) -> tuple[int, bytes]:
    protocol = chance.choice((TCP, TCP, UDP, UDP, ICMP, SCTP, 47))
    options = bytes(4 * chance.choice((0, 0, 0, 2)))
    # Flags and offset: mostly whole, else a first (more fragments) or a later piece, whose bytes look like ports too.
    piece = chance.choices((0x4000, 0x2000, 0x00B9), (8, 1, 1))[0]
    segment = _segment(chance, protocol)
    ends = chance.choice(IPV4), chance.choice(IPV4)
    length = 20 + len(options) + len(segment)
    head = struct.pack(">BBHHHBBHII", 0x45 + len(options) // 4, 0, length, 1, piece, 64, protocol, 0, *ends)
    return 0x0800, head + options + segment


def _ipv6(chance: random.Random) -> tuple[int, bytes]:
    protocol = chance.choice((TCP, TCP, UDP, UDP, ICMP6, SCTP))
    segment, following = _segment(chance, protocol), protocol
    if chance.random() < 0.15:
        segment, following = struct.pack(">BBHI", protocol, 0, chance.choice((1, 0x05A8)), 7) + segment, FRAGMENT
    ends = [chance.choice(IPV6).to_bytes(16, "big") for _ in range(2)]
    return 0x86DD, struct.pack(">IHBB", 6 << 28, len(segment), following, 64) + b"".join(ends) + segment


def write_pcap(made: Sequence[bytes], linktype: int) -> bytes:
    """A savefile whose n-th packet bears the time n, in microseconds: so it is known again in tcpdump's output."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, linktype)]
    for number, frame in enumerate(made):
        parts.append(struct.pack("<IIII", *divmod(number, 1_000_000), len(frame), len(frame)) + frame)
    return b"".join(parts)


def numbers(savefile: bytes) -> set[int]:
    """Which of `write_pcap`'s packets a savefile holds."""
    found, at = set(), 24
    while at < len(savefile):
        seconds, micros, captured, _ = struct.unpack_from("<IIII", savefile, at)
        found.add(seconds * 1_000_000 + micros)
        at += 16 + captured
    return found
