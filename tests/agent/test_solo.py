"""A pod's first process with a plan of its own: no runner, one archive, said and put where it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.planning import Place, build
from retina_runner.runbook import parse_runbook
from retina_runner.verification import verify_archive

RUNBOOK = b"""
name: alone
duration: 1s
limits: {disk_free_percent: 0, disk_free_bytes: %s, node_bytes: 50MB}
captures:
  - collect:
      - command: {argv: [%s, "hello"], when: [before]}
"""


def start(
    tmp_path: Path, command: bytes, *shelves: dict[str, Any], space: bytes = b"0B"
) -> tuple[list[str], subprocess.Popen[bytes]]:
    """The agent's command, and the first process of a pod that doesn't exist."""
    bundle = agent_bundle()
    (tmp_path / bundle.name).write_bytes(bundle.content)
    runbook = parse_runbook(RUNBOOK % (space, command), "alone.yaml")
    (made,) = build(runbook, {"": [Place("node-1", "kubernetes")]}, "alone-20260102030405UTC", bundle)
    (tmp_path / "plan.json").write_bytes(made.text)
    agent = [sys.executable, "-I", str(tmp_path / bundle.name)]
    argv = [*agent, "hold", str(tmp_path / "work"), "--limit", "60", "--plan", str(tmp_path / "plan.json")]
    for shelf in shelves:
        argv += ["--shelf", json.dumps(shelf)]
    return agent, subprocess.Popen(argv, stdout=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]]]:
    out, _ = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


def test_the_archive_is_said_and_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    shelf = {
        "base": str(tmp_path / "archives"),
        "path": "incidents",
        "keep_count": 3,
        "keep_s": None,
        "keep_bytes": None,
    }
    status, said = end(start(tmp_path, b"echo", shelf)[1])
    assert (status, [s["event"] for s in said]) == (0, ["archive", "kept"])
    kept = Path(said[1]["location"])
    assert kept.parent == tmp_path / "archives" / "incidents"
    assert kept.stat().st_size == said[0]["size"]
    assert verify_archive(kept).ok
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("bad", [{"path": "../out"}, {"base": "relative"}])
def test_an_archive_that_cannot_be_put_away_waits_to_be_fetched(tmp_path: Path, bad: dict[str, Any]) -> None:
    agent, process = start(tmp_path, b"echo", {"base": str(tmp_path / "archives"), "path": "incidents", **bad})
    assert process.stdout is not None
    said = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [s["event"] for s in said] == ["archive", "failed"]
    assert verify_archive(Path(said[0]["path"])).ok
    subprocess.run(
        [*agent, "remove", str(tmp_path / "work" / "solo")], check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    assert end(process)[0] == 1


def test_a_job_that_is_deleted_after_its_archive_was_there_ends_at_once(tmp_path: Path) -> None:
    agent, process = start(tmp_path, b"echo")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "archive"
    process.terminate()
    assert end(process) == (0, [])
    # In a pod the rest ends with its first process.
    subprocess.run(
        [*agent, "remove", str(tmp_path / "work" / "solo")], check=True, timeout=120, stdout=subprocess.DEVNULL
    )


def test_a_plan_that_fails_fails_the_job(tmp_path: Path) -> None:
    """Its disk has to keep more free than any disk has."""
    status, said = end(start(tmp_path, b"echo", space=b"900TB")[1])
    assert (status, [s["event"] for s in said]) == (1, ["failed"])
    assert said[0]["state"] == "failed"
    assert "free" in said[0]["why"]
    assert not (tmp_path / "work").exists()
