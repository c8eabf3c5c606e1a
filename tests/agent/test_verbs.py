"""The agent as it travels: one file, run by the oldest Python that nodes have, by its verbs alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.workspace import Workspace, replace_whole
from retina_runner.bundle import agent_bundle
from retina_runner.schema import violations
from retina_runner.verification import verify_archive
from tests.lab import eventually

pytestmark = pytest.mark.root

SECONDS_OF_LIFE = 60.0


def pythons() -> list[str]:
    """Every interpreter here that the agent promises to run on: this one, the system's, those on PATH or of pyenv."""
    found = {sys.executable, *(p for p in (shutil.which(f"python3.{n}") for n in range(9, 15)) if p)}
    found |= {str(p) for p in Path(os.environ.get("PYENV_ROOT", "/nonexistent")).glob("versions/3.*/bin/python3")} | {
        "/usr/bin/python3"
    }
    probe = "import sys; print(sys.version_info[:2] >= (3, 9))"
    works = {
        p: subprocess.run([p, "-c", probe], capture_output=True, text=True, check=False).stdout
        for p in found
        if Path(p).exists()
    }
    return sorted(p for p, said in works.items() if said == "True\n")


def plan(**changes: Any) -> dict[str, Any]:
    """A plan with one harmless collector."""
    made: dict[str, Any] = {
        "format": 1, "run": "r", "runbook": {"name": "verbs", "sha256": "0" * 64}, "capture": "verbs", "node": "n",
        "executor": "local", "prefix": "verbs-n", "agent": {"name": agent_bundle().name, "sha256": agent_bundle().sha256},
        "duration_s": 1.0, "t0": None, "ready_timeout_s": 20.0, "expiry_s": 60.0, "compression": "gzip",
        "limits": {"node_bytes": 10**9, "disk_free_percent": 0, "disk_free_bytes": 0, "nice": 10, "memory": 512 << 20},
        "collectors": [{"id": "command", "name": "command", "options": {
            "argv": ["uname", "-a"], "when": ["before", "after"], "every": 10.0, "limit": 5.0, "output_limit": 4096,
            "ok_exit": [0], "env": {}}}],
    }  # fmt: skip
    return {**made, **changes}


class Agent:
    """The agent's file in a directory of its own, called by one Python."""

    def __init__(self, folder: Path, python: str = sys.executable):
        self.file = folder / agent_bundle().name
        self.file.write_bytes(agent_bundle().content)
        self.python, self.work = python, folder
        self.directory = folder / "plan"

    def call(self, verb: str, *arguments: str, stdin: object = None) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run(
            [self.python, "-I", str(self.file), verb, *arguments],
            input=json.dumps(stdin).encode() if stdin is not None else b"",
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 2), done.stderr.decode()
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, **changes: Any) -> dict[str, Any]:
        status, (answer,) = self.call("start", str(self.directory), stdin=plan(**changes))
        assert status == 0, answer
        return answer

    def release(self, ahead_s: float = 2.0) -> float:
        t0 = float(math.ceil(time.time() + ahead_s))
        assert self.call("release", str(self.directory), stdin={"t0": t0, "reference_t0": t0})[0] == 0
        return t0

    def events(self, first: int = 0, follow_s: float = 30.0) -> list[dict[str, Any]]:
        return self.call("events", str(self.directory), "--from", str(first), "--follow", str(follow_s))[1]

    def until(self, event: str) -> None:
        eventually(lambda: any(e["event"] == event for e in self.events(follow_s=0.0)), event, SECONDS_OF_LIFE)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    if made.directory.exists():
        made.call("remove", str(made.directory))


@pytest.mark.parametrize("python", pythons())
def test_a_whole_life_on_every_python(tmp_path: Path, python: str) -> None:
    agent = Agent(tmp_path, python)
    agent.start()
    agent.until("ready")
    t0 = agent.release()
    events = agent.events()
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert events[-1] == {**events[-1], "event": "end", "state": "collected"}
    for event in events:
        assert violations("event", event) == []
    (packed,) = (agent.directory / "archive").glob("*.tar.gz")
    assert packed.name == f"verbs-n-{time.strftime('%Y%m%d%H%M%S', time.gmtime(t0))}UTC.tar.gz"
    assert not verify_archive(packed).problems
    assert all((p.stat().st_mode & 0o077) == 0 for p in agent.directory.rglob("*"))
    status, (answer,) = agent.call("remove", str(agent.directory))
    assert (status, answer["removed"]) == (0, True)
    assert not agent.directory.exists()


def test_starting_twice_is_starting_once_and_another_plan_is_refused(agent: Agent) -> None:
    assert agent.start()["state"] == "started"
    assert agent.start()["state"] == "already"
    status, (answer,) = agent.call("start", str(agent.directory), stdin=plan(run="other"))
    assert status == 2
    assert "another plan" in answer["why"]


def test_a_start_that_is_repeated_waits_for_the_first_to_have_written_its_plan(agent: Agent) -> None:
    """A link that is lost in the middle of `start` leaves that going on, on a node that may be slow."""
    Workspace(agent.directory).create()
    text = json.dumps(plan()).encode()
    timer = threading.Timer(1.0, replace_whole, [agent.directory / "plan.json", text])
    timer.start()
    try:
        assert agent.start()["state"] == "already"
    finally:
        timer.join()
        shutil.rmtree(agent.directory)


def test_a_plan_of_another_format_or_none_is_refused_and_touches_nothing(agent: Agent) -> None:
    text: object
    for text in (plan(format=99), {"x": 1}, [], plan(duration_s=0), plan(collectors=[{"id": "a"}])):
        status, (answer,) = agent.call("start", str(agent.directory), stdin=text)
        assert status == 2, answer
        assert not agent.directory.exists()


def test_check_tells_problems_and_touches_nothing(agent: Agent) -> None:
    before = sorted(agent.work.iterdir())
    collectors = [
        {"id": "command", "name": "command", "options": {"argv": ["no-such-tool"]}},
        {"id": "x", "name": "no-such", "options": {}},
    ]
    status, (answer,) = agent.call("check", "--directory", str(agent.work / "new"), stdin=plan(collectors=collectors))
    assert status == 0
    assert not answer["ok"]
    assert [(p["severity"], p["what"]) for p in answer["problems"]] == [("gap", "no-such-tool"), ("fatal", "x")]
    assert sorted(agent.work.iterdir()) == before


def test_stop_before_t0_abandons(agent: Agent) -> None:
    agent.start()
    agent.until("ready")
    assert agent.call("stop", str(agent.directory))[1] == [{"ok": True, "signalled": True}]
    last = agent.events()[-1]
    assert (last["event"], last["state"]) == ("end", "abandoned")


def test_an_agent_whose_runner_never_gives_t0_gives_up(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.start(ready_timeout_s=-29.0)  # with the grace of 30 s: one second
    last = agent.events()[-1]
    assert (last["state"], last["why"]) == ("abandoned", "no T0 came; the runner is gone")


def test_a_t0_that_is_over_already_is_refused(agent: Agent) -> None:
    agent.start()
    agent.until("ready")
    agent.release(ahead_s=-100)
    last = agent.events()[-1]
    assert last["state"] == "failed"
    assert "the window was over" in last["why"]


def test_the_first_t0_stands(agent: Agent) -> None:
    agent.start()
    agent.until("ready")
    first = agent.release()
    agent.release(ahead_s=50)
    (armed,) = [e for e in agent.events() if e["event"] == "window"]
    assert armed["t0"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(first)))


def test_what_nobody_fetches_is_gone_after_its_expiry(agent: Agent) -> None:
    agent.start(expiry_s=12.0)  # of it each verb, an interpreter on a busy machine, takes its part
    agent.until("ready")
    agent.release()
    agent.until("end")
    assert list((agent.directory / "archive").glob("*.tar.gz"))
    eventually(lambda: not agent.directory.exists() and not agent.file.exists(), "the directory and the agent are gone")


def test_remove_ends_a_window_without_an_archive(agent: Agent) -> None:
    agent.start(duration_s=600.0)
    agent.until("ready")
    agent.release(ahead_s=0)
    agent.until("window")
    assert agent.call("remove", str(agent.directory))[1][0]["removed"]
    assert not agent.directory.exists()


def test_a_hang_up_is_not_an_end(agent: Agent) -> None:
    agent.start()
    agent.until("ready")
    (started,) = [e for e in agent.events(follow_s=0.0) if e["event"] == "started"]
    os.kill(started["pid"], signal.SIGHUP)
    agent.release()
    assert agent.events()[-1]["state"] == "collected"


def test_fetch_goes_on_at_an_offset(agent: Agent) -> None:
    agent.start()
    agent.until("ready")
    agent.release()
    agent.events()
    (packed,) = (agent.directory / "archive").glob("*.tar.gz")
    for offset in (0, 1, 1000, packed.stat().st_size):
        done = subprocess.run(
            [
                sys.executable,
                str(agent.file),
                "fetch",
                str(agent.directory),
                "--name",
                packed.name,
                "--offset",
                str(offset),
            ],
            capture_output=True,
            check=True,
        )
        assert done.stdout == packed.read_bytes()[offset:]
    assert agent.call("fetch", str(agent.directory), "--name", "../plan.json")[0] == 2


def test_clock_answers_each_line(agent: Agent) -> None:
    with subprocess.Popen(
        [sys.executable, str(agent.file), "clock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            before = time.time()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert before <= float(process.stdout.readline()) <= time.time()
        process.stdin.close()


def test_the_bundle_is_the_same_bytes_whenever_it_is_built(tmp_path: Path) -> None:
    """Whatever the hash seed, and whatever names the process has met: an attribute may be called `-`."""
    script = "import sys; {}from retina_runner.bundle import agent_bundle; print(agent_bundle().sha256)"
    met = "".join(f"sys.intern(chr({n})); " for n in range(1, 127))
    built = {
        subprocess.run(
            [sys.executable, "-c", script.format(names)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": str(n), "XDG_CACHE_HOME": str(tmp_path / str(n))},
        ).stdout
        for n, names in enumerate(("", met))
    }
    assert built == {agent_bundle().sha256 + "\n"}


def _loaded_from(agent: Path) -> str:
    script = "import sys; sys.path.insert(0, sys.argv[1]); import retina_runner.agent.session as s; print(s.__file__, s.Session.__doc__)"
    return subprocess.run(
        [sys.executable, "-I", "-c", script, str(agent)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def test_compiled_modules_are_used_by_their_own_version_of_python_and_passed_over_by_others(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours.pyz", tmp_path / "other.pyz"
    ours.write_bytes(agent_bundle().content)
    with zipfile.ZipFile(ours) as given, zipfile.ZipFile(other, "w") as made:
        for name in given.namelist():
            content = given.read(name)
            made.writestr(name, b"\x00\x00\r\n" + content[4:] if name.endswith(".pyc") else content)
    assert _loaded_from(ours).startswith(f"{ours}/retina_runner/agent/session.pyc ")
    assert _loaded_from(other) == _loaded_from(ours).replace(str(ours), str(other)).replace("session.pyc", "session.py")
