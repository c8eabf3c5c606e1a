"""Built agents are kept: of the same sources none is built twice, and nothing but what was built is ever taken for one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner.bundle_cache import MOST_FILES, kept
from tests.lab import REPOSITORY


class Builder:
    def __init__(self, content: bytes = b"an agent"):
        self.content, self.built = content, 0

    def __call__(self) -> bytes:
        self.built += 1
        return self.content


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "retina-run" / "agents"


def test_the_same_is_built_once_and_something_else_for_itself(folder: Path) -> None:
    build, other = Builder(), Builder(b"another")
    assert [kept("aa", build) for _ in range(3)] == [b"an agent"] * 3
    assert build.built == 1
    assert kept("bb", other) == b"another"
    assert other.built == 1
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_file_with_other_bytes_than_its_name_says_is_built_anew(folder: Path) -> None:
    build = Builder()
    kept("aa", build)
    (path,) = folder.iterdir()
    path.write_bytes(b"an agenT")
    assert kept("aa", build) == b"an agent"
    assert build.built == 2
    assert path.read_bytes() == b"an agent"


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path) -> None:
    build = Builder()
    kept("aa", build)
    folder.chmod(0o777)
    assert kept("aa", build) == kept("cc", build) == b"an agent"
    assert build.built == 3
    assert len(list(folder.iterdir())) == 1


def test_no_place_for_it_costs_time_only(folder: Path) -> None:
    folder.parent.write_text("not a folder")
    build = Builder()
    assert kept("aa", build) == kept("aa", build) == b"an agent"
    assert build.built == 2


def test_old_ones_go_the_least_used_first(folder: Path) -> None:
    for number in range(MOST_FILES):
        kept(f"{number:02d}", Builder())
        (path,) = folder.glob(f"{number:02d}-*")
        os.utime(path, (1000 + number, 1000 + number))
    kept("00", Builder(b"not wanted"))
    kept("new", Builder())
    assert {p.name.partition("-")[0] for p in folder.iterdir()} == {"00", "02", "03", "new"}


SCRIPT = """
from retina_runner import bundle
if {second}:
    bundle.build = None
print(bundle.agent_bundle().sha256)
"""


def test_a_second_run_builds_no_agent_and_a_changed_source_does(tmp_path: Path) -> None:
    for name in ("retina_runner", "bpf"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)

    def told(second: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT.format(second=second)], capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip

    first = told(second=False)
    assert first.returncode == 0, first.stderr
    assert told(second=True).stdout == first.stdout
    with open(tmp_path / "retina_runner/agent/gaps.py", "a") as source:
        source.write("# changed\n")
    assert "NoneType" in told(second=True).stderr
    assert told(second=False).stdout != first.stdout
