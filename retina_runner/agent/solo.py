"""A plan without a runner: for Jobs that were applied as manifests. T0 is as soon as the node is ready, or the plan's.

When the archive is there its place is said on stdout (the pod's log); it is put on the shelves that the plan's Job names,
and where there are none it waits to be fetched until the plan's expiry.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from retina_runner.agent.plan import Plan
from retina_runner.agent.session import begin_lead_s
from retina_runner.agent.shelf import NotKept, keep
from retina_runner.agent.supervisor import launch, remove
from retina_runner.agent.workspace import Workspace, read_events, write_whole

T0_LEAD_S = 0.5
"""From ready to T0, besides what the collectors need to arm themselves."""


class Solo:
    """One plan, started below `parent`. `step` is called again and again, and does what the runner would do.

    `shelves` are options of `shelf.keep`.
    """

    def __init__(self, parent: Path, plan_file: Path, shelves: Sequence[Mapping[str, Any]]):
        text = plan_file.read_bytes()
        self._plan = Plan.parse(text)
        self._shelves = shelves
        self._workspace = Workspace(parent / "solo")
        self._said: List[str] = []
        launch(self._workspace, self._plan, text)

    @property
    def done(self) -> bool:
        """Whether its end has been said."""
        return bool(self._said)

    @property
    def failed(self) -> bool:
        """Whether it ended without an archive, or with one that couldn't be put where it should be."""
        return "failed" in self._said

    def step(self) -> None:
        events: Dict[str, Mapping[str, Any]] = {str(e["event"]): e for e in read_events(self._workspace.events)}
        if "ready" in events and self._plan.t0 is None and not self._workspace.release.exists():
            t0 = time.time() + begin_lead_s(events["ready"]["rehearsal_s"]) + T0_LEAD_S
            write_whole(self._workspace.release, {"t0": t0, "reference_t0": t0})
        if "end" in events and not self._said:
            self._end(events)

    def _end(self, events: Mapping[str, Mapping[str, Any]]) -> None:
        end = dict(events["end"])
        if end["state"] != "collected":
            self._say("failed", **{k: v for k, v in end.items() if k in ("state", "why", "hint")})
            remove(self._workspace)
            return
        packed = events["archive"]
        archive = self._workspace.archive / str(packed["name"])
        self._say("archive", path=str(archive), sha256=packed["sha256"], size=archive.stat().st_size)
        for shelf in self._shelves:
            try:
                self._say("kept", location=keep(archive, str(packed["sha256"]), shelf)["location"])
            except NotKept as why:
                self._say("failed", why=str(why))
        if self._shelves and not self.failed:
            remove(self._workspace)

    def _say(self, what: str, **fields: Any) -> None:
        self._said.append(what)
        print(json.dumps({"event": what, **fields}), flush=True)
