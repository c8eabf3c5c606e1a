"""conntrack: how full the table is, what went wrong in it, and how much the tracked connections carried each way.

Bytes and packets are added up over the table itself, which has them where `net.netfilter.nf_conntrack_acct` is on: each
connection counts from what it had at zero, and one that ends counts as far as it was seen. So the sums never fall; they
lack what a connection carried after the last look at it.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

from retina_runner.agent import counters
from retina_runner.agent.metrics.model import Scope
from retina_runner.agent.metrics.namespaces import NET, here
from retina_runner.agent.metrics.reader import GAUGE, Reader, Reading, Way, content

SYSCTL = "/proc/sys/net/netfilter"
GAUGES = ("entries", "clashres", "chaintoolong_limit")
Flow = Tuple[int, int, int, int]
"""Packets and bytes of the original direction, then of the reply."""
_COUNTS = re.compile(r"packets=(\d+) bytes=(\d+)")
_NOT_IDENTITY = re.compile(r"(packets|bytes|mark|secctx|use|delta-time)=\S+ ?|\[\w+\] ?")


class Conntrack(Reader):
    """See `Reader`."""

    PLUGIN = "conntrack"

    def __init__(self, scope: Scope, options: Mapping[str, Any]):
        super().__init__(scope, options)
        self._flows: Dict[str, Dict[str, Flow]] = {}
        self._sums: Dict[str, List[int]] = {}
        self._skipped = 0

    def ways(self) -> List[Way]:
        return [
            Way("file:/proc/sys/net/netfilter/nf_conntrack_count", hint="nothing tracks connections here"),
            Way("file:/proc/net/stat/nf_conntrack", needed=False),
            Way("file:/proc/net/nf_conntrack", needed=False, hint="sysctl net.netfilter.nf_conntrack_acct=1"),
        ]

    def take(self, hook: str) -> List[Reading]:
        if hook.endswith("nf_conntrack_count"):
            found = [Reading("networkobservability_conntrack_total_connections", (), _number("count"), GAUGE)]
            return [*found, Reading("retinarun_conntrack_limit", (), _number("max"), GAUGE)]
        if hook == "file:/proc/net/stat/nf_conntrack":
            return _events(content(f"{NET}/stat/nf_conntrack"))
        return self._carried()

    def zero(self) -> None:
        self._flows, self._sums, self._skipped = {}, {}, 0
        super().zero()

    def loss(self) -> Dict[str, int]:
        return {**super().loss(), "conntrack_tables_too_large": self._skipped}

    def _carried(self) -> List[Reading]:
        if not _number("acct"):
            raise OSError("net.netfilter.nf_conntrack_acct is off, so the kernel counts neither bytes nor packets")
        place = here()
        sums = self._sums.setdefault(place, [0, 0, 0, 0])
        if _number("count") > int(self.options["conntrack_entries"]):
            self._skipped += 1
        else:
            now = parse_table(content(f"{NET}/nf_conntrack"))
            before = self._flows.get(place, {})
            for key, flow in now.items():
                # One that went back is another connection between the same ports.
                earlier = before.get(key, (0, 0, 0, 0))
                earlier = earlier if all(a <= b for a, b in zip(earlier, flow)) else (0, 0, 0, 0)
                for n in range(4):
                    sums[n] += flow[n] - earlier[n]
            self._flows[place] = now
        names = ("packets_tx", "bytes_tx", "packets_rx", "bytes_rx")
        return [Reading(f"networkobservability_conntrack_{n}", (), v) for n, v in zip(names, sums)]


def _number(name: str) -> int:
    return int(content(f"{SYSCTL}/nf_conntrack_{name}"))


def _events(text: str) -> List[Reading]:
    readings = []
    for (name, labels), (value, kind) in counters.parse_conntrack(text).items():
        event = name.partition(".")[2]
        if kind == counters.COUNTER and event not in GAUGES:
            readings.append(Reading("retinarun_conntrack_events_total", (("event", event), *labels), value))
    return readings


def parse_table(text: str) -> Dict[str, Flow]:
    """/proc/net/nf_conntrack: each connection's protocols and addresses to what it carried. Lines without counts are
    left out; the third and fifth words (state, seconds to live) don't identify a connection."""
    found: Dict[str, Flow] = {}
    for line in text.splitlines():
        counts = _COUNTS.findall(line)
        if len(counts) == 2:
            words = _NOT_IDENTITY.sub("", line).split()
            key = " ".join([words[0], words[2], *[w for w in words[3:] if "=" in w]])
            (a, b), (c, d) = counts
            found[key] = (int(a), int(b), int(c), int(d))
    return found
