"""Real containers of real engines, docker and podman: the conformance suite, whole runs, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.executors import LinkRefused
from retina_runner.executors.entered import EnteredLink
from retina_runner.inventory.connection import Connection
from retina_runner.verification import verify_archive
from tests.executors.conformance import Bench, Conformance, SharedFolder, open_link
from tests.executors.engines import ENGINES, Engine
from tests.lab import RETINA_RUN, eventually

pytestmark = [pytest.mark.root, pytest.mark.containers]
WORK = "/var/tmp/work"
LEFT = """
import os
print(sorted(os.listdir("/var/tmp")))
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        state = open(f"/proc/{pid}/stat").read().split(") ")[1][0]
        command = open(f"/proc/{pid}/cmdline").read().split(chr(0))
    except OSError:
        continue
    if int(pid) not in (1, os.getpid()):
        print(pid, state, command)
"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    # Not pytest's folder: a socket's path has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="rrt-", ignore_cleanup_errors=True) as folder:
        made = ENGINES[request.param](Path(folder))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def _its_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONFIG", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        if name in engine.environment:
            monkeypatch.setenv(name, engine.environment[name])


@pytest.fixture
def box(_unharmed: None, engine: Engine) -> Iterator[str]:
    try:
        yield engine.start("web")
    finally:
        engine.remove("web")


def link_to(engine: Engine, name: str = "web", **said: Any) -> EnteredLink:
    return EnteredLink(Connection(host=name, address=name, connector=engine.tool, **said), WORK)


class TestContainers(Conformance, SharedFolder):
    @pytest.fixture
    def bench(self, engine: Engine, box: str) -> Bench:
        return Bench(engine.tool, WORK, lambda: link_to(engine), lambda: link_to(engine))


# -- whole runs --------------------------------------------------------------------------------------------------------


class Going:
    """A run into the container `web`."""

    def __init__(self, engine: Engine, folder: Path, duration: str, collect: str):
        (folder / "hosts.yaml").write_text(
            f"all: {{hosts: {{shop: {{ansible_connection: {engine.tool}, ansible_host: web}}}}}}\n"
        )
        (folder / "book.yaml").write_text(
            f"name: boxed\nduration: {duration}\ncaptures: [{{nodes: {{inventory: hosts.yaml}}, collect: [{collect}]}}]\n"
        )
        self._runs = folder / "runs"
        self.process = subprocess.Popen(
            [*RETINA_RUN, str(folder / "book.yaml"), "--output", str(self._runs)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.said = ""

    def end(self) -> int:
        self.said = self.process.communicate(timeout=120)[0]
        return self.process.returncode

    @property
    def directory(self) -> Path:
        (found,) = self._runs.iterdir()
        return found

    def node(self) -> dict[str, Any]:
        (node,) = json.loads((self.directory / "run.json").read_text())["nodes"]
        return dict(node)

    def until(self, event: str) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            return any(
                f'"event":"{event}"' in p.read_text().replace(" ", "") for p in self._runs.glob("*/events.jsonl")
            )

        eventually(there, f"the event {event}")

    def archived(self) -> None:
        (archive,) = (self.directory / "archives").iterdir()
        assert verify_archive(archive).problems == ()


def nothing_is_left(engine: Engine, but: int = 0) -> None:
    """Not even an ended process that nobody waits for, `but` so many."""

    def nothing() -> bool:
        folder, *processes = engine.inside("web", "python3", "-c", LEFT).splitlines()
        return folder == "[]" and len(processes) <= but and all(" Z " in p for p in processes)

    eventually(nothing, "nothing is left in the container")


TCPDUMP = "{tcpdump: {interfaces: [lo]}}, network-state"


def test_a_run_of_packets_leaves_nothing_in_a_container(engine: Engine, box: str, tmp_path: Path) -> None:
    run = Going(engine, tmp_path, "2s", TCPDUMP)
    assert run.end() == 0, run.said
    run.archived()
    assert (run.node()["node"], run.node()["executor"]) == ("shop", engine.tool)
    nothing_is_left(engine)


def test_a_killed_runner_s_run_is_resumed(engine: Engine, box: str, tmp_path: Path) -> None:
    """The agent outlives `exec`, whose client is killed with everything of its session."""
    run = Going(engine, tmp_path, "12s", TCPDUMP)
    run.until("window")
    run.process.kill()
    run.process.wait()
    done = subprocess.run([*RETINA_RUN, "resume", str(run.directory)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    run.archived()
    nothing_is_left(engine, but=1)  # the agent's parent went with the runner, and `sleep` waits for nobody


def test_ctrl_c_in_the_window_brings_home_what_there_is(engine: Engine, box: str, tmp_path: Path) -> None:
    run = Going(engine, tmp_path, "60s", TCPDUMP)
    run.until("window")
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() != 0
    run.archived()
    nothing_is_left(engine)


def test_a_container_that_ends_in_the_window_is_told(engine: Engine, box: str, tmp_path: Path) -> None:
    run = Going(engine, tmp_path, "20s", TCPDUMP)
    run.until("window")
    engine.kill("web")
    assert run.end() != 0
    assert "this container doesn't run" in run.said, run.said
    engine("start", "web")
    done = subprocess.run([*RETINA_RUN, "cleanup", str(run.directory)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    nothing_is_left(engine)


# -- what keeps a container from being entered -------------------------------------------------------------------------


def refused(engine: Engine, name: str = "web", **said: Any) -> str:
    with pytest.raises(LinkRefused) as why:
        open_link(lambda: link_to(engine, name, **said)).close()
    return str(why.value)


def test_what_cannot_be_entered_says_why(engine: Engine, box: str) -> None:
    assert "no such container (running are web)" in refused(engine, "wep")
    assert "python9: not installed" in refused(engine, python="python9")
    said = refused(engine, user="nobody-at-all")
    assert "nobody-at-all" in said, said
    engine("pause", "web")
    assert f"this container is paused ({engine.tool} unpause web)" in refused(engine)
    engine("unpause", "web")
    engine.kill("web")
    assert f"this container doesn't run ({engine.tool} start web)" in refused(engine)


@pytest.mark.usefixtures("_unharmed")
def test_a_container_without_tcpdump_says_so(engine: Engine, tmp_path: Path) -> None:
    try:
        engine.start("web", "--volume", "/dev/null:/usr/bin/tcpdump:ro")
        run = Going(engine, tmp_path, "1s", TCPDUMP)
        assert run.end() == 0, run.said
        assert "tcpdump: skipped: tcpdump: not installed" in run.said, run.said
        run.archived()
        nothing_is_left(engine)
    finally:
        engine.remove("web")
