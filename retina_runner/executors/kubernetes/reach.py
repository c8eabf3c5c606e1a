"""How a pod is got to again: a value in a run's record. What gets there is `link`'s, which most runs never import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PodReach:
    """What a later runner needs to get to the same pod again. `ready_timeout_s` is how long the pod may take to run."""

    kubeconfig: str
    context: str
    namespace: str
    job: str
    node: str
    token: str
    ready_timeout_s: float = 60.0


def reach_of(given: Mapping[str, Any]) -> PodReach | None:
    """The inverse of dataclasses.asdict, also after JSON; None for what isn't a pod. Unknown fields are passed over."""
    if "job" not in given:
        return None
    known = {f.name for f in fields(PodReach)}
    return PodReach(**{k: v for k, v in given.items() if k in known})
