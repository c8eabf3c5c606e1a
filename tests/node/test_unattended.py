"""Real runs without a terminal: overlapping, cut off by their deadline, killed with the lock in hand, silent when well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from retina_runner import schema
from tests.lab import REPOSITORY, RETINA_RUN, Lab, Run, eventually, said_nothing

pytestmark = pytest.mark.root

SHORT = "{name: nightly, duration: 2s, captures: [{collect: [network-state]}]}"
LONG = "{name: nightly, duration: 10m, captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp}}]}]}"


def again(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same runbook and folder as the Run that was made there."""
    return subprocess.run(
        [*RETINA_RUN, "runbook.yaml", "--output", "runs", "--work-dir", str(folder / "work"), *arguments],
        capture_output=True, text=True, check=False, cwd=folder, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_of_two_overlapping_runs_the_second_ends_with_a_status_of_its_own(lab: Lab, tmp_path: Path) -> None:
    first = Run(LONG, tmp_path, "--lock", netns=lab.a)
    first.wait_for("window")
    second = again(tmp_path, "--lock", "--quiet-ok")
    assert second.returncode == 8, second
    assert second.stdout == ""
    assert f"process {first.process.pid} since" in second.stderr
    assert len([p for p in (tmp_path / "runs").iterdir() if p.is_dir()]) == 1
    first.signal(signal.SIGINT)
    assert first.end() == 130


def test_a_lock_outlives_its_runner_as_a_note_only(lab: Lab, tmp_path: Path) -> None:
    first = Run(LONG, tmp_path, "--lock", netns=lab.a)
    first.wait_for("window")
    first.signal(signal.SIGKILL)
    first.process.wait()
    (tmp_path / "runbook.yaml").write_text(SHORT)
    second = again(tmp_path, "--lock", "--quiet-ok")
    assert second.returncode == 0, second
    assert f"process {first.process.pid} since" in second.stderr
    (left,) = [p for p in (tmp_path / "runs").iterdir() if p.is_dir() and not (p / "junit.xml").exists()]
    cleaned = subprocess.run([*RETINA_RUN, "cleanup", str(left)], capture_output=True, text=True, check=False,
                             env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    assert cleaned.returncode == 0, cleaned
    eventually(lambda: not first.work.exists(), "nothing left of the first")


def test_the_deadline_ends_the_window_and_keeps_what_is_there(lab: Lab, tmp_path: Path) -> None:
    # Long enough for the window to open on a slow machine; a deadline before T0 would leave nothing to keep.
    run = Run(LONG, tmp_path, "--deadline", "20s", netns=lab.a)
    run.wait_for("window")
    assert run.end() == 143
    assert run.summary()["interrupted"] == "DEADLINE"
    assert run.archive().manifest["verdicts"][0]["verdict"] == "partial"
    assert not run.work.exists()


def test_a_run_that_went_well_says_nothing_and_one_that_did_not_says_it_without_colour(tmp_path: Path) -> None:
    (tmp_path / "runbook.yaml").write_text(SHORT)
    well = again(tmp_path, "--quiet-ok", "--jitter", "1ms")
    (path,) = (tmp_path / "runs").glob("*/run.json")
    assert said_nothing(well, path.parent), well
    summary = json.loads(path.read_text())
    cost = summary["nodes"][0]["cost"]
    assert cost["cpu_s"] > 0
    assert cost["peak_rss_bytes"] > 1 << 20
    assert schema.violations("run", summary) == []
    (tmp_path / "runbook.yaml").write_text("{name: bad, captures: [{collect: [{tcpdump: {interfaces: [eth7]}}]}]}")
    badly = again(tmp_path, "--quiet-ok")
    assert badly.returncode == 2
    assert "eth7" in badly.stdout
    assert "\x1b" not in badly.stdout + badly.stderr
    (tmp_path / "runbook.yaml").write_text("{name: bad, captures: 5}")
    wrong = again(tmp_path, "--quiet-ok", "--jitter", "1h")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "runbook.yaml:1:" in wrong.stderr


def test_after_each_run_the_older_ones_go(tmp_path: Path) -> None:
    (tmp_path / "runbook.yaml").write_text(SHORT.replace("duration", "retention: {runs: 1}, duration"))
    for _ in range(2):
        assert again(tmp_path, "--quiet-ok").returncode == 0
    listed = subprocess.run([*RETINA_RUN, "list", str(tmp_path / "runs")], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    assert len(listed.stdout.splitlines()) == 1 + 1, listed.stdout
