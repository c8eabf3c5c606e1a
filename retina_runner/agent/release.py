"""T0 as a node learns it: from its plan, or from the file that the `release` verb leaves once every node is ready."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Mapping, Optional, Tuple

from retina_runner.agent.following import drain, watch
from retina_runner.agent.plan import Plan
from retina_runner.agent.records import dataclass
from retina_runner.agent.stopping import Abandoned, Stop
from retina_runner.agent.workspace import Workspace

POLL_S, LOOK_S = 0.02, 0.5
"""How often a node that is ready looks for its T0 where nothing tells of it; and where something does, in case that it doesn't."""
GRACE_S = 30.0
"""How much longer than the barrier's own limit an agent waits for T0 before it concludes that the runner is gone."""
BEGIN_MARGIN_S = 0.1


def begin_lead_s(rehearsal_s: float) -> float:
    """How long before T0 a node begins to arm its collectors, when the rehearsal of that took so long. The rehearsal's time
    and twice as much: at T0 everybody on a node begins at once, the pods of one node for instance."""
    return 3 * rehearsal_s + BEGIN_MARGIN_S


@dataclass(frozen=True)
class Release:
    """`t0` is on the node's clock, `reference_t0` the same instant on the runner's; Unix time, seconds. `offset` is the
    node's clock minus the runner's (None: not measured) and its error. `stale` says which pods the filters miss, if any;
    `warnings` is all that the release says besides, `stale` included."""

    t0: float
    reference_t0: float
    offset: Tuple[Optional[float], Optional[float]] = (None, None)
    stale: str = ""
    warnings: Tuple[str, ...] = ()

    @staticmethod
    def of(document: Mapping[str, Any]) -> "Release":
        """As the `release` verb left it."""
        stale = str(document.get("stale") or "")
        return Release(
            float(document["t0"]), float(document["reference_t0"]),
            (document.get("offset_s"), document.get("offset_error_s")),
            stale, tuple(str(why) for why in (*document.get("warnings", ()), stale) if why),
        )  # fmt: skip


def told(plan: Plan, workspace: Workspace) -> Optional[Release]:
    """T0 if it is known by now: the plan's own, or the runner's."""
    if plan.t0 is not None:
        return Release(plan.t0, plan.t0)
    if workspace.release.exists():
        return Release.of(json.loads(workspace.release.read_bytes()))
    return None


def wait(plan: Plan, workspace: Workspace, stop: Stop) -> Release:
    """Until T0 is known. Raises Abandoned on request, or when nobody can be expected to tell it any more."""
    deadline = time.monotonic() + plan.ready_timeout_s + GRACE_S
    changes = watch(workspace.directory) if plan.t0 is None else None
    try:
        while True:
            release = told(plan, workspace)
            if release is not None:
                return release
            if stop.wait(LOOK_S if changes is not None else POLL_S, changes):
                raise Abandoned(str(stop.reason))
            if changes is not None:
                drain(changes)
            if time.monotonic() > deadline:
                raise Abandoned("no T0 came; the runner is gone")
    finally:
        if changes is not None:
            os.close(changes)
