"""What each plugin's maps mean: from keys and values, laid out as in bpf/<plugin>.c, to samples."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from retina_runner.agent.ebpf.symbols import Symbols
from retina_runner.agent.ebpf.syscalls import Map
from retina_runner.agent.ebpf.tables import Flows, Sums, Table
from retina_runner.agent.metrics.model import Labels
from retina_runner.agent.metrics.states import STATES

DIRECTIONS = {0: "unknown", 1: "ingress", 2: "egress"}
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "icmpv6", 132: "sctp"}
ETHERNET = {0x0800: "ipv4", 0x86DD: "ipv6", 0x0806: "arp", 0: ""}
QUERY_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR", 43: "DS",
    46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 252: "AXFR", 255: "ANY",
}  # fmt: skip
RETURN_CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
UNDECODED = {1: "split", 2: "gap", 3: "unframed", 4: "malformed", 5: "crowded"}
RETINA_REASONS = {"NETFILTER_DROP": "IPTABLE_RULE_DROP"}
"""What Retina calls a reason of the kernel. Every other keeps the kernel's own name."""
BENIGN = ("QUEUE_PURGE", "CONSUMED", "NOT_DROPPED_YET")
"""Freed when a socket or queue is closed: no packet that anybody misses."""
NETFILTER = ("nf_hook_slow", "nft_do_chain", "ipt_do_table", "ip6t_do_table", "nf_hook_slow_list")
CONNTRACK = 0x80
CHAINS = {
    3: ("IN", "OUT", "FORWARD"),
    5: ("ingress", "egress"),
    7: ("bridge PREROUTING", "bridge INPUT", "bridge FORWARD", "bridge OUTPUT", "bridge POSTROUTING"),
}
"""By netfilter's family (NFPROTO_*), where it isn't those of IP."""
IP_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "ingress")
FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
KINDS = {0: "data", 1: "syn", 2: "synack", 3: "refused"}
RESETS = {4: "sent", 5: "received"}


class Decoder:
    """One plugin's maps in one unit. `place` names the namespace of an inode, and is what labels are made with."""

    def __init__(self, maps: Mapping[str, Map], facts: Mapping[str, Any], place: "Place"):
        self.maps, self.facts, self.place = maps, facts, place
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def zero(self) -> None:
        for table in vars(self).values():
            if isinstance(table, (Table, Flows)):
                table.zero()

    def read(self, into: Sums) -> None:
        raise NotImplementedError

    def loss(self) -> Dict[str, int]:
        return {}


class Place:
    """Names namespaces: those of the scope by the names that were given; `labelled` is whether samples tell them apart.

    `own` is the namespace of the unit's sockets, `interfaces` asks for its interfaces' names.
    """

    def __init__(self, names: Dict[int, str], labelled: bool, own: str, interfaces: Callable[[], Dict[int, str]]):
        self.names, self.labelled, self.own, self._interfaces = names, labelled, own, interfaces
        self._known: Dict[int, str] = {}

    def labels(self, inode: int) -> Labels:
        return (("netns", self.name(inode)),) if self.labelled else ()

    def own_labels(self) -> Labels:
        return (("netns", self.own),) if self.labelled else ()

    def name(self, inode: int) -> str:
        return self.names.get(inode, str(inode) if inode else "")

    def interface(self, number: int) -> str:
        if number not in self._known:
            try:
                self._known.update(self._interfaces())
            except OSError:
                pass
        return self._known.get(number, f"#{number}")


class DropReason(Decoder):
    def build(self) -> None:
        self.drops = Table(self.maps["drops"], "=QQ")
        self.symbols = Symbols()
        self.reasons = {
            value: name.replace("SKB_DROP_REASON_", "").replace("SKB_", "")
            for value, name in self.facts["enumerations"].get("skb_drop_reason", {}).items()
        }

    def read(self, into: Sums) -> None:
        found = {struct.unpack("=QIIHBBBBxx", key): value for key, value in self.drops.since().items()}
        self.symbols.learn(key[0] for key in found)
        for (location, reason, netns, ethernet, direction, protocol, empty, detail), (packets, size) in found.items():
            symbol = self.symbols.name(location)
            name = self._reason(reason, symbol)
            benign = bool(empty) or name in BENIGN
            way = DIRECTIONS.get(direction, "unknown")
            # An skb that passed netfilter and was dropped later still has the detail: it doesn't belong to that drop.
            chain = _chain(detail) if name == "NETFILTER_DROP" else ""
            by_conntrack = name == "NETFILTER_DROP" and bool(detail & CONNTRACK)
            labels: Labels = (
                ("reason", name), ("direction", way), ("family", _ethernet(ethernet)),
                ("protocol", PROTOCOLS.get(protocol, str(protocol) if protocol else "")), ("location", symbol),
                ("class", "benign" if benign else "drop"), ("netns", self.place.name(netns)),
                ("chain", chain), ("cause", "conntrack_insert" if by_conntrack else ""),
            )  # fmt: skip
            into.add("retinarun_drop_packets_total", labels, packets)
            into.add("retinarun_drop_bytes_total", labels, size)
            if not benign:
                called = "CONNTRACK_ADD_DROP" if by_conntrack else RETINA_REASONS.get(name, name)
                given = (("reason", called), ("direction", way), *self.place.labels(netns))
                into.add("networkobservability_drop_count", given, packets)
                into.add("networkobservability_drop_bytes", given, size)

    def _reason(self, reason: int, symbol: str) -> str:
        if not self.facts["tracepoints"].get("kfree_skb", 0) >= 3:
            return "NETFILTER_DROP" if symbol in NETFILTER else "NOT_SPECIFIED"
        return self.reasons.get(reason) or f"SUBSYSTEM_{reason >> 16}_{reason & 0xFFFF}"


class TcpRetrans(Decoder):
    def build(self) -> None:
        self.again = Table(self.maps["again"], "=Q")
        self.flows = Flows(self.maps["again_flows"], "=Q")
        names = self.facts["enumerations"].get("sk_rst_reason", {})
        self.reasons = {value: name.replace("SK_RST_REASON_", "") for value, name in names.items()}

    def read(self, into: Sums) -> None:
        for key, (number,) in self.again.since().items():
            netns, reason, kind, state = struct.unpack("=IIII", key)
            where = self.place.labels(netns)
            if kind in KINDS:
                given = (("kind", KINDS[kind]), ("state", STATES.get(state, "")), *where)
                into.add("retinarun_tcp_retransmitted_segments_total", given, number)
            else:
                why = self.reasons.get(reason, "") if kind == 4 else ""
                given = (("direction", RESETS[kind]), ("state", STATES.get(state, "")), ("reason", why), *where)
                into.add("retinarun_tcp_resets_total", given, number)
        for key, (number,) in self.flows.since().items():
            netns, _, kind, _, family, port, remote_port, local, remote = struct.unpack("=IIBBHHH16s16s", key)
            width = 16 if family == socket.AF_INET6 else 4
            here = (("source_ip", _address(local[:width])), ("source_port", str(port)))
            there = (
                ("destination_ip", _address(remote[:width])),
                ("destination_port", str(socket.ntohs(remote_port))),
            )
            where = self.place.labels(netns)
            if kind in RESETS:
                into.add(
                    "retinarun_tcp_reset_flows_total", (("direction", RESETS[kind]), *here, *there, *where), number
                )
            elif kind != 3:
                into.add(
                    "networkobservability_adv_tcpretrans_count",
                    (("direction", "egress"), *here, *there, *where),
                    number,
                )


class TcpConnect(Decoder):
    def build(self) -> None:
        self.connects = Table(self.maps["connects"], "=Q")
        self.handshakes = Table(self.maps["handshakes"], "=QQ")

    def read(self, into: Sums) -> None:
        for key, (number,) in self.connects.since().items():
            netns, error, family, kind = struct.unpack("=IIHH", key)
            where = self.place.labels(netns)
            version = ("family", "ipv6" if family == socket.AF_INET6 else "ipv4")
            if kind == 1:
                name = errno.errorcode.get(error, str(error)) if error else "closed"
                into.add("retinarun_tcp_connect_failures_total", (("error", name), version, *where), number)
            else:
                role = "accepted" if kind == 2 else "connected"
                into.add("retinarun_tcp_connections_total", (("role", role), version, *where), number)
        slots: Dict[Tuple[int, int], Dict[int, Tuple[int, ...]]] = {}
        for key, value in self.handshakes.since().items():
            netns, slot, kind = struct.unpack("=IHH", key)
            known = slots.setdefault((netns if self.place.labelled else 0, kind), {})
            known[slot] = tuple(a + b for a, b in zip(known.get(slot, (0, 0)), value))
        for (netns, kind), found in slots.items():
            where = self.place.labels(netns)
            if kind == 3:
                into.histogram("retinarun_tcp_accept_wait_seconds", where, found)
            else:
                side = ("role", "accepted" if kind == 2 else "connected")
                into.histogram("retinarun_tcp_handshake_seconds", (side, *where), found)


class PacketForward(Decoder):
    def build(self) -> None:
        self.forwards, self.first = (Table(self.maps[name], "=QQQ") for name in ("forwards", "first_forwards"))

    def read(self, into: Sums) -> None:
        where = self.place.own_labels()
        found = {struct.unpack("=II", key): value for key, value in self.forwards.since().items()}
        for key, value in self.first.since().items():
            number, outwards = divmod(struct.unpack("=I", key)[0], 2)
            found[number, 1 + outwards] = value
        for (number, direction), (packets, more, size) in found.items():
            way = ("direction", DIRECTIONS[direction])
            given = (("interface", self.place.interface(number)), way, *where)
            into.add("retinarun_forward_packets_total", given, packets)
            into.add("retinarun_forward_segments_total", given, packets + more)
            into.add("retinarun_forward_bytes_total", given, size)
            into.add("networkobservability_forward_count", (way, *where), packets)
            into.add("networkobservability_forward_bytes", (way, *where), size)


class Dns(Decoder):
    def build(self) -> None:
        self.messages = Table(self.maps["dns_messages"], "=QQ")
        self.latency = Table(self.maps["dns_latency"], "=QQ")
        self.undecoded = Table(self.maps["dns_undecoded"], "=Q")
        self.open = Flows(self.maps["dns_open"], "=Q")  # dns_streams isn't emptied: what began before T0 goes on

    def read(self, into: Sums) -> None:
        where = self.place.own_labels()
        for key, (number, _) in self.messages.since().items():
            qtype, response, rcode, protocol, has_question = struct.unpack("=HBBBB2x", key)
            asked = ("query_type", QUERY_TYPES.get(qtype, f"TYPE{qtype}") if has_question else "none")
            over = ("protocol", PROTOCOLS.get(protocol, str(protocol)))
            if response:
                answered = (asked, ("return_code", RETURN_CODES.get(rcode, f"RCODE{rcode}")), over, *where)
                into.add("networkobservability_dns_response_count", answered, number)
            else:
                into.add("networkobservability_dns_request_count", (asked, over, *where), number)
        slots = {struct.unpack("=I", key)[0]: value for key, value in self.latency.since().items()}
        if slots:
            into.histogram("retinarun_dns_latency_seconds", where, slots)
        into.add("retinarun_dns_unanswered", where, len(self.open))
        for key, (number,) in self.undecoded.since().items():
            why, protocol = struct.unpack("=BB6x", key)
            given = (
                ("protocol", PROTOCOLS.get(protocol, str(protocol))),
                ("why", UNDECODED.get(why, str(why))),
                *where,
            )
            into.add("retinarun_dns_undecoded_total", given, number)

    def loss(self) -> Dict[str, int]:
        """What isn't a DNS message at all is no loss."""
        found = self.undecoded.since().items()
        return {"dns_undecoded": sum(value[0] for key, value in found if UNDECODED.get(key[0]) != "malformed")}


class PacketParser(Decoder):
    def build(self) -> None:
        self.flows = Flows(self.maps["flows"], "=QQQQ8I")
        self.inserted = Table(self.maps["flows_inserted"], "=Q")

    def read(self, into: Sums) -> None:
        clock = time.time() - time.monotonic()
        for key, (packets, size, first, last, *flags) in self.flows.since().items():
            number, source, destination, port, other, protocol, family, direction = struct.unpack("=I16s16sHHBBBx", key)
            width = 16 if family == 6 else 4
            given: Labels = (
                ("direction", DIRECTIONS[direction]),
                ("source_ip", _address(source[:width])), ("source_port", str(socket.ntohs(port))),
                ("destination_ip", _address(destination[:width])), ("destination_port", str(socket.ntohs(other))),
                ("protocol", PROTOCOLS.get(protocol, str(protocol))), ("interface", self.place.interface(number)),
                *self.place.own_labels(),
            )  # fmt: skip
            into.add("networkobservability_adv_forward_count", given, packets)
            into.add("networkobservability_adv_forward_bytes", given, size)
            into.add("retinarun_flow_first_seen_seconds", given, round(first / 1e9 + clock, 6))
            into.add("retinarun_flow_last_seen_seconds", given, round(last / 1e9 + clock, 6))
            for flag, count in zip(FLAGS, flags):
                if count:
                    into.add("networkobservability_adv_tcpflags_count", (("flag", flag), *given), count)

    def loss(self) -> Dict[str, int]:
        inserted = sum(value[0] for value in self.inserted.since().values())
        return {"flows_evicted": max(0, inserted - len(self.flows))}


DECODERS = {
    "dropreason": DropReason,
    "tcpretrans": TcpRetrans,
    "tcpconnect": TcpConnect,
    "packetforward": PacketForward,
    "dns": Dns,
    "packetparser": PacketParser,
}


class Described(Decoder):
    """A user's own plugin: maps that its description says are metrics, with the key's fields as labels."""

    description: Mapping[str, Any] = {}

    def build(self) -> None:
        self.tables = [
            (entry, Table(self.maps[entry["name"]], {"u32": "=I", "u64": "=Q"}[entry.get("value", "u64")]))
            for entry in self.description["maps"]
            if entry.get("metric")
        ]

    def zero(self) -> None:
        for _, table in self.tables:
            table.zero()

    def read(self, into: Sums) -> None:
        for entry, table in self.tables:
            for key, (number,) in table.since().items():
                into.add(entry["metric"], tuple(_fields(entry.get("key", ()), key)), number)


_INTEGERS = {
    "u8": "=B", "u16": "=H", "u32": "=I", "u64": "=Q", "s8": "=b", "s16": "=h", "s32": "=i", "s64": "=q", "be16": ">H",
    "be32": ">I",
}  # fmt: skip


def _fields(fields: Any, key: bytes) -> "list[Tuple[str, str]]":
    """Fields lie behind each other as written: padding is a field with an empty label."""
    at, labels = 0, []
    for field in fields:
        kind = field["type"]
        if kind in _INTEGERS:
            size = struct.calcsize(_INTEGERS[kind])
            number = struct.unpack_from(_INTEGERS[kind], key, at)[0]
            text = str(field.get("names", {}).get(str(number), number))
        elif kind in ("ipv4", "ipv6"):
            size = 4 if kind == "ipv4" else 16
            text = _address(key[at : at + size])
        else:
            size = int(field["size_bytes"])
            text = key[at : at + size].split(b"\0")[0].decode("utf-8", "replace")
        at += size
        if field["label"]:
            labels.append((field["label"], text))
    return labels


def key_bytes(fields: Any) -> Optional[int]:
    """How long a key with these fields is."""
    total = 0
    for field in fields:
        kind = field["type"]
        total += struct.calcsize(_INTEGERS[kind]) if kind in _INTEGERS else {"ipv4": 4, "ipv6": 16}.get(kind, 0)
        total += int(field.get("size_bytes", 0)) if kind == "text" else 0
    return total


def _address(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def _chain(detail: int) -> str:
    """The hook in what the probes of bpf/dropreason.c remember; empty where they know none."""
    family, hook = detail >> 3 & 15, detail & 7
    names = CHAINS.get(family, IP_CHAINS) if family else ()
    return names[hook] if hook < len(names) else ""


def _ethernet(big_endian: int) -> str:
    number = socket.ntohs(big_endian)
    return ETHERNET.get(number, f"0x{number:04x}")
