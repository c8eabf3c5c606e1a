"""DNS by type, code, protocol and family: a small server that answers as the name asks, and a client that counts its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ebpf.counting import Background, Counting, python
from tests.lab import Lab

pytestmark = pytest.mark.root

REQUESTS, RESPONSES = "networkobservability_dns_request_count", "networkobservability_dns_response_count"
LATENCY, UNANSWERED = "retinarun_dns_latency_seconds", "retinarun_dns_unanswered"

SERVER = """
import socket, sys, threading
def answer(asked):
    # The name's first label is the response code; "mute" is not answered.
    word = asked[13 : 13 + asked[12]].decode()
    if word == "mute":
        return None
    return asked[:2] + bytes((0x81, 0x80 | int(word))) + asked[4:6] + bytes(6) + asked[12:]
def datagrams(door):
    while True:
        asked, peer = door.recvfrom(4096)
        said = answer(asked)
        if said:
            door.sendto(said, peer)
def stream(taken):
    with taken:
        while head := taken.recv(2, socket.MSG_WAITALL):
            asked = taken.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
            said = answer(asked)
            taken.sendall(len(said).to_bytes(2, "big") + said)
def streams(door):
    while True:
        threading.Thread(target=stream, args=(door.accept()[0],), daemon=True).start()
for address in ("10.93.0.2", "fd93:0::2"):
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in map(int, sys.argv[1:]):
        door = socket.socket(kind, socket.SOCK_DGRAM)
        door.bind((address, port))
        threading.Thread(target=datagrams, args=(door,), daemon=True).start()
        listener = socket.create_server((address, port), family=kind)
        threading.Thread(target=streams, args=(listener,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
CLIENT = """
import socket, sys
address, port, protocol, first, qtype, count = (*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]))
kind = socket.AF_INET6 if ":" in address else socket.AF_INET
name = b"".join(bytes((len(p),)) + p for p in (first.encode(), b"some-host", b"example", b"org")) + b"\\0"
for number in range(count):
    asked = (number + 1).to_bytes(2, "big") + bytes((1, 0, 0, 1)) + bytes(6) + name + qtype.to_bytes(2, "big") + b"\\0\\1"
    if protocol == "udp":
        with socket.socket(kind, socket.SOCK_DGRAM) as door:
            door.connect((address, int(port)))
            door.send(asked)
            if first != "mute":
                assert door.recv(4096)[:2] == asked[:2]
    else:
        with socket.create_connection((address, int(port))) as pipe:
            pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipe.sendall(len(asked).to_bytes(2, "big") + asked)
            assert pipe.recv(2, socket.MSG_WAITALL) == len(asked).to_bytes(2, "big")
            assert pipe.recv(len(asked), socket.MSG_WAITALL)[:2] == asked[:2]
"""
TYPES = {1: "A", 28: "AAAA", 16: "TXT", 33: "SRV", 65: "HTTPS", 999: "TYPE999"}
CODES = {"0": "NOERROR", "2": "SERVFAIL", "3": "NXDOMAIN", "5": "REFUSED"}


@pytest.mark.parametrize("seen_by", ["client", "server"])
def test_requests_and_responses_by_type_and_code_are_what_was_asked(lab: Lab, tmp_path: Path, seen_by: str) -> None:
    """Each of 24 combinations another number of times, twelve over UDP and twelve over TCP, half over IPv6."""
    asked = [
        (address, protocol, code, qtype)
        for address, protocol, types in (
            ("10.93.0.2", "udp", (1, 28, 16)),
            ("fd93:0::2", "udp", (33, 65, 999)),
            ("10.93.0.2", "tcp", (1, 28, 33)),
            ("fd93:0::2", "tcp", (16, 65, 1)),
        )
        for qtype, code in zip(types, ("0", "3", "2"), strict=True)
    ] + [("10.93.0.2", "udp", "5", 1), ("fd93:0::2", "udp", "3", 28)]
    requests: dict[tuple[str, ...], float] = {}
    responses: dict[tuple[str, ...], float] = {}
    node = lab.a if seen_by == "client" else lab.b
    with Background(lab.b, SERVER, "53"), Counting(tmp_path, "plugins: [dns], scope: netns", node) as counting:
        for number, (address, protocol, code, qtype) in enumerate(asked, 5):
            python(lab.a, CLIENT, address, "53", protocol, code, str(qtype), str(number))
            key = (TYPES[qtype], protocol)
            requests[key] = requests.get(key, 0) + number
            answer = (TYPES[qtype], CODES[code], protocol)
            responses[answer] = responses.get(answer, 0) + number
        python(lab.a, CLIENT, "10.93.0.2", "53", "udp", "mute", "1", "7")
        requests["A", "udp"] += 7
        lab.send("10.93.0.2", 7002, 100)  # no DNS at all
    assert counting.parts(REQUESTS, "query_type", "protocol") == requests
    assert counting.parts(RESPONSES, "query_type", "return_code", "protocol") == responses
    answered = sum(responses.values())
    assert counting.total(f"{LATENCY}_count") == answered
    assert counting.total(f"{LATENCY}_bucket", le="+Inf") == answered
    assert counting.total(f"{LATENCY}_sum") > 0
    assert counting.total(UNANSWERED) == 7
    assert counting.missed() == {}


def test_any_port_on_request_and_no_other(lab: Lab, tmp_path: Path) -> None:
    with (
        Background(lab.b, SERVER, "53", "5355", "9953"),
        Counting(tmp_path, "plugins: [dns], dns_ports: [5355, 9953], scope: netns", lab.a) as counting,
    ):
        python(lab.a, CLIENT, "10.93.0.2", "53", "udp", "0", "1", "11")
        python(lab.a, CLIENT, "10.93.0.2", "5355", "udp", "0", "16", "12")
        python(lab.a, CLIENT, "fd93:0::2", "9953", "tcp", "0", "28", "13")
    assert counting.parts(REQUESTS, "query_type", "protocol") == {("TXT", "udp"): 12, ("AAAA", "tcp"): 13}
    assert counting.total(RESPONSES, return_code="NOERROR") == 25


def test_a_message_that_goes_out_and_comes_in_on_one_node_is_one(lab: Lab, tmp_path: Path) -> None:
    """Client and server are both in b: each message passes lo twice, once out and once in."""
    with Background(lab.b, SERVER, "53"), Counting(tmp_path, "plugins: [dns], scope: netns", lab.b) as counting:
        python(lab.b, CLIENT, "10.93.0.2", "53", "udp", "0", "1", "11")
        python(lab.b, CLIENT, "fd93:0::2", "53", "udp", "3", "28", "12")
        python(lab.b, CLIENT, "10.93.0.2", "53", "tcp", "0", "16", "13")
    assert counting.parts(REQUESTS, "query_type", "protocol") == {
        ("A", "udp"): 11,
        ("AAAA", "udp"): 12,
        ("TXT", "tcp"): 13,
    }
    assert counting.total(RESPONSES) == counting.total(f"{LATENCY}_count") == 36
