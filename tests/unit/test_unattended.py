"""Manners of runs that nobody watches: what the words mean, what a lock keeps out, and when there is a mail."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from retina_runner.cli import unattended
from retina_runner.errors import Exit, OverlapError, UsageError
from retina_runner.report import NodeReport, RunReport
from retina_runner.views.lines import QuietOk


def test_words_become_seconds_and_wrong_ones_are_refused() -> None:
    assert unattended.manners(True, "5m", "1h30m") == unattended.Manners(True, 300.0, 5400.0)
    assert unattended.manners(False, None, None) == unattended.Manners()
    for jitter, deadline, named in (("5", None, "--jitter"), (None, "soon", "--deadline"), (None, "0s", "--deadline")):
        with pytest.raises(UsageError, match=named):
            unattended.manners(False, jitter, deadline)


def test_jitter_is_random_and_within_its_bound() -> None:
    slept: list[float] = []
    chosen = [unattended.spread_out(300.0, slept.append) for _ in range(50)]
    assert slept == chosen
    assert all(0 <= s <= 300 for s in slept)
    assert len(set(slept)) > 1


def test_the_second_is_kept_out_until_the_first_is_over(tmp_path: Path) -> None:
    runbook = tmp_path / "nightly.yaml"
    with unattended.alone(tmp_path / "runs", runbook) as died:
        assert died == ""
        with pytest.raises(OverlapError, match="a run of it is under way") as refused:
            with unattended.alone(tmp_path / "runs", runbook):
                pass
        assert refused.value.exit_code is Exit.OVERLAP
        with unattended.alone(tmp_path / "runs", tmp_path / "other.yaml"):
            pass
        with unattended.alone(tmp_path / "elsewhere", runbook):
            pass
    with unattended.alone(tmp_path / "runs", runbook) as died:
        assert died == ""


def test_a_lock_whose_holder_died_is_free_and_the_dead_are_named(tmp_path: Path) -> None:
    runbook = tmp_path / "nightly.yaml"
    path = unattended.lock_path(tmp_path, runbook)
    path.write_text('{"pid": 4711, "since": "2026-11-23T03:17:00.000000Z"}\n')
    with unattended.alone(tmp_path, runbook) as died:
        assert died == "process 4711 since 2026-11-23T03:17:00Z"
    path.write_text("\0garbage")
    with unattended.alone(tmp_path, runbook) as died:
        assert died == ""


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    unattended.lock_path(tmp_path, Path("nightly.yaml")).symlink_to(victim)
    with pytest.raises(UsageError), unattended.alone(tmp_path, Path("nightly.yaml")):
        pass
    assert victim.read_text() == "precious"


def test_the_deadline_rings_once_and_never_after_the_end() -> None:
    others, rung = threading.enumerate(), threading.Event()
    with unattended.by(0.01, rung.set):
        assert rung.wait(60)
    later = threading.Event()
    with unattended.by(3600.0, later.set):
        pass
    with unattended.by(None, later.set):
        pass
    assert not later.is_set()
    left = [t for t in threading.enumerate() if isinstance(t, threading.Timer) and not t.finished.is_set()]
    assert [
        t for t in left if t not in others
    ] == []  # a handshake that was broken off, for instance, has one of paramiko's


GOOD = NodeReport("n1", "n1", "", "local", state="collected", verdict="complete")


@pytest.mark.parametrize(
    ("node", "code", "said"),
    [
        (GOOD, 0, False),
        (replace(GOOD, verdict="lossy"), 0, True),
        (replace(GOOD, warnings=("clock stepped",)), 0, True),
        (GOOD, 5, True),
    ],
)
def test_quiet_ok_speaks_of_what_is_worth_a_mail(node: NodeReport, code: int, said: bool) -> None:
    out = io.StringIO()
    view = QuietOk(out)
    report = RunReport(run="r", nodes=(node,), exit_code=code)
    view.event({"event": "node-failed", "id": "n1"}, report)
    view.close(report)
    assert bool(out.getvalue()) is said
    assert "\x1b" not in out.getvalue()
