"""Following a journal that another process writes: every line once and in order, the end noticed, and so is a death."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from pathlib import Path

import pytest

from retina_runner.agent import following
from retina_runner.agent.following import GONE, follow
from retina_runner.agent.workspace import Journal, Workspace

WRITTEN = 300


@pytest.fixture(params=["told by the kernel", "looked at"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    if request.param == "looked at":
        monkeypatch.setattr(following, "watch", lambda directory: None)
    made = Workspace(tmp_path / "private" / "plan")
    made.create()
    made.plan.write_text("{}")
    return made


def write(workspace: Workspace, *, end: bool) -> int:
    """A process that holds the lock, as an agent does, and writes events; its pid."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = workspace.take_lock()
        os.write(tell, b"!")
        journal = Journal(workspace.events)
        for number in range(WRITTEN):
            journal.emit("one", number=number)
            if number % 50 == 0:
                select.select([], [], [], 0.02)
        if end:
            journal.emit("end", state="collected")
            signal.pause()
        os._exit(lock is None)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    return pid


def followed(workspace: Workspace, first: int) -> tuple[int, list[dict[str, object]]]:
    found: list[bytes] = []

    def wait(seconds: float, descriptors: tuple[int, ...]) -> bool:
        select.select(descriptors, [], [], seconds)
        return False

    status = follow(workspace, first, 60.0, found.append, wait)
    return status, [json.loads(line) for line in b"".join(found).splitlines()]


@pytest.mark.parametrize("first", [0, 123])
def test_events_come_as_they_are_written_until_the_end(workspace: Workspace, first: int) -> None:
    pid = write(workspace, end=True)
    try:
        status, events = followed(workspace, first)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert status == 0
    assert [e["seq"] for e in events] == list(range(first, WRITTEN + 1))
    assert events[-1]["event"] == "end"


def test_an_agent_that_dies_without_an_end_is_missed(workspace: Workspace) -> None:
    pid = write(workspace, end=False)
    reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
    reaper.start()
    status, events = followed(workspace, 0)
    reaper.join()
    assert (status, len(events)) == (GONE, WRITTEN)


def test_whoever_waits_can_have_enough(workspace: Workspace) -> None:
    lock = workspace.take_lock()
    assert lock is not None
    asked: list[float] = []

    def wait(seconds: float, descriptors: tuple[int, ...]) -> bool:
        asked.append(seconds)
        return len(asked) == 3

    assert follow(workspace, 0, 60.0, lambda lines: None, wait) == 0
    assert len(asked) == 3
    os.close(lock)
