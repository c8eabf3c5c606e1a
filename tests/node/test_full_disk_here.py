"""A run by cron on a machine whose disk is full: it says so in a line, loses nothing that is on a node, and frees its lock."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.lab import REPOSITORY, RETINA_RUN, Lab, Run, said_nothing
from tests.node.greed import greed

pytestmark = pytest.mark.root

BOOK = "{name: nightly, duration: 2s, captures: [{collect: [{command: {argv: [head, -c, 3000000, /dev/urandom]}}]}]}"
CRON = ("--quiet-ok", "--lock")


def retina_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RETINA_RUN, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def by_cron(folder: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    return retina_run(
        str(folder / "runbook.yaml"), "--output", str(runs), "--work-dir", str(folder / "work"), *CRON
    )  # fmt: skip


def unlocked(runs: Path) -> bool:
    (path,) = runs.glob(".*.lock")
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file.read() == ""


def test_a_disk_without_a_byte_is_told_in_a_line_before_anything_is_touched(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "runbook.yaml").write_text(BOOK)
    runs = small_disk / "runs"
    with greed(small_disk, 0.01):
        full = by_cron(tmp_path, runs)
        assert (full.returncode, full.stdout) == (2, ""), full
        assert len(full.stderr.splitlines()) == 1, full.stderr
        assert f"retina-run: {runs}" in full.stderr
        assert "No space left on device; nothing was touched; free some space" in full.stderr
        assert unlocked(runs)
        assert [p for p in runs.iterdir() if not p.name.startswith(".")] == []
        assert not (tmp_path / "work").exists()
    well = by_cron(tmp_path, runs)
    (directory,) = (p for p in runs.iterdir() if p.is_dir())
    assert said_nothing(well, directory), well


def test_a_disk_that_fills_meanwhile_leaves_the_archive_on_its_node_and_resume_brings_it(
    lab: Lab, tmp_path: Path, small_disk: Path
) -> None:
    runs = small_disk / "runs"
    run = Run(BOOK.replace("2s", "5s"), tmp_path, "--output", str(runs), "--lock", netns=lab.a)
    run.wait_for("window")
    with greed(small_disk, 0.01):
        assert run.end() == 4, run.events
        (failed,) = run.all("node-failed")
        assert "No space left" in failed["why"]
        (directory,) = (p for p in runs.iterdir() if p.is_dir())
        assert failed["hint"].endswith(f"free some space, then retina-run resume {directory} brings it here")
        (kept,) = run.work.glob("*/archive/*.tar.gz")
        assert not verify_archive(kept).problems
        assert unlocked(runs)
        assert len(run.stderr.splitlines()) <= 1
        ended = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
        assert ended[-1]["event"] == "run-end"  # the journal has room of its own
        again = by_cron(tmp_path, runs)
        assert (again.returncode, again.stdout) == (2, "")
    resumed = retina_run("resume", str(directory))
    assert resumed.returncode == 0, resumed
    (brought,) = (directory / "archives").glob("*.tar.gz")
    assert not verify_archive(brought).problems
    assert json.loads((directory / "run.json").read_text())["exit_code"] == 0
    assert not run.work.exists()
    well = by_cron(tmp_path, runs)
    (new,) = (p for p in runs.iterdir() if p.is_dir() and p != directory)
    assert said_nothing(well, new), well


def test_cron_is_told_what_is_where(tmp_path: Path, small_disk: Path) -> None:
    """The mail of such a night: which node, why, and the command that brings the archive home."""
    (tmp_path / "runbook.yaml").write_text(BOOK)
    (small_disk / "filler").write_bytes(bytes(22 << 20))
    done = by_cron(tmp_path, small_disk / "runs")
    assert done.returncode == 4, done
    assert done.stdout.count("No space left on device") == 1
    assert "the node keeps its copy in" in done.stdout
    assert "retina-run resume" in done.stdout
    (directory,) = (p for p in (small_disk / "runs").iterdir() if p.is_dir())
    (small_disk / "filler").unlink()
    assert retina_run("resume", str(directory)).returncode == 0
