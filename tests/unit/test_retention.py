"""Retention: what must stay always stays, whatever the bounds; what goes, goes for a reason, oldest first, whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner import history
from retina_runner.cli import main
from retina_runner.report import NodeReport, RunReport, UploadReport
from retina_runner.retention import Keep, Past, doomed, open_ends

NOW = 1_800_000_000.0
PASTS = st.lists(
    st.builds(
        Past,
        name=st.integers(0, 10**6).map(lambda n: f"nightly-{n}"),
        began=st.integers(0, 60 * 86400).map(lambda ago: NOW - ago),
        size_bytes=st.integers(0, 10**9),
        guard=st.sampled_from(["", "", "", "not over", "n1: not uploaded"]),
        empty=st.booleans(),
    ),
    unique_by=lambda p: p.name,
    max_size=30,
)
KEEPS = st.builds(
    Keep,
    runs=st.none() | st.integers(1, 10),
    days=st.none() | st.integers(1, 40),
    size_bytes=st.none() | st.integers(1, 5 * 10**9),
    pin=st.sampled_from([(), ("nightly-1*",), ("*",), ("nightly-?", "*7")]),
)


@given(PASTS, KEEPS)
def test_what_is_guarded_or_pinned_or_the_newest_never_goes(pasts: list[Past], keep: Keep) -> None:
    from fnmatch import fnmatchcase

    gone = [d.past for d in doomed(pasts, keep, NOW)]
    assert not any(p.guard for p in gone)
    assert not any(fnmatchcase(p.name, pattern) for p in gone for pattern in keep.pin)
    for empty in (True, False):
        newest = max((p for p in pasts if p.empty is empty), key=lambda p: (p.began, p.name), default=None)
        assert newest not in gone


@given(PASTS, KEEPS)
def test_what_may_go_goes_until_the_bounds_hold_and_a_second_time_nothing_does(pasts: list[Past], keep: Keep) -> None:
    gone = {d.past.name for d in doomed(pasts, keep, NOW)}
    left = [p for p in pasts if p.name not in gone]
    assert doomed(left, keep, NOW) == ()
    newest = {p.empty: p for p in sorted(left, key=lambda p: (p.began, p.name))}.values()
    free = [p for p in left if not p.guard and not keep.pin and p not in newest]
    if not keep.pin:
        if keep.runs is not None:
            assert all(sum(p.empty is empty for p in free) <= keep.runs for empty in (True, False))
        if keep.days is not None:
            assert all(NOW - p.began <= keep.days * 86400 for p in free)
        if keep.size_bytes is not None and free:
            assert sum(p.size_bytes for p in left) <= keep.size_bytes


@given(PASTS, KEEPS)
def test_runs_without_an_archive_take_no_place_of_one_that_has_evidence(pasts: list[Past], keep: Keep) -> None:
    """Whatever is looked at in vain afterwards, as often as cron likes."""
    keep = replace(keep, size_bytes=None)
    evidence = [p for p in pasts if not p.empty]
    assert {d.past for d in doomed(pasts, keep, NOW) if not d.past.empty} == {
        d.past for d in doomed(evidence, keep, NOW)
    }


@given(PASTS)
def test_without_bounds_nothing_goes(pasts: list[Past]) -> None:
    assert doomed(pasts, Keep(), NOW) == ()


STORED = UploadReport("s3 b", "stored", "s3://b/x")
NODE = NodeReport("n1", "n1", "", "local", state="collected", archive="a.tar.gz", verified=True, uploads=(STORED,))
DONE = RunReport(run="r", exit_code=0, terms={"uploads": [{"kind": "s3", "options": {}}]}, nodes=(NODE,))


def test_a_run_is_finished_business_only_when_its_evidence_is_where_it_belongs() -> None:
    assert open_ends(DONE) == ""
    assert open_ends(replace(DONE, exit_code=None)) == "not over"
    assert open_ends(RunReport()) == "not over"
    assert "not uploaded" in open_ends(replace(DONE, nodes=(replace(NODE, uploads=()),)))
    failed = replace(STORED, state="failed")
    assert "not uploaded" in open_ends(replace(DONE, nodes=(replace(NODE, uploads=(failed,)),)))
    assert open_ends(replace(DONE, nodes=(replace(NODE, uploads=(failed, STORED)),))) == ""
    assert "still on a node" in open_ends(replace(DONE, nodes=(replace(NODE, remains="/var/tmp/x"),)))
    assert "isn't verified" in open_ends(replace(DONE, nodes=(replace(NODE, verified=False),)))


def make(
    folder: Path, name: str, day: int, *, runbook: str = "nightly", ended: bool = True, evidence: bool = True
) -> Path:
    """A run directory of 1 MB."""
    path = folder / name
    (path / "archives").mkdir(parents=True)
    (path / "archives" / "x.tar.gz").write_bytes(bytes(10**6))
    node = {"id": "n1", "node": "n1", "capture": "", "executor": "local"}
    events: list[dict[str, object]] = [
        {
            "event": "run-start",
            "time": f"2026-11-{day:02d}T00:00:00.000000Z",
            "run": name,
            "runbook": runbook,
            "nodes": [node],
        }
    ]
    if evidence:
        events.append({"event": "fetched", "id": "n1", "path": "archives/x.tar.gz"})
        events.append({"event": "verified", "id": "n1", "ok": True})
    if ended:
        events.append({"event": "run-end", "exit_code": 0})
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return path


def test_prune_takes_away_only_this_runbooks_runs_and_check_takes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for day in (1, 2, 3, 4, 5, 6):
        make(runs, f"nightly-{day}", day)
    make(runs, "other-1", 1, runbook="other")
    make(runs, "nightly-dead", 1, ended=False)
    (runs / "nightly-2" / history.PIN).touch()
    elsewhere = make(tmp_path, "nightly-elsewhere", 1)
    (runs / "nightly-link").symlink_to(elsewhere)
    half = make(runs, ".pruned-nightly-0", 1)
    runbook = tmp_path / "r.yaml"
    runbook.write_text("{name: nightly, retention: {runs: 3, pin: [nightly-1]}, captures: [{collect: [iptables]}]}")
    before = sorted(p.name for p in runs.iterdir())
    assert main(["prune", str(runbook), "--runs", str(runs), "--check"]) == 0
    told = capsys.readouterr().out
    assert "nightly-3: would go: more than 3 runs (1MB)" in told
    assert "nightly-2: stays: pinned by a file in it" in told
    assert "nightly-1: stays: pinned by nightly-1" in told
    assert "nightly-dead: stays: not over" in told
    assert sorted(p.name for p in runs.iterdir()) == before
    assert main(["prune", str(runbook), "--runs", str(runs)]) == 0
    assert sorted(p.name for p in runs.iterdir()) == sorted(set(before) - {"nightly-3", half.name})
    assert (elsewhere / "events.jsonl").exists()
    # The condition of `when` doesn't hold for a whole night.
    for day in range(10, 20):
        shutil.rmtree(make(runs, f"nightly-{day}", day, evidence=False) / "archives")
    assert main(["prune", str(runbook), "--runs", str(runs)]) == 0
    assert "nightly-16: more than 3 runs without an archive" in capsys.readouterr().out
    assert {p.name for p in runs.glob("nightly-?")} == {f"nightly-{n}" for n in (1, 2, 4, 5, 6)}
    assert {p.name for p in runs.glob("nightly-??")} == {f"nightly-{n}" for n in (17, 18, 19)}
    assert main(["list", str(runs)]) == 0
    rows = {x.split()[0]: x.split()[-1] for x in capsys.readouterr().out.splitlines()}
    assert (rows["nightly-6"], rows["nightly-19"]) == (f"{runs}/nightly-6/archives", "-")
    (runs / "nightly-6/archives/x.tar.gz").unlink()  # `keep: until-uploaded`
    assert main(["list", str(runs)]) == 0
    assert f"{runs}/nightly-6" not in capsys.readouterr().out


def test_a_runbook_without_retention_prunes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runbook = tmp_path / "r.yaml"
    runbook.write_text("{name: nightly, captures: [{collect: [iptables]}]}")
    assert main(["prune", str(runbook), "--runs", str(tmp_path)]) == 2
    assert "has no `retention`" in capsys.readouterr().err
