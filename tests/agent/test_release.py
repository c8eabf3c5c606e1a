"""T0 reaches a node that waits for it: by the kernel's word, or by looking where that has none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent import release
from retina_runner.agent.plan import Plan
from retina_runner.agent.release import Release
from retina_runner.agent.stopping import Abandoned, Stop
from retina_runner.agent.workspace import Workspace, write_whole
from tests.agent.test_verbs import plan

JOIN_S = 30.0


class Waiting:
    """A node that waits, in a thread of its own."""

    def __init__(self, folder: Path):
        self.workspace, self.stop = Workspace(folder / "plan"), Stop()
        self.workspace.create()
        self.told: list[Any] = []
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        import json

        try:
            self.told.append(release.wait(Plan.parse(json.dumps(plan()).encode()), self.workspace, self.stop))
        except Abandoned as why:
            self.told.append(str(why))

    def join(self) -> Any:
        self.thread.join(JOIN_S)
        (told,) = self.told
        return told


@pytest.fixture(params=["told", "looking"])
def waiting(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    if request.param == "told":
        monkeypatch.setattr(release, "LOOK_S", 10 * JOIN_S)  # whoever isn't told by the kernel comes too late
    else:
        monkeypatch.setattr(release, "watch", lambda directory: None)
    return Waiting(tmp_path)


def test_a_release_is_noticed_and_what_else_happens_there_is_not_one(waiting: Waiting) -> None:
    (waiting.workspace.directory / "pid").write_text("{}")
    assert waiting.thread.is_alive()
    write_whole(waiting.workspace.release, {"t0": 12.0, "reference_t0": 11.0, "stale": "pod a"}, sync=False)
    assert waiting.join() == Release(12.0, 11.0, (None, None), "pod a", ("pod a",))


def test_a_request_to_stop_is_noticed(waiting: Waiting) -> None:
    waiting.stop.request("stopped by request")
    assert waiting.join() == "stopped by request"
