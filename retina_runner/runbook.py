"""The runbook as a value: its variables put in, its options normalised. runbook_reading.py makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retina_runner.documents import Document, Path_
from retina_runner.errors import Problem
from retina_runner.retention import Keep


@dataclass(frozen=True)
class LocalNodes:
    """This machine. `implied` when the runbook says nothing of nodes, so that `-i` may."""

    implied: bool = False


@dataclass(frozen=True)
class InventoryNodes:
    """Hosts of inventories; paths are absolute or relative to the current directory. None: those of the command line."""

    inventories: tuple[str, ...]
    hosts: str


@dataclass(frozen=True)
class KubernetesNodes:
    """Nodes of a cluster, as the runbook says."""

    selection: Mapping[str, Any]


Nodes = LocalNodes | InventoryNodes | KubernetesNodes


@dataclass(frozen=True)
class CollectorEntry:
    """One entry of `collect`. `id` is unique in its capture; `options` are normalised; `path` is its place."""

    id: str
    name: str
    options: Mapping[str, Any]
    path: Path_


@dataclass(frozen=True)
class Capture:
    """`name` is empty for the only capture of a runbook that doesn't name it."""

    name: str
    nodes: Nodes
    collect: tuple[CollectorEntry, ...]
    path: Path_


@dataclass(frozen=True)
class Limits:
    """See `limits` of schemas/runbook.json; seconds and bytes."""

    node_bytes: int
    disk_free_percent: int
    disk_free_bytes: int
    nice: int
    memory_bytes: int
    ready_timeout_s: float
    expiry_s: float
    reconnect_timeout_s: float = 600.0
    max_fail: int | str | None = None


@dataclass(frozen=True)
class Upload:
    """One target: `kind` is directory, host_path, azure_blob or s3; `options` as the runbook says, paths resolved.

    `retention` is what of this runbook's runs stays there; None for all.
    """

    kind: str
    options: Mapping[str, Any]
    path: Path_
    retention: Keep | None = None


@dataclass(frozen=True)
class When:
    """Which symptom a node must show before T0, measured over so many seconds, for anything to be collected there."""

    condition: str
    over_s: float


@dataclass(frozen=True)
class Trigger:
    """What makes a run a flight recorder: see `trigger` of schemas/runbook.json. Its fields are those of the plan."""

    condition: str
    every_s: float
    before_s: float
    after_s: float
    count: int
    cooldown_s: float
    patience_s: float


@dataclass(frozen=True)
class Runbook:
    """Everything that a runbook says. `sha256` is of the file as it was read, once."""

    name: str
    summary: str
    duration_s: float
    captures: tuple[Capture, ...]
    limits: Limits
    fail_on_loss: bool
    compression: str
    keep: str
    metrics: Mapping[str, str]
    uploads: tuple[Upload, ...]
    variables: Mapping[str, Any]
    sha256: str
    document: Document
    retention: Keep | None = None
    when: When | None = None
    trigger: Trigger | None = None
    expect: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a translated manifest says otherwise, or means nothing here; and what may be a mistake."""

    def problem(self, path: Iterable[str | int], message: str, hint: str = "") -> Problem:
        """A problem at that place of the runbook's file."""
        return self.document.problem(path, message, hint)
