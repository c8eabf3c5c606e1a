"""Kernel counters as flat typed samples, and how far each went between two snapshots. Pure; parsers never raise.

A snapshot is {(name, labels): (value, kind)}: labels are a tuple of (key, value) pairs; kind is `counter` (only grows,
until it wraps or is reset) or `gauge`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, Tuple

COUNTER, GAUGE, FAMILY = "counter", "gauge", "family"
"""FAMILY marks a metric (without labels, value 0) whose label sets appear with their first event: one that isn't there is 0."""
Key = Tuple[str, Tuple[Tuple[str, str], ...]]
Snapshot = Dict[Key, Tuple[int, str]]

_GAUGES = {
    "CurrEstab",
    "Forwarding",
    "DefaultTTL",
    "RtoAlgorithm",
    "RtoMin",
    "RtoMax",
    "MaxConn",
    "backlog",
    "qlen",
    "entries",
}
"""Names in the files below that aren't counters: RFC 4293 and 4022 say which, and the queue lengths."""
SOFTNET = {0: "processed", 1: "dropped", 2: "time_squeeze", 9: "received_rps", 10: "flow_limit_count", 11: "backlog"}
"""Columns of /proc/net/softnet_stat, net/core/net-procfs.c; all hexadecimal. Column 12 is the CPU."""
DEV_COLUMNS = (
    "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "rx_fifo", "rx_frame", "rx_compressed", "rx_multicast",
    "tx_bytes", "tx_packets", "tx_errors", "tx_dropped", "tx_fifo", "tx_collisions", "tx_carrier", "tx_compressed",
)  # fmt: skip
SOFTIRQS = ("NET_RX", "NET_TX")
QDISC = ("bytes", "packets", "drops", "overlimits", "requeues", "backlog", "qlen")


def _put(into: Snapshot, name: str, value: int, kind: str = "", **labels: str) -> None:
    into[(name, tuple(sorted(labels.items())))] = (
        value,
        kind or (GAUGE if name.rpartition(".")[2] in _GAUGES else COUNTER),
    )


def _integer(text: str) -> Any:
    return int(text) if re.match(r"-?\d+\Z", text) else None


def parse_snmp(text: str) -> Snapshot:
    """/proc/net/snmp and /proc/net/netstat: pairs of lines, names and values, each beginning with the protocol."""
    found: Snapshot = {}
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2]):
        protocol, _, rest = names.partition(":")
        same, _, numbers = values.partition(":")
        if protocol != same:
            continue
        for name, number in zip(rest.split(), numbers.split()):
            value = _integer(number)
            if value is not None:
                _put(found, f"{protocol}.{name}", value)
    return found


def parse_pairs(text: str) -> Snapshot:
    """/proc/net/snmp6: a name and a value a line."""
    found: Snapshot = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and _integer(words[1]) is not None:
            _put(found, words[0], int(words[1]))
    return found


def parse_sockstat(text: str) -> Snapshot:
    """/proc/net/sockstat: a protocol, then names and values; all gauges."""
    found: Snapshot = {}
    for line in text.splitlines():
        protocol, colon, rest = line.partition(":")
        words = rest.split()
        for name, number in zip(words[::2], words[1::2]):
            value = _integer(number)
            if colon and value is not None:
                _put(found, f"{protocol}.{name}", value, GAUGE)
    return found


def parse_softnet(text: str) -> Snapshot:
    """/proc/net/softnet_stat: a line a CPU."""
    found: Snapshot = {}
    for number, line in enumerate(text.splitlines()):
        columns = line.split()
        try:
            values = [int(c, 16) for c in columns]
        except ValueError:
            continue
        cpu = str(values[12]) if len(values) > 12 else str(number)
        for column, name in SOFTNET.items():
            if column < len(values):
                _put(found, f"softnet.{name}", values[column], cpu=cpu)
    return found


def parse_dev(text: str) -> Snapshot:
    """/proc/net/dev: sixteen columns an interface."""
    found: Snapshot = {}
    for line in text.splitlines():
        interface, colon, rest = line.rpartition(":")
        values = [_integer(w) for w in rest.split()]
        if not colon or len(values) < len(DEV_COLUMNS) or None in values:
            continue
        for name, value in zip(DEV_COLUMNS, values):
            _put(found, f"interface.{name}", value, interface=interface.strip())
    return found


def parse_conntrack(text: str) -> Snapshot:
    """`conntrack -S` (cpu=0 found=1 …), or /proc/net/stat/nf_conntrack (hexadecimal columns under names, a line a CPU)."""
    found: Snapshot = {}
    lines = text.splitlines()
    for line in lines:
        pairs = re.findall(r"(\w+)=(\d+)", line)
        cpu = dict(pairs).get("cpu", "0")
        for name, number in pairs:
            if name != "cpu":
                _put(found, f"conntrack.{name}", int(number), cpu=cpu)
    if found or len(lines) < 2 or not lines[0].startswith("entries"):
        return found
    names = lines[0].split()
    for cpu_number, line in enumerate(lines[1:]):
        try:
            values = [int(c, 16) for c in line.split()]
        except ValueError:
            continue
        for name, value in zip(names, values):
            _put(found, f"conntrack.{name}", value, cpu=str(cpu_number))
    return found


def parse_number(name: str) -> Callable[[str], Snapshot]:
    """A file with one number: a gauge of that name."""

    def parse(text: str) -> Snapshot:
        found: Snapshot = {}
        value = _integer(text.strip())
        if value is not None:
            _put(found, name, value, GAUGE)
        return found

    return parse


def parse_qdisc(text: str) -> Snapshot:
    """`tc -s -j qdisc`."""
    found: Snapshot = {}
    try:
        entries = json.loads(text)
    except ValueError:
        return found
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        labels = {
            "interface": str(entry.get("dev", "")),
            "qdisc": str(entry.get("kind", "")),
            "handle": str(entry.get("handle", "")),
        }
        if entry.get("parent"):
            labels["parent"] = str(entry["parent"])
        for name in QDISC:
            if isinstance(entry.get(name), int):
                _put(found, f"qdisc.{name}", entry[name], **labels)
    return found


def parse_ethtool(interface: str) -> Callable[[str], Snapshot]:
    """`ethtool -S`: a name and a value a line, below a heading."""

    def parse(text: str) -> Snapshot:
        found: Snapshot = {}
        for line in text.splitlines():
            name, colon, number = line.strip().rpartition(":")
            value = _integer(number.strip())
            if colon and name and value is not None:
                _put(found, f"ethtool.{name.strip()}", value, interface=interface)
        return found

    return parse


def parse_softirqs(text: str) -> Snapshot:
    """/proc/softirqs: the rows for networking, a column a CPU."""
    found: Snapshot = {}
    lines = text.splitlines()
    cpus = lines[0].split() if lines else []
    for line in lines[1:]:
        name, _, rest = line.partition(":")
        if name.strip() in SOFTIRQS:
            for cpu, number in zip(cpus, rest.split()):
                value = _integer(number)
                if value is not None:
                    _put(found, f"softirq.{name.strip()}", value, cpu=cpu[3:])
    return found


def delta(source: str, before: Snapshot, after: Snapshot) -> List[Dict[str, Any]]:
    """What moved, as JSON objects: source, name, labels, before, after, delta, kind, status.

    `status`: `ok`; `appeared`/`vanished` (an interface came or went; the other value is null); `wrapped` (a 32-bit
    counter passed 2^32: the delta is right); `reset` (it went back further than that explains: the delta is its value
    since, so at least).
    """
    moved = []
    for key in dict.fromkeys([*before, *after]):
        name, labels = key
        earlier, later = before.get(key), after.get(key)
        kind = (later or earlier or (0, COUNTER))[1]
        entry: Dict[str, Any] = {"source": source, "name": name, "labels": dict(labels)}
        if earlier is None or later is None:
            value = (later or earlier or (0, ""))[0]
            if not value:
                continue
            entry.update(
                before=earlier[0] if earlier else None,
                after=later[0] if later else None,
                delta=value if earlier is None else None,
                kind=kind,
                status="appeared" if earlier is None else "vanished",
            )
        else:
            moved_by, status = change(earlier[0], later[0], kind)
            if not moved_by and status == "ok":
                continue
            entry.update(before=earlier[0], after=later[0], delta=moved_by, kind=kind, status=status)
        moved.append(entry)
    return moved


def change(before: int, after: int, kind: str) -> Tuple[int, str]:
    """(how far it went, `ok`, `wrapped` or `reset`); see `delta`."""
    if kind == GAUGE or after >= before:
        return after - before, "ok"
    # A counter that went back: a 32-bit one wraps near 2^32, and hardly travels half its range in one window.
    if 2**31 <= before < 2**32 and after < 2**31 and after + 2**32 - before < 2**31:
        return after + 2**32 - before, "wrapped"
    return after, "reset"
