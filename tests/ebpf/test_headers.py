"""What lies between Ethernet and the ports: VLAN tags, IPv6 extension headers, no Ethernet header at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ebpf.counting import Counting, python
from tests.lab import Lab

pytestmark = pytest.mark.root

PACKETS, REQUESTS = "networkobservability_adv_forward_count", "networkobservability_dns_request_count"

FRAMES = r"""
import os, socket, struct, fcntl
def udp(port, payload):
    return struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload
def four(rest, protocol=17, source="10.93.99.1"):
    ends = socket.inet_aton(source) + b"\x0a\x5d\x63\x02"
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(rest), 1, 0, 64, protocol, 0) + ends + rest
def six(next_header, rest):
    ends = b"\xfd\x93" + bytes(13) + b"\x63" + b"\xfd\x93" + bytes(13) + b"\x64"
    return struct.pack(">IHBB", 6 << 28, len(rest), next_header, 64) + ends + rest
def options(next_header, more=0):
    return bytes((next_header, more, 1, 4 + 8 * more)) + bytes(4 + 8 * more)
def fragment(next_header, at=0):
    return struct.pack(">BBHI", next_header, 0, at << 3, 7)
def authentication(next_header):
    return struct.pack(">BBHII", next_header, 4, 0, 1, 1) + bytes(12)
def dns(number):
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + b"\4host\7example\0" + struct.pack(">HH", 28, 1)
VLAN, SERVICE = struct.pack(">HH", 0x8100, 10), struct.pack(">HH", 0x88A8, 20)
IPV4, IPV6 = b"\x08\0", b"\x86\xdd"
frames = [
    (11, VLAN + IPV4 + four(udp(7011, bytes(22)))),
    (12, SERVICE + VLAN + IPV4 + four(udp(7012, bytes(22)))),
    (13, VLAN + IPV6 + six(17, udp(7013, bytes(22)))),
    (14, IPV6 + six(0, options(17) + udp(7014, bytes(22)))),
    (15, IPV6 + six(0, options(60) + options(43, 2) + options(44) + fragment(17) + udp(7015, bytes(22)))),
    (16, IPV6 + six(51, authentication(17) + udp(7016, bytes(22)))),
    (17, SERVICE + VLAN + IPV6 + six(60, options(17, 1) + udp(7017, bytes(22)))),
    (18, IPV6 + six(44, fragment(17, 100) + udp(7018, bytes(22)))),
]
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
door.bind(("eth0", 0))
for count, frame in frames:
    for _ in range(count):
        door.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + frame)
for number in range(1, 6):
    door.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + SERVICE + VLAN + IPV4 + four(udp(53, dns(number))))
for number in range(11, 18):
    door.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + IPV6 + six(0, options(60) + options(17) + udp(53, dns(number))))
tunnel = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
os.system("ip link set tun0 up multicast off addrgenmode none 2>/dev/null; ip link set tun0 up")
for _ in range(19):
    os.write(tunnel, four(udp(7019, bytes(22))))
for _ in range(20):
    os.write(tunnel, six(17, udp(7020, bytes(22))))
for _ in range(21):
    os.write(tunnel, four(b"\x08\0\0\0\0\1\0\1", 1))
for source in ("8.0.200.1", "129.0.0.1"):  # where Ethernet has its type, these say IPv4 and VLAN
    for _ in range(9):
        os.write(tunnel, four(udp(7021, bytes(22)), source=source))
for number in range(21, 29):
    os.write(tunnel, four(udp(53, dns(number))))
"""
SENT = {("udp", str(7000 + n)): n for n in range(11, 18)}


def test_ports_are_found_behind_tags_and_extension_headers(lab: Lab, tmp_path: Path) -> None:
    """Frames as they are written in a and arrive in b, where the kernel has taken the outer tag out of the packet."""
    with Counting(tmp_path, f"plugins: [packetparser, dns], netns: [{lab.a}, {lab.b}]") as counting:
        python(lab.a, FRAMES)
    for netns, direction in ((lab.a, "egress"), (lab.b, "ingress")):
        only = {"netns": netns, "direction": direction, "interface": "eth0", "source_port": "4000"}
        found = counting.parts(PACKETS, "protocol", "destination_port", **only)
        assert found.pop(("udp", "53")) == 5 + 7
        assert found == SENT, netns
        fragments = {**only, "source_port": "0", "destination_ip": "fd93::64", "protocol": "udp"}
        assert counting.total(PACKETS, **fragments) == 18, "a later fragment has no ports"
    only = {"netns": lab.a, "direction": "ingress"}  # tun0 went with its process, and its name with it
    found = counting.parts(PACKETS, "source_ip", "destination_ip", "protocol", "destination_port", **only)
    assert {k: v for k, v in found.items() if k[0] in ("10.93.99.1", "fd93::63", "8.0.200.1", "129.0.0.1")} == {
        ("10.93.99.1", "10.93.99.2", "udp", "7019"): 19,
        ("fd93::63", "fd93::64", "udp", "7020"): 20,
        ("10.93.99.1", "10.93.99.2", "icmp", "0"): 21,
        ("10.93.99.1", "10.93.99.2", "udp", "53"): 8,
        ("8.0.200.1", "10.93.99.2", "udp", "7021"): 9,
        ("129.0.0.1", "10.93.99.2", "udp", "7021"): 9,
    }
    assert counting.total(REQUESTS, netns=lab.a, query_type="AAAA") == 5 + 7 + 8
    assert counting.total(REQUESTS, netns=lab.b, query_type="AAAA") == 5 + 7
