"""A plan without a runner: for Jobs that were applied as manifests. T0 is as soon as the node is ready, or the plan's.

When the archive is there its place is said on stdout (the pod's log); it is put on the shelves that the plan's Job names,
and where there are none it waits to be fetched until the plan's expiry. So is each window that a trigger has had frozen,
at once, while the rings go on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from retina_runner.agent.plan import Plan
from retina_runner.agent.release import begin_lead_s
from retina_runner.agent.shelf import NotKept, keep
from retina_runner.agent.supervisor import launch, remove
from retina_runner.agent.workspace import Reader, Workspace, write_whole

T0_LEAD_S = 0.5
"""From ready to T0, besides what the collectors need to arm themselves."""


class Solo:
    """One plan, started below `parent`. `step` is called again and again, and does what the runner would do.

    `shelves` are options of `shelf.keep`. `done`: its end has been said. `failed`: something wasn't collected, or
    couldn't be put where it should be.
    """

    def __init__(self, parent: Path, plan_file: Path, shelves: Sequence[Mapping[str, Any]]):
        text = plan_file.read_bytes()
        self._plan = Plan.parse(text)
        self._shelves = shelves
        self._workspace = Workspace(parent / "solo")
        self._journal = Reader(self._workspace.events)
        self._archive: Mapping[str, Any] = {}
        self.done = self.failed = False
        launch(self._workspace, self._plan, text)

    def step(self) -> None:
        for event in self._journal.news():
            kind = event["event"]
            if kind == "ready":
                self._release(event["rehearsal_s"])
            elif kind == "frozen":
                self._recorded(event)
            elif kind == "not-frozen":
                self._fail(why=event["why"], event_time=event["trigger"]["instant"])
            elif kind == "archive":
                self._archive = event
            elif kind == "end":
                self._end(event)

    def _release(self, rehearsal_s: float) -> None:
        if self._plan.t0 is None and not self._workspace.release.exists():
            t0 = time.time() + begin_lead_s(rehearsal_s) + T0_LEAD_S
            write_whole(self._workspace.release, {"t0": t0, "reference_t0": t0})

    def _recorded(self, event: Mapping[str, Any]) -> None:
        """One window of the flight recorder: the node lets go of it when every shelf has it."""
        path = self._put("recording", event, event_time=event["trigger"]["instant"])
        if path is not None:
            path.unlink()

    def _end(self, end: Mapping[str, Any]) -> None:
        self.done = True
        if end["state"] != "collected":
            self._fail(**{k: v for k, v in end.items() if k in ("state", "why", "hint")})
            remove(self._workspace)
            return
        self._put("archive", self._archive)
        if self._shelves and not self.failed:
            remove(self._workspace)

    def _put(self, what: str, packed: Mapping[str, Any], **more: Any) -> Optional[Path]:
        """Say where the archive is, and put it on the shelves; its path when all of them have it and there are any."""
        archive = self._workspace.archive / str(packed["name"])
        _say(what, path=str(archive), sha256=packed["sha256"], size=archive.stat().st_size, **more)
        kept = 0
        for shelf in self._shelves:
            try:
                _say("kept", location=keep(archive, str(packed["sha256"]), shelf)["location"])
                kept += 1
            except NotKept as why:
                self._fail(why=str(why))
        return archive if kept and kept == len(self._shelves) else None

    def _fail(self, **fields: Any) -> None:
        self.failed = True
        _say("failed", **fields)


def _say(what: str, **fields: Any) -> None:
    print(json.dumps({"event": what, **fields}), flush=True)
