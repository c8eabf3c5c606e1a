"""packetforward and packetparser against the interface's own counters, the sender's numbers, and a pcap of the same window."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.ebpf.counting import Background, Counting, device, python, quiet
from tests.lab import Lab

pytestmark = pytest.mark.root

PACKETS, SEGMENTS, BYTES = (f"retinarun_forward_{n}_total" for n in ("packets", "segments", "bytes"))
FLOW_PACKETS, FLOW_BYTES = "networkobservability_adv_forward_count", "networkobservability_adv_forward_bytes"
FLAGS = "networkobservability_adv_tcpflags_count"

SINK = """
import socket, sys
door = socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("ready", flush=True)
while True:
    taken, size = door.accept()[0], 0
    while block := taken.recv(1 << 16):
        size += len(block)
    taken.close()
    print(size, flush=True)
"""
POUR = """
import socket, sys
for _ in range(int(sys.argv[4])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as pipe:
        pipe.sendall(bytes(int(sys.argv[3])))
        pipe.shutdown(socket.SHUT_WR)
        assert pipe.recv(1) == b""
"""


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("address", ["10.93.0.2", "fd93:0::2"])
def test_forwarded_packets_and_bytes_are_the_interfaces_own(
    lab: Lab, tmp_path: Path, address: str, offload: str
) -> None:
    """Both directions, 10 MB of TCP and some UDP. With GSO a packet can be many segments; the interface counts one."""
    for node in (lab.a, lab.b):
        quiet(node)
        lab.inside(node, "ethtool", "-K", "eth0", "tso", offload, "gso", offload)
    lab.receive(address, 7000)
    before = device(lab.a, "eth0")
    with (
        Background(lab.b, SINK, address, "7100") as sink,
        Counting(tmp_path, "plugins: [packetforward], scope: netns", lab.a) as counting,
    ):
        python(lab.a, POUR, address, "7100", "10000000", "1")
        assert sink.line() == "10000000"
        lab.send(address, 7000, 300, size=200)
    after = device(lab.a, "eth0")
    for way, direction in (("rx", "ingress"), ("tx", "egress")):
        for metric, what in ((PACKETS, "packets"), (BYTES, "bytes")):
            moved = after[f"{way}_{what}"] - before[f"{way}_{what}"]
            assert counting.total(metric, interface="eth0", direction=direction) == moved, f"{way} {what}"
    sent = counting.total(PACKETS, interface="eth0", direction="egress")
    segments = counting.total(SEGMENTS, interface="eth0", direction="egress")
    wire = 10_000_000 / 1448
    if offload == "off":
        assert segments == sent > wire
    else:
        assert segments > wire > sent - 300, "large packets, counted as the wire sees them as well"
    assert counting.total("networkobservability_forward_count", direction="egress") >= sent
    assert counting.missed() == {}


def flows_of(frames: list[bytes]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """(source, port, destination, port, protocol) to packets, bytes, SYN, FIN, RST of whole Ethernet frames."""
    import ipaddress

    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for frame in frames:
        kind = frame[12:14]
        if kind == b"\x08\x00":
            at, protocol, packed = 14 + (frame[14] & 15) * 4, frame[23], (frame[26:30], frame[30:34])
        elif kind == b"\x86\xdd":
            at, protocol, packed = 54, frame[20], (frame[22:38], frame[38:54])
        else:
            continue
        if protocol not in (6, 17):
            continue
        source, destination = (str(ipaddress.ip_address(p)) for p in packed)
        port, other = struct.unpack_from(">HH", frame, at)
        flags = frame[at + 13] if protocol == 6 else 0
        key = (source, str(port), destination, str(other), "tcp" if protocol == 6 else "udp")
        known = found.get(key, (0,) * 5)
        new = (1, len(frame), flags >> 1 & 1, flags & 1, flags >> 2 & 1)
        found[key] = tuple(a + b for a, b in zip(known, new, strict=True))
    return found


def test_every_flow_is_what_a_pcap_of_the_same_window_says(lab: Lab, tmp_path: Path) -> None:
    """TCP and UDP, IPv4 and IPv6: packets, bytes, SYN, FIN and RST of each direction of some 130 flows."""
    for node in (lab.a, lab.b):
        quiet(node)
        # One packet on the wire is one packet here: tcpdump and the program see the same frames.
        lab.inside(node, "ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off")
    lab.receive("10.93.0.2", 7000)
    lab.receive("fd93:0::2", 7000)
    tcpdump = "{tcpdump: {interfaces: [eth0], snaplen: 65535B, buffer_size: 32MiB}}, "
    with (
        Background(lab.b, SINK, "10.93.0.2", "7100") as four,
        Background(lab.b, SINK, "fd93:0::2", "7100") as six,
        Counting(tmp_path, "plugins: [packetparser], scope: netns", lab.a, more=tcpdump) as counting,
    ):
        python(lab.a, POUR, "10.93.0.2", "7100", "20011", "30")
        python(lab.a, POUR, "fd93:0::2", "7100", "5003", "30")
        assert [four.line() for _ in range(30)] == ["20011"] * 30
        assert [six.line() for _ in range(30)] == ["5003"] * 30
        for number in range(3):
            lab.send("10.93.0.2", 7000, 100 + number, size=300, source=41000 + number)
            lab.send("fd93:0::2", 7000, 50 + number, size=300, source=41000 + number)
    assert counting.archive.verdict(".pcap")["counts"]["dropped_by_kernel"] == 0
    truth = flows_of([frame for _, frame in counting.archive.pcap()])
    assert len(truth) >= 2 * 60 + 6
    ends = ("source_ip", "source_port", "destination_ip", "destination_port", "protocol")
    packets, sizes = (counting.parts(m, *ends, interface="eth0") for m in (FLOW_PACKETS, FLOW_BYTES))
    flags = {f: counting.parts(FLAGS, *ends, interface="eth0", flag=f) for f in ("SYN", "FIN", "RST")}
    counted = {
        key: (packets[key], sizes[key], *(flags[f].get(key, 0) for f in ("SYN", "FIN", "RST")))
        for key in packets
        if key[-1] in ("tcp", "udp")
    }
    assert counted == truth
    # The sender's own numbers: a third witness.
    assert counting.total(FLOW_BYTES, source_port="41001", source_ip="10.93.0.1") == 101 * (300 + 14 + 20 + 8)
    assert counting.total(FLOW_BYTES, source_port="41002", source_ip="fd93::1") == 52 * (300 + 14 + 40 + 8)
    assert counting.missed() == {}
    # First and last seen lie within the window, and in this order.
    begun = counting.parts("retinarun_flow_first_seen_seconds", *ends)
    ended = counting.parts("retinarun_flow_last_seen_seconds", *ends)
    assert begun.keys() == ended.keys() >= truth.keys()
    assert all(begun[key] <= ended[key] for key in begun)


def test_a_full_flow_table_forgets_the_least_used_and_says_how_many(lab: Lab, tmp_path: Path) -> None:
    quiet(lab.a)
    code = (
        "import socket\n"
        "for port in range(20000, 21000):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.sendto(b'x', ('10.93.0.2', port)); s.close()\n"
    )
    with Counting(tmp_path, "plugins: [packetparser], flow_entries: 64, scope: netns", lab.b) as counting:
        python(lab.a, code)
    kept = len(counting.parts(FLOW_PACKETS, "source_port", "destination_port", "direction"))
    missed = counting.missed()["flows_evicted"]
    assert 0 < kept < 1000
    assert missed >= 1000 - kept
    verdict = counting.archive.verdict("metrics.json")
    assert any("flows_evicted" in reason for reason in verdict["reasons"])
    assert counting.document["not_counted"]["flows_evicted"] == missed
