"""softirq: how often and how long each CPU did the network's deferred work, and where its budget ran out.

The numbers are the node's: the kernel doesn't count them by network namespace.
"""

from __future__ import annotations

import os
from typing import List

from retina_runner.agent import counters
from retina_runner.agent.metrics.reader import COUNTER, GAUGE, Reader, Reading, Way, content


class Softirq(Reader):
    """See `Reader`."""

    PLUGIN = "softirq"
    PER_NAMESPACE = False

    def ways(self) -> List[Way]:
        return [
            Way("file:/proc/softirqs", needed=False),
            Way("file:/proc/net/softnet_stat"),
            Way("file:/proc/stat", needed=False),
        ]

    def take(self, hook: str) -> List[Reading]:
        if hook == "file:/proc/softirqs":
            return _runs(content("/proc/softirqs"))
        if hook == "file:/proc/stat":
            return _seconds(content("/proc/stat"), os.sysconf("SC_CLK_TCK"))
        return _softnet(content("/proc/net/softnet_stat"))


def _runs(text: str) -> List[Reading]:
    lines = text.splitlines()
    cpus = [c[3:] for c in lines[0].split()] if lines else []
    readings = []
    for line in lines[1:]:
        vector, _, rest = line.partition(":")
        for cpu, number in zip(cpus, rest.split()):
            readings.append(
                Reading("retinarun_softirq_runs_total", (("vector", vector.strip()), ("cpu", cpu)), int(number))
            )
    return readings


def _seconds(text: str, ticks: int) -> List[Reading]:
    """proc(5): the seventh number of each cpuN line, in clock ticks."""
    readings = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 7 and words[0].startswith("cpu") and words[0] != "cpu":
            readings.append(Reading("retinarun_softirq_seconds_total", (("cpu", words[0][3:]),), int(words[7]) / ticks))
    return readings


def _softnet(text: str) -> List[Reading]:
    readings = []
    for (name, labels), (value, kind) in counters.parse_softnet(text).items():
        event = name.partition(".")[2]
        if kind == counters.GAUGE:
            readings.append(Reading("retinarun_softnet_backlog", labels, value, GAUGE))
        else:
            readings.append(Reading("retinarun_softnet_total", (("event", event), *labels), value, COUNTER))
    return readings
