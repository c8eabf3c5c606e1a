"""linuxutil: TCP states, the kernel's TCP, IP and UDP statistics, interface counters; all from /proc and ethtool(8)'s ioctl."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping

from retina_runner.agent import counters
from retina_runner.agent.metrics.ethtool import statistics
from retina_runner.agent.metrics.model import Scope
from retina_runner.agent.metrics.namespaces import NET, here
from retina_runner.agent.metrics.reader import COUNTER, GAUGE, Reader, Reading, Way, content
from retina_runner.agent.metrics.states import STATES

SOCKET_SHARE = 20
"""The socket tables are walked for at most one part in this many of the time: a node can have a million sockets."""
FAULTS = ("err", "drop", "discard", "miss")
"""What a counter of the driver must have in its name to be taken; Retina takes the first two."""
_SPLIT = ("Ip6", "Icmp6", "UdpLite6", "Udp6")


class LinuxUtil(Reader):
    """See `Reader`."""

    PLUGIN = "linuxutil"

    def __init__(self, scope: Scope, options: Mapping[str, Any]):
        super().__init__(scope, options)
        self._sockets: Dict[str, List[Reading]] = {}
        self._not_before: Dict[str, float] = {}

    def ways(self) -> List[Way]:
        return [
            Way("file:/proc/net/snmp"),
            Way("file:/proc/net/netstat"),
            Way("file:/proc/net/snmp6", needed=False),
            Way("file:/proc/net/sockstat", needed=False),
            Way("file:/proc/net/dev"),
            Way("file:/proc/net/tcp"),
            Way("ioctl:SIOCETHTOOL", needed=False),
        ]

    def take(self, hook: str) -> List[Reading]:
        taking: Dict[str, Callable[[], List[Reading]]] = {
            "file:/proc/net/snmp": lambda: _protocols(counters.parse_snmp(content(f"{NET}/snmp"))),
            "file:/proc/net/netstat": lambda: _protocols(counters.parse_snmp(content(f"{NET}/netstat"))),
            "file:/proc/net/snmp6": lambda: _protocols6(counters.parse_pairs(content(f"{NET}/snmp6"))),
            "file:/proc/net/sockstat": _udp_sockets,
            "file:/proc/net/dev": _interfaces,
            "file:/proc/net/tcp": self._tcp_sockets,
            "ioctl:SIOCETHTOOL": _drivers,
        }
        return taking[hook]()

    def _tcp_sockets(self) -> List[Reading]:
        place = here()
        if time.monotonic() >= self._not_before.get(place, 0.0):
            begun = time.thread_time()
            self._sockets[place] = _tcp_states()
            self._not_before[place] = time.monotonic() + SOCKET_SHARE * (time.thread_time() - begun)
        return self._sockets[place]


def _protocols(found: counters.Snapshot) -> List[Reading]:
    readings = []
    for (name, _), (value, kind) in found.items():
        protocol, _, statistic = name.partition(".")
        if kind != counters.COUNTER:
            continue
        label = ("statistic_name", statistic)
        if protocol in ("TcpExt", "MPTcpExt"):
            readings.append(Reading("networkobservability_tcp_connection_stats", (label,), value))
        elif protocol == "IpExt":
            readings.append(Reading("networkobservability_ip_connection_stats", (label,), value))
        else:
            readings.append(Reading("retinarun_protocol_total", (("protocol", protocol), label), value))
    return readings


def _protocols6(found: counters.Snapshot) -> List[Reading]:
    readings = []
    for (name, _), (value, _) in found.items():
        protocol = next((p for p in _SPLIT if name.startswith(p)), "")
        if protocol:
            labels = (("protocol", protocol), ("statistic_name", name[len(protocol) :]))
            readings.append(Reading("retinarun_protocol_total", labels, value))
    return readings


def _udp_sockets() -> List[Reading]:
    found = counters.parse_sockstat(content(f"{NET}/sockstat"))
    try:
        found.update(counters.parse_sockstat(content(f"{NET}/sockstat6")))
    except OSError:
        pass  # a kernel without IPv6
    active = sum(found.get((f"{p}.inuse", ()), (0, ""))[0] for p in ("UDP", "UDP6"))
    return [Reading("networkobservability_udp_connection_stats", (("statistic_name", "ACTIVE"),), active, GAUGE)]


def _interfaces() -> List[Reading]:
    readings = []
    for (name, labels), (value, _) in counters.parse_dev(content(f"{NET}/dev")).items():
        given = (("interface_name", dict(labels)["interface"]), ("statistic_name", name.partition(".")[2]))
        readings.append(Reading("networkobservability_interface_stats", given, value))
    return readings


def _drivers() -> List[Reading]:
    """The drivers' own error counters, but for those whose name /proc/net/dev has too: that one is the kernel's sum."""
    readings = []
    known: Dict[str, List[str]] = {}
    for name, labels in counters.parse_dev(content(f"{NET}/dev")):
        known.setdefault(dict(labels)["interface"], []).append(name.partition(".")[2])
    for interface, taken in known.items():
        for name, value in statistics(interface).items():
            if any(fault in name.lower() for fault in FAULTS) and name not in taken:
                labels = (("interface_name", interface), ("statistic_name", name))
                readings.append(Reading("networkobservability_interface_stats", labels, value, COUNTER))
    return readings


def _tcp_states() -> List[Reading]:
    count = dict.fromkeys(STATES.values(), 0)
    remote = 0
    for table in ("tcp", "tcp6"):
        try:
            lines = content(f"{NET}/{table}").splitlines()[1:]
        except OSError:
            if table == "tcp":
                raise
            continue
        for line in lines:
            columns = line.split(None, 4)
            if len(columns) < 4:
                continue
            state = STATES.get(int(columns[3], 16), "CLOSE")
            count[state] += 1
            remote += columns[2].rpartition(":")[2] != "0000"
    found = [
        Reading("networkobservability_tcp_state", (("state", state),), number, GAUGE) for state, number in count.items()
    ]
    return [*found, Reading("networkobservability_tcp_connection_remote", (("address", "AllIPs"),), remote, GAUGE)]
