"""Several runs that put the agent on one node at the same moment: whoever is later leaves the file that the first one holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent import own_file
from retina_runner.agent.serve import REMOVED_WITHIN_S
from retina_runner.agent.workspace import Workspace
from retina_runner.bundle import AgentBundle, agent_bundle
from retina_runner.executors.bootstrap import FLAGS, LOADER, opening
from retina_runner.executors.local import LocalLink


class Bootstrapped:
    """One interpreter with LOADER that was told what it is to find or take."""

    def __init__(self, agent: AgentBundle, work: Path):
        self._agent = agent
        self.process = subprocess.Popen(
            [sys.executable, *FLAGS, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send(opening(agent, str(work)))
        self.had = self._line()["agent"]["have"]

    def __enter__(self) -> Bootstrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def take(self, ready: bool = True) -> None:
        self._send(self._agent.content)
        assert not ready or self._line() == {"ready": True}

    def ask(self, verb: str, *arguments: str) -> dict[str, Any]:
        """The answer of a verb, of one that has been there and is ready."""
        assert self._line() == {"ready": True}
        self._send(json.dumps({"verb": verb, "arguments": arguments, "stdin": ""}).encode() + b"\n")
        return self._line()


def test_whoever_puts_the_agent_later_leaves_the_file_that_is_held(tmp_path: Path) -> None:
    agent, work = agent_bundle(), tmp_path / "work"
    with Bootstrapped(agent, work) as slow:
        assert not slow.had
        with Bootstrapped(agent, work) as fast:
            fast.take()
            first = (work / agent.name).stat()
            slow.take()
            assert (work / agent.name).stat().st_ino == first.st_ino
            slow.process.communicate(timeout=60)
            own_file.sweep(work)  # as the verb `remove` of the slow one's run would
            assert (work / agent.name).exists()
    assert not work.exists()


def test_the_last_connection_to_go_takes_the_file_away(tmp_path: Path) -> None:
    """One that was cut is noticed on its node when its run may be long over."""
    agent, work = agent_bundle(), tmp_path / "work"
    with Bootstrapped(agent, work) as cut:
        cut.take()
        with Bootstrapped(agent, work) as again:
            assert again.had
            assert again.ask("remove", str(work / "plan"))["removed"]
        assert (work / agent.name).exists(), "the other one still uses it"
    assert not work.exists()


def test_a_connection_that_goes_leaves_the_file_to_a_plan(tmp_path: Path) -> None:
    agent, work = agent_bundle(), tmp_path / "work"
    with Bootstrapped(agent, work) as only:
        only.take()
        (work / "plan").mkdir()
    assert (work / agent.name).exists()


def test_a_broken_file_of_that_name_is_replaced(tmp_path: Path) -> None:
    agent, work = agent_bundle(), tmp_path / "work"
    work.mkdir(mode=0o700)
    (work / agent.name).write_bytes(agent.content[:-1])
    with Bootstrapped(agent, work) as only:
        assert not only.had
        only.take()
        assert (work / agent.name).read_bytes() == agent.content
        assert [p.name for p in work.iterdir()] == [agent.name]


def test_an_agent_that_takes_a_while_to_end_is_waited_for(tmp_path: Path) -> None:
    agent, work = agent_bundle(), tmp_path / "work"
    workspace = Workspace(work / "plan")
    with Bootstrapped(agent, work) as only:
        only.take(ready=False)
        workspace.create()
        lock = workspace.take_lock()
        assert lock is not None
        ending = threading.Timer(REMOVED_WITHIN_S + 1.5, os.close, (lock,))
        ending.start()
        assert only.ask("remove", str(workspace.directory))["removed"]
        ending.join()
        assert not workspace.directory.exists()


@pytest.mark.parametrize("links", [True, False])
def test_an_agent_is_placed_where_there_are_hard_links_and_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    agent = agent_bundle()
    for content in (b"", agent.content[:-1], agent.content):
        (tmp_path / agent.name).write_bytes(content)
        link = LocalLink(str(tmp_path))
        link.install(agent)
        assert (tmp_path / agent.name).read_bytes() == agent.content
        assert [p.name for p in tmp_path.iterdir()] == [agent.name]
        link.close()
    (tmp_path / agent.name).unlink()
    link.install(agent)
    assert [p.name for p in tmp_path.iterdir()] == [agent.name]
    link.close()
