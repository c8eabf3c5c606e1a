"""A fleet in shards and one run of them again. The hosts are this machine under six names: shards don't ask how they are reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retina_runner import schema
from retina_runner.folding import fold
from retina_runner.report import from_json
from retina_runner.rundir import RunDirectory
from retina_runner.shards import shard_of
from retina_runner.verification import verify_archive

pytestmark = pytest.mark.root
NODES = [f"here{n}" for n in range(6)]


def retina_run(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "retina_runner", *words], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runbook on six names, and three runs: the shards of three, each in a directory of its own."""
    folder = tmp_path_factory.mktemp("shards")
    hosts = "".join(f"    {n}: {{ansible_connection: local}}\n" for n in NODES)
    (folder / "hosts.yaml").write_text(f"all:\n  hosts:\n{hosts}")
    (folder / "runbook.yaml").write_text(
        "name: sharded\nduration: 2s\ncaptures:\n  - nodes: {inventory: hosts.yaml}\n"
        '    collect: [{command: {argv: [echo, "hello"], when: [before]}}]\n'
    )
    for number in (1, 2, 3):
        retina_run("-q", "--shard", f"{number}/3", "--output", str(folder / f"s{number}"), str(folder / "runbook.yaml"))
    return folder


def runs_of(folder: Path) -> list[Path]:
    return [p.parent for p in sorted(folder.glob("s[123]/*/events.jsonl"))]


def state(path: Path) -> dict[str, Any]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_every_node_is_run_by_one_shard(fleet: Path) -> None:
    nodes = [{n.node for n in fold(RunDirectory(p).read_events()).nodes} for p in runs_of(fleet)]
    assert sorted(n for shard in nodes for n in shard) == NODES
    for number in (1, 2, 3):
        listed = retina_run("run", "--list-hosts", "--shard", f"{number}/3", str(fleet / "runbook.yaml")).split()
        assert listed == [n for n in NODES if shard_of(n, 3) == number]


def test_an_empty_shard_does_nothing_well(fleet: Path, tmp_path: Path) -> None:
    empty = next(i for i in range(1, 101) if i not in {shard_of(n, 100) for n in NODES})
    said = retina_run("--shard", f"{empty}/100", "--output", str(tmp_path / "runs"), str(fleet / "runbook.yaml"))
    assert said == f"shard {empty}/100 has no node of this runbook; nothing to do\n"
    assert not (tmp_path / "runs").exists()


def test_shards_are_merged_to_one_run(fleet: Path, tmp_path: Path) -> None:
    parts = runs_of(fleet)
    before = [state(p) for p in parts]
    made = Path(retina_run("merge", "-q", "--output", str(tmp_path), *map(str, parts)).strip())
    assert [state(p) for p in parts] == before
    report = from_json(json.loads((made / "run.json").read_text()))
    assert sorted(n.node for n in report.nodes) == NODES
    assert all(n.state == "collected" and n.verified and n.removed for n in report.nodes)
    for node in report.nodes:
        assert Path(node.archive).parent == made / "archives"
        verified = verify_archive(node.archive)
        assert not verified.problems
        assert verified.manifest is not None
        assert verified.manifest["node"] == node.node
    events = [json.loads(line) for line in (made / "events.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert [v for e in events for v in schema.violations("event", e)] == []
    assert schema.violations("run", json.loads((made / "run.json").read_text())) == []
    assert [e["event"] for e in events if e["event"] in ("run-start", "t0", "run-end")] == [
        "run-start",
        "t0",
        "run-end",
    ]
    assert events[0]["merged"] == [p.name for p in parts]
    assert len(list((made / "plans").iterdir())) == 6
    assert (made / "junit.xml").read_text().count("<testcase") >= 6
    # The views of a run are made of its directory, this one's too; and it can be merged no second time with a part of it.
    assert "here5" in retina_run("report", str(made))
    assert "runs of the same nodes" in retina_run(
        "merge", "--output", str(tmp_path), str(made), str(parts[0]), status=2
    )


def test_a_damaged_archive_is_not_merged(fleet: Path, tmp_path: Path) -> None:
    parts = runs_of(fleet)
    copy = tmp_path / "copy"
    for path, content in state(parts[0]).items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
    archive = next((copy / "archives").iterdir())
    archive.write_bytes(archive.read_bytes()[:-20])
    said = retina_run("merge", "--output", str(tmp_path / "out"), str(copy), *map(str, parts[1:]), status=1)
    assert f"{archive}: truncated" in said
    assert "nothing was written" in said
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_merged(fleet: Path, tmp_path: Path) -> None:
    parts = runs_of(fleet)
    assert "name two runs" in retina_run("merge", str(parts[0]), status=2)
    assert "named twice" in retina_run("merge", str(parts[0]), str(parts[0]), status=2)
    assert "not a run directory" in retina_run("merge", str(parts[0]), str(tmp_path), status=2)
    dead = tmp_path / "dead"
    dead.mkdir()
    lines = (parts[1] / "events.jsonl").read_text().splitlines(keepends=True)
    (dead / "events.jsonl").write_text("".join(lines[:-1]))
    assert "hasn't ended; retina-run resume" in retina_run("merge", str(parts[0]), str(dead), status=2)
    other = tmp_path / "other"
    other.mkdir()
    text = "".join(lines).replace(json.loads(lines[0])["runbook_sha256"], "0" * 64)
    (other / "events.jsonl").write_text(text)
    assert "of another runbook" in retina_run("merge", str(parts[0]), str(other), status=2)


def test_a_merged_run_has_the_exit_status_of_the_whole(fleet: Path, tmp_path: Path) -> None:
    """A shard with a failed node makes the whole one with a failed node."""
    hosts = "all: {hosts: {bad: {ansible_connection: local}}}\n"
    (tmp_path / "hosts.yaml").write_text(hosts)
    book = tmp_path / "runbook.yaml"
    book.write_text((fleet / "runbook.yaml").read_text())
    blocked = tmp_path / "blocked"
    blocked.write_text("not a folder")
    retina_run("-q", "--output", str(tmp_path / "runs"), "--work-dir", str(blocked), str(book), status=2)
    (bad,) = [p.parent for p in (tmp_path / "runs").glob("*/events.jsonl")]
    said = retina_run("merge", "--output", str(tmp_path / "out"), str(bad), *map(str, runs_of(fleet)), status=3)
    assert "bad" in said
    assert os.listdir(tmp_path / "out")
