"""What a run is made of: plans on nodes, and the terms on which it goes about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retina_runner.executors import Link

DEFAULT_FORKS = 50


@dataclass(frozen=True)
class Target:
    """One plan on one node. `id` is unique in the run; `directory` is where its agent works on the node.

    `compiles`: it may have BPF programs compiled there, which other nodes could use. `reach` is what a later runner needs
    to get there, a dataclass; None for this machine.
    """

    id: str
    node: str
    capture: str
    executor: str
    directory: str
    plan: bytes
    duration_s: float
    link: Link
    work_directory: str
    compiles: bool = False
    reach: Any = None


@dataclass(frozen=True)
class Terms:
    """How a run goes about it. `max_fail`: with more failed nodes than that, nothing new is started (None: go on).

    `reconnect_timeout_s`: how long a node that was lost is tried again after its window. `fetch_bytes_s` bounds all
    fetching together (None: as fast as it goes). `keep` leaves the agents' directories where they are.
    """

    ready_timeout_s: float
    reconnect_timeout_s: float = 600.0
    forks: int = DEFAULT_FORKS
    max_fail: int | None = None
    fetch_bytes_s: float | None = None
    keep: bool = False


@dataclass(frozen=True)
class Adoption:
    """What is known of a run whose runner died: its T0 (Unix time), None if none had been agreed; and the ids of the
    frozen windows that it had brought home."""

    t0: float | None
    brought: frozenset[str] = frozenset()
