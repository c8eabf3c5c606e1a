"""What a plan may cost a node, watched while it runs: free disk, bytes of the plan, memory, CPU priority.

The watch only asks the session to stop; what is there by then is still archived.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Tuple

from retina_runner.agent.records import dataclass

WATCH_EVERY_S = 1.0


@dataclass(frozen=True)
class Bounds:
    """Normalised `limits` of a plan; see schemas/plan.json."""

    node_bytes: int
    disk_free_percent: int
    disk_free_bytes: int
    nice: int
    memory_bytes: int

    @staticmethod
    def of(limits: Mapping[str, Any]) -> "Bounds":
        return Bounds(
            node_bytes=int(limits["node_bytes"]),
            disk_free_percent=int(limits["disk_free_percent"]),
            disk_free_bytes=int(limits["disk_free_bytes"]),
            nice=int(limits["nice"]),
            memory_bytes=int(limits["memory"]),
        )

    def floor_bytes(self, total_bytes: int) -> int:
        """Free disk that must remain on a filesystem of this size: the larger of the two bounds."""
        return max(self.disk_free_bytes, total_bytes * self.disk_free_percent // 100)


def free_bytes(directory: Path) -> Tuple[int, int]:
    """(free, total) bytes of the filesystem that holds `directory`, free as an unprivileged process sees it."""
    usage = shutil.disk_usage(str(directory))
    return usage.free, usage.total


def lacking_space(bounds: Bounds, directory: Path) -> Optional[str]:
    """Why the plan may not write here, or None."""
    free, total = free_bytes(directory)
    floor = bounds.floor_bytes(total)
    if free >= floor:
        return None
    return f"{directory} has {free} B free, and {floor} B of its {total} B must stay free"


def confine(bounds: Bounds) -> None:
    """Bound the memory of this process and of every process that it starts.

    RLIMIT_DATA, setrlimit(2), counts what is really writable since Linux 4.7; RLIMIT_AS would count the address space
    that thread arenas only reserve.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = bounds.memory_bytes if hard == resource.RLIM_INFINITY else min(bounds.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    # A core dump of an agent would hold packets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Watch(threading.Thread):
    """Calls `tick` every second and `exceeded(limit, why)` once for each bound that is crossed."""

    def __init__(self, bounds: Bounds, directory: Path, size_bytes: Callable[[], int],
                 tick: Callable[[int], None], exceeded: Callable[[str, str], None]):  # fmt: skip
        super().__init__(name="bounds", daemon=True)
        self._bounds, self._directory, self._size_bytes = bounds, directory, size_bytes
        self._tick, self._exceeded = tick, exceeded
        self._over = threading.Event()

    def run(self) -> None:
        said = set()
        while True:
            free, total = free_bytes(self._directory)
            size = self._size_bytes()
            if free < self._bounds.floor_bytes(total) and "disk_free" not in said:
                said.add("disk_free")
                floor = self._bounds.floor_bytes(total)
                self._exceeded("disk_free", f"{free} B free on the node, {floor} B must stay free")
            if size > self._bounds.node_bytes and "node_bytes" not in said:
                said.add("node_bytes")
                self._exceeded(
                    "node_bytes", f"the plan holds {size} B on the node, {self._bounds.node_bytes} B are allowed"
                )
            self._tick(free)
            if self._over.wait(WATCH_EVERY_S):
                return

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join()


def lower_priority(nice: int) -> None:
    """Make the calling thread (Linux counts niceness by thread) and the processes that it starts give way to others."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except (AttributeError, OSError):
        pass  # a courtesy; where it isn't permitted the run goes on
