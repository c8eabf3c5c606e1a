"""The plan as the agent reads it: checked again on the node, because a node trusts no runner's word about its disk."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Optional, Tuple

from retina_runner.agent import PLAN_FORMAT
from retina_runner.agent.bounds import Bounds
from retina_runner.agent.records import dataclass


class PlanError(Exception):
    """The plan isn't one, or is of another format than this agent's."""


@dataclass(frozen=True)
class Entry:
    """One collector of the plan. `id` is unique in it; `options` are normalised (seconds, bytes, every default filled)."""

    id: str
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that one node will do. `document` is the JSON it was read from; times are seconds, sizes bytes.

    `t0` (Unix time on the node's clock) is None when the runner will send it with `release`.
    """

    run: str
    runbook: Mapping[str, Any]
    capture: str
    node: str
    executor: str
    prefix: str
    duration_s: float
    t0: Optional[float]
    ready_timeout_s: float
    expiry_s: float
    compression: str
    bounds: Bounds
    entries: Tuple[Entry, ...]
    document: Mapping[str, Any]

    @staticmethod
    def parse(text: bytes) -> "Plan":
        """Read a plan's JSON. Raises PlanError with what is wrong."""
        try:
            document: Dict[str, Any] = json.loads(text)
            if document["format"] != PLAN_FORMAT:
                raise PlanError(f"plan format {document['format']}, this agent runs format {PLAN_FORMAT}")
            entries = tuple(Entry(e["id"], e["name"], e["options"]) for e in document["collectors"])
            if len({e.id for e in entries}) != len(entries):
                raise PlanError("two collectors of the plan have the same id")
            duration_s = float(document["duration_s"])
            if not 0 < duration_s < float("inf"):
                raise PlanError(f"the plan's duration is {duration_s} s")
            return Plan(
                run=str(document["run"]),
                runbook=document["runbook"],
                capture=str(document["capture"]),
                node=str(document["node"]),
                executor=str(document["executor"]),
                prefix=str(document["prefix"]),
                duration_s=duration_s,
                t0=None if document["t0"] is None else float(document["t0"]),
                ready_timeout_s=float(document["ready_timeout_s"]),
                expiry_s=float(document["expiry_s"]),
                compression=str(document["compression"]),
                bounds=Bounds.of(document["limits"]),
                entries=entries,
                document=document,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a plan: {type(error).__name__}: {error}") from error
