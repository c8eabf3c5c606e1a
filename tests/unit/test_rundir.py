"""A run's directory, when several processes work in it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner.cli import main
from retina_runner.errors import UsageError
from retina_runner.rundir import EventLog, RunDirectory

WRITER = """
import sys
from pathlib import Path
from retina_runner.rundir import RunDirectory
directory, text = RunDirectory(Path(sys.argv[1])), sys.argv[2] * 50_000
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    directory.write(directory.summary, text)
"""


def writer(path: Path, letter: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_files_are_replaced_whole_by_several_processes_at_once(tmp_path: Path) -> None:
    """None fails, and whoever reads sees one's text or another's."""
    directory = RunDirectory.create(tmp_path, "run")
    directory.write(directory.summary, "z" * 50_000)
    writers = [writer(directory.path, letter) for letter in "abc"]
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seen, over = set(), False
    while not over:
        over = all(process.poll() is not None for process in writers)  # then once more: it is whole, too
        text = directory.summary.read_text()
        seen.add((text[:1], len(text), len(set(text))))
    ends = [process.communicate() for process in writers]
    assert [process.returncode for process in writers] == [0, 0, 0], ends
    assert {what[1:] for what in seen} == {(50_000, 1)}
    assert sorted(p.name for p in directory.path.iterdir()) == ["archives", "plans", "run.json"]
    assert directory.summary.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "run")
    with pytest.raises(OSError, match=r"nowhere/run\.json"):
        directory.write(directory.path / "nowhere" / "run.json", "new")


@pytest.mark.parametrize("verb", ["resume", "upload"])
def test_one_at_a_time_goes_on_with_a_run(tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    directory = RunDirectory.create(tmp_path, "run")
    log = EventLog(directory)
    log.append({"event": "run-start", "run": "run", "runbook": "r", "time": "2026-11-23T03:17:00.000000Z", "nodes": [
        {"id": "a", "node": "a", "capture": "", "executor": "local"}]})  # fmt: skip
    log.close()
    with RunDirectory(directory.path).alone():
        assert main([verb, str(directory.path)]) == 2
        assert f"{directory.path}: another retina-run goes on with it" in capsys.readouterr().err
    assert main([verb, str(directory.path)]) == 0
    assert [json.loads(line)["event"] for line in directory.events.read_text().splitlines()] == ["run-start"]


def test_what_is_no_directory_has_no_lock(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"), RunDirectory(tmp_path / "nowhere").alone():
        raise AssertionError("unreachable")
