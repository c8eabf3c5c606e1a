"""DNS over TCP: messages wherever they begin in a segment, each once; what can't be read in one piece is counted by why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ebpf.counting import Background, Counting, python
from tests.ebpf.test_dns import LATENCY, REQUESTS, RESPONSES, SERVER, UNANSWERED
from tests.lab import Lab, eventually, sh

pytestmark = pytest.mark.root

UNDECODED = "retinarun_dns_undecoded_total"
ADDRESSES = ["10.93.0.2", "fd93:0::2"]
TALK = """
import socket, sys, time
def asked(number, qtype=1, name=(b"0", b"some-host", b"example", b"org"), filler=0):
    labels = b"".join(bytes((len(p),)) + p for p in name) + b"\\0"
    told = number.to_bytes(2, "big") + bytes((1, 0, 0, 1)) + bytes(6) + labels + qtype.to_bytes(2, "big") + b"\\0\\1"
    return told + bytes(filler)
def framed(message):
    return len(message).to_bytes(2, "big") + message
def connected(address, port=53):
    pipe = socket.create_connection((address, port))
    pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return pipe
def written(pipe, *pieces):
    # The other end's acknowledgement of each piece, before the next goes: no two of them are ever one segment.
    for piece in pieces:
        pipe.send(piece)
        while int.from_bytes(pipe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[24:28], sys.byteorder):
            time.sleep(0.001)  # tcpi_unacked
def answered(pipe, count=1):
    for _ in range(count):
        size = int.from_bytes(pipe.recv(2, socket.MSG_WAITALL), "big")
        assert len(pipe.recv(size, socket.MSG_WAITALL)) == size
"""
PIECES = (
    TALK
    + """
address = sys.argv[1]
with connected(address) as pipe:
    # The length in a segment of its own, 11 times; 7 and 20 messages in one segment; one and a half, and the rest of it.
    for number in range(1, 12):
        message = framed(asked(number, 28))
        written(pipe, message[:2], message[2:])
        answered(pipe)
    for many in (7, 20):
        written(pipe, b"".join(framed(asked(100 * many + n, 33)) for n in range(many)))
        answered(pipe, many)
    # A message, and of the next one its length and nothing else, three times; then half of the length.
    for number in range(301, 304):
        first, second = framed(asked(number, 65)), framed(asked(number + 10, 16))
        written(pipe, first + second[:2], second[2:])
        answered(pipe, 2)
        written(pipe, first + second[:1], second[1:])
        answered(pipe, 2)
    # What can't be read: the header in two pieces, the name in two pieces, everything byte by byte.
    for number, cut in ((401, 9), (402, 14), (403, 20), (404, 30)):
        message = framed(asked(number, 1))
        written(pipe, message[:cut], message[cut:])
        answered(pipe)
    written(pipe, *(bytes((b,)) for b in framed(asked(405, 1))))
    answered(pipe)
    # Larger than a segment, a hundred times: one message each, whatever its middle looks like.
    for number in range(500, 600):
        pipe.sendall(framed(asked(number, 255, filler=3000) + framed(asked(7, 999)) * 20))
        answered(pipe)
"""
)


@pytest.fixture
def served(lab: Lab) -> Iterator[Lab]:
    with Background(lab.b, SERVER, "53"):
        yield lab


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_messages_are_found_wherever_they_begin_in_a_segment(
    served: Lab, tmp_path: Path, address: str, offload: str
) -> None:
    lab = served
    for node in (lab.a, lab.b):
        lab.inside(node, "ethtool", "-K", "eth0", "tso", offload, "gso", offload, "gro", offload)
    with Counting(tmp_path, f"plugins: [dns], netns: [{lab.a}, {lab.b}]") as counting:
        python(lab.a, PIECES, address)
    for netns in (lab.a, lab.b):
        assert counting.parts(REQUESTS, "query_type", "protocol", netns=netns) == {
            ("AAAA", "tcp"): 11, ("SRV", "tcp"): 27, ("HTTPS", "tcp"): 6, ("TXT", "tcp"): 6, ("ANY", "tcp"): 100,
        }  # fmt: skip
        assert counting.parts(UNDECODED, "why", "protocol", netns=netns) == {("split", "tcp"): 5}
        # The server answers each in one write: all of them are read, those whose request wasn't as well.
        assert counting.parts(RESPONSES, "query_type", "return_code", netns=netns) == {
            ("AAAA", "NOERROR"): 11, ("SRV", "NOERROR"): 27, ("HTTPS", "NOERROR"): 6, ("TXT", "NOERROR"): 6,
            ("ANY", "NOERROR"): 100, ("A", "NOERROR"): 5,
        }  # fmt: skip
        assert counting.total(f"{LATENCY}_count", netns=netns) == 150
        assert counting.total(UNANSWERED, netns=netns) == 0
    assert counting.missed() == {"dns_undecoded": 10}
    assert any("dns_undecoded 10" in reason for reason in counting.archive.verdict("metrics.json")["reasons"])


def test_what_is_sent_again_is_one_and_what_was_not_seen_is_a_gap(served: Lab, tmp_path: Path) -> None:
    """b sees one message three times: its answer's acknowledgement is lost. And one, which a rule of a's keeps, too late."""
    lab = served
    drop = ["-p", "tcp", "--dport", "53", "-m", "string", "--algo", "bm", "--string"]
    lab.inside(lab.b, "iptables", "-A", "INPUT", *drop, "again", "-j", "DROP")
    # Another way, into nothing: what a rule drops on its way out would be known to TCP, which then sends nothing else.
    sh("ip", "-n", lab.a, "link", "add", "nowhere", "up", "type", "veth", "peer", "name", "nobody")
    sh("ip", "-n", lab.a, "link", "set", "nobody", "up")
    absent = ["lladdr", "02:00:00:00:00:99", "dev", "nowhere", "nud", "permanent"]
    sh("ip", "-n", lab.a, "neigh", "replace", "10.93.0.2", *absent)
    sh("ip", "-n", lab.a, "route", "add", "default", "dev", "nowhere", "table", "77")
    sh("ip", "-n", lab.a, "rule", "add", "fwmark", "7", "lookup", "77")
    lab.inside(lab.a, "iptables", "-t", "mangle", "-A", "OUTPUT", *drop, "later", "-j", "MARK", "--set-mark", "7")
    again = TALK + "\n".join((
        "pipe = connected('10.93.0.2')",
        "written(pipe, framed(asked(1, 28)))",
        "answered(pipe)",
        "print('ready', flush=True)",
        "pipe.sendall(framed(asked(2, 16, (b'0', sys.argv[1].encode()))))",
        "pipe.sendall(framed(asked(3, 33))) if len(sys.argv) > 2 else None",
        "answered(pipe, len(sys.argv) - 1)",
        "print('done', flush=True)",
    ))  # fmt: skip

    def seen() -> int:
        rule = sh("ip", "netns", "exec", lab.b, "iptables", "-vnxL", "INPUT").splitlines()[-1]
        return int(rule.split()[0])

    with Counting(tmp_path, "plugins: [dns], scope: netns", lab.b) as counting:
        with Background(lab.a, again, "again") as client:
            eventually(lambda: seen() >= 3, "a message that came three times")
            lab.inside(lab.b, "iptables", "-F", "INPUT")
            assert client.line() == "done"
        with Background(lab.a, again, "later", "and one more") as client:
            eventually(lambda: counting_saw(counting, "SRV"), "the message behind the one that is kept")
            lab.inside(lab.a, "iptables", "-t", "mangle", "-F", "OUTPUT")
            assert client.line() == "done"
    assert counting.parts(REQUESTS, "query_type") == {("AAAA",): 2, ("TXT",): 1, ("SRV",): 1}
    assert counting.parts(UNDECODED, "why") == {("gap",): 1}
    assert counting.total(RESPONSES) == 5
    assert counting.missed() == {"dns_undecoded": 1}


def counting_saw(counting: Counting, query_type: str) -> bool:
    """Whether the series has it already."""
    wanted = f'"query_type":"{query_type}"'
    return any(wanted in path.read_text() for path in counting.run.work.rglob("series.jsonl"))


def test_connections_older_than_the_capture(served: Lab, tmp_path: Path) -> None:
    """One is idle when counting begins; of another a message is half sent, and its second half begins with no message."""
    lab = served
    code = TALK + "\n".join((
        "idle, busy = connected('10.93.0.2'), connected('fd93:0::2')",
        "whole, half = framed(asked(1, 28)), framed(asked(2, 28))",
        "written(idle, whole)",
        "answered(idle)",
        "written(busy, half[:20])",
        "print('ready', flush=True)",
        "sys.stdin.readline()",
        "written(busy, half[20:])",
        "answered(busy)",
        "written(busy, framed(asked(3, 16)), framed(asked(4, 16)))",
        "answered(busy, 2)",
        "written(idle, framed(asked(5, 33)))",
        "answered(idle)",
        "print('done', flush=True)",
    ))  # fmt: skip
    with Background(lab.a, code) as client, Counting(tmp_path, "plugins: [dns], scope: netns", lab.b) as counting:
        client.say("now")
        assert client.line() == "done"
    assert counting.parts(REQUESTS, "query_type") == {("TXT",): 2, ("SRV",): 1}
    assert counting.parts(UNDECODED, "why") == {("unframed",): 1}
    assert counting.parts(RESPONSES, "query_type") == {("AAAA",): 1, ("TXT",): 2, ("SRV",): 1}


def test_too_many_at_once_and_no_dns_at_all(served: Lab, tmp_path: Path) -> None:
    lab = served
    crowd = TALK + "\n".join((
        "pipe = connected('10.93.0.2')",
        "written(pipe, b''.join(framed(asked(n, 28)) for n in range(33)))",
        "answered(pipe, 33)",
        "written(pipe, b''.join(framed(asked(n, 16, (b'0',))) for n in range(40)))",
        "answered(pipe, 40)",
        "written(pipe, framed(asked(99, 33)))",
        "answered(pipe)",
    ))  # fmt: skip
    noise = (
        "import socket\n"
        "door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "door.connect(('10.93.0.9', 53))\n"
        "for bad in (b'', b'GET /', bytes(11), bytes((0, 1, 1, 0, 0, 1)) + bytes(6) + bytes((200,)) * 40):\n"
        "    door.send(bad)\n"
        "door.send(bytes((0, 9, 0x81, 0x85)) + bytes(8))\n"  # a refusal without a question
    )
    sh(
        "ip",
        "-n",
        lab.a,
        "neigh",
        "replace",
        "10.93.0.9",
        "lladdr",
        "02:00:00:00:00:99",
        "dev",
        "eth0",
        "nud",
        "permanent",
    )
    with Counting(tmp_path, "plugins: [dns], scope: netns", lab.a) as counting:
        python(lab.a, crowd)
        python(lab.a, noise)
    assert counting.parts(REQUESTS, "query_type") == {("AAAA",): 33, ("TXT",): 33, ("SRV",): 1}
    found = counting.parts(UNDECODED, "why", "protocol")
    # The server may answer the crowd in one segment, or in several.
    assert found.pop(("malformed", "udp")) == 4
    assert found.keys() == {("crowded", "tcp")}
    assert counting.total(RESPONSES, return_code="REFUSED", query_type="none", protocol="udp") == 1
    assert counting.missed() == {"dns_undecoded": found["crowded", "tcp"]}


RESOLVER = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(*sorted({a[4][0] for a in socket.getaddrinfo(name, 80)}))
    except socket.gaierror as error:
        print(error.args[0] == socket.EAI_NONAME)
"""
ASK = (
    TALK
    + """
with connected(sys.argv[1]) as pipe:
    for number, (qtype, name) in enumerate(((16, b"there"), (1, b"elsewhere"), (33, b"there")) * int(sys.argv[2])):
        pipe.sendall(framed(asked(number, qtype, (name, b"example", b"org" if qtype != 33 else b"net"))))
        answered(pipe)
"""
)


def test_dnsmasq_and_the_c_librarys_resolver(lab: Lab, tmp_path: Path) -> None:
    """What real programs write: glibc asks for A and AAAA in one segment; dnsmasq answers that, and many on one connection."""
    records = ["--host-record=there.example.org,192.0.2.7,2001:db8::7", "--txt-record=there.example.org,some text"]
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.b, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
         "--user=root", "--pid-file=", "--listen-address=10.93.0.2,fd93:0::2", "--bind-interfaces", "--local=/example.org/", *records],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        eventually(lambda: ":53 " in lab.inside(lab.b, "ss", "-tln"), "dnsmasq listens")
        with Counting(tmp_path, "plugins: [dns], scope: netns", lab.a) as counting:
            for number, address in enumerate(ADDRESSES, 1):
                configuration = tmp_path / f"resolv{number}.conf"
                configuration.write_text(f"nameserver {address}\noptions use-vc timeout:20\n")
                mine = [
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    f'mount --bind {configuration} /etc/resolv.conf && exec "$@"',
                    "sh",
                ]
                names = ["there.example.org"] * 3 * number + ["nowhere.example.org"]
                said = lab.inside(lab.a, *mine, sys.executable, "-c", RESOLVER, *names).splitlines()
                assert said == ["192.0.2.7 2001:db8::7"] * 3 * number + ["True"]
                python(lab.a, ASK, address, str(4 * number))
    finally:
        server.terminate()
        server.communicate()
    assert counting.parts(RESPONSES, "query_type", "return_code", "protocol") == {
        ("A", "NOERROR", "tcp"): 9, ("AAAA", "NOERROR", "tcp"): 9, ("A", "NXDOMAIN", "tcp"): 2 + 12,
        ("AAAA", "NXDOMAIN", "tcp"): 2, ("TXT", "NOERROR", "tcp"): 12, ("SRV", "REFUSED", "tcp"): 12,
    }  # fmt: skip
    asked = counting.parts(REQUESTS, "query_type", "protocol")
    assert asked == {("A", "tcp"): 23, ("AAAA", "tcp"): 11, ("TXT", "tcp"): 12, ("SRV", "tcp"): 12}
    assert counting.total(f"{LATENCY}_count") == 58
    assert counting.total(UNANSWERED) == 0
    assert counting.missed() == {}
