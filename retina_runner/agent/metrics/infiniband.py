"""infiniband: every port's counters and the interfaces' status parameters, from sysfs, where there is such hardware."""

from __future__ import annotations

import os
from typing import Any, Iterator, List, Mapping, Tuple

from retina_runner.agent.metrics.model import Scope
from retina_runner.agent.metrics.reader import GAUGE, Reader, Reading, Way, content


class Infiniband(Reader):
    """See `Reader`. `sysfs` is where it is mounted."""

    PLUGIN = "infiniband"
    PER_NAMESPACE = False

    def __init__(self, scope: Scope, options: Mapping[str, Any], sysfs: str = "/sys"):
        super().__init__(scope, options)
        self._sysfs = sysfs

    def ways(self) -> List[Way]:
        return [Way("file:/sys/class/infiniband"), Way("file:/sys/class/net/ib*/debug", needed=False)]

    def take(self, hook: str) -> List[Reading]:
        if hook == "file:/sys/class/infiniband":
            return list(self._counters(f"{self._sysfs}/class/infiniband"))
        return list(self._parameters(f"{self._sysfs}/class/net"))

    def _counters(self, top: str) -> Iterator[Reading]:
        """`hw_counters` (retransmissions, congestion, …) beside `counters`: the kernel's two folders of a port."""
        for device in sorted(os.listdir(top)):
            ports = f"{top}/{device}/ports"
            for port in sorted(os.listdir(ports)) if os.path.isdir(ports) else []:
                for folder in ("counters", "hw_counters"):
                    for name, value in _numbers(f"{ports}/{port}/{folder}"):
                        if name != "lifespan":  # how long the driver caches, ABI sysfs-class-infiniband
                            labels = (("statistic_name", name), ("device", device), ("port", port))
                            yield Reading("networkobservability_infiniband_counter_stats", labels, value)

    def _parameters(self, top: str) -> Iterator[Reading]:
        for interface in sorted(os.listdir(top)):
            if interface.startswith("ib"):
                for name, value in _numbers(f"{top}/{interface}/debug"):
                    labels = (("statistic_name", name), ("interface_name", interface))
                    yield Reading("networkobservability_infiniband_status_params", labels, value, GAUGE)


def _numbers(folder: str) -> Iterator[Tuple[str, int]]:
    """The files below `folder` that hold one whole number. A counter that can't be read ("N/A (no PMA)") is left out."""
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        try:
            yield name, int(content(f"{folder}/{name}").strip())
        except (OSError, ValueError):
            continue
