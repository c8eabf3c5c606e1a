"""Which places `retina-run download` looks at for each archive of a run: told by the run's own record."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from retina_runner.cli.download import Stored, Terminated, Wanted, _all, _interruptible, _of_run
from retina_runner.cli.shelved import Shelved, Shelves
from retina_runner.errors import UsageError
from retina_runner.fetching import Throttle
from retina_runner.uploads import NotStored
from retina_runner.uploads.opening import open_target
from tests.lab import eventually

HOST_PATH = {"kind": "host_path", "options": {"base": "/var/lib/retina-run/archives", "path": "incidents"}}
ON_NODES = "/var/lib/retina-run/archives/incidents on the node"
JOB = {"kubeconfig": "/k", "context": "c", "namespace": "jobs", "token": "abc123"}


def run_of(
    folder: Path, nodes: list[dict[str, Any]], uploads: list[dict[str, Any]], claim: str = "", jobs: bool = True
) -> Path:
    """A run directory with these nodes, each of which has stored `name` wherever `at` says."""
    run = folder / "run"
    run.mkdir()
    settings = {"namespace": "jobs", "image": "i", "claim": claim}
    events: list[dict[str, Any]] = [{
        "event": "run-start", "run": "run", "runbook": "r", "version": "1", "directory": str(run), "duration_s": 1.0,
        "terms": {"uploads": uploads, **({"jobs": {"": settings}} if jobs else {})},
        "nodes": [{"id": n["id"], "node": n["node"], "capture": "", "executor": n["executor"], "directory": "/work/x",
                   "reach": n["reach"]} for n in nodes if "#" not in n["id"]],
    }]  # fmt: skip
    for n in nodes:
        told = {"id": n["id"], "node": n["node"], "capture": ""}
        events += [
            {"event": "archive", **told, "name": n["name"], "size_bytes": n["size"], "sha256": "0" * 64, "verdict": "complete",
             "reasons": []},
            *({"event": "upload", **told, "target": t, "state": "stored", "location": f"{where}/{n['name']}", "via": "node"}
              for t, where in n["at"].items()),
        ]  # fmt: skip
    lines = [json.dumps({"seq": i, "time": "2026-01-01T00:00:00Z", **e}) + "\n" for i, e in enumerate(events)]
    (run / "events.jsonl").write_text("".join(lines))
    return run


def pod(node: str, name: str, identifier: str = "", **at: str) -> dict[str, Any]:
    where = at or {ON_NODES: "/var/lib/retina-run/archives/incidents"}
    return {
        "id": identifier or node, "node": node, "executor": "kubernetes", "name": name, "size": 1000, "at": where,
        "reach": {**JOB, "job": f"retina-run-abc123-{node}", "node": node},
    }  # fmt: skip


def wanted(run: Path, *nodes: str) -> list[Wanted]:
    return list(_of_run(run, nodes, Shelves()))


def test_archives_of_one_node_come_from_one_pod_and_frozen_windows_too(tmp_path: Path) -> None:
    frozen = pod("a", "r-a-2.tar.gz", "a#2")
    frozen.pop("reach")
    run = run_of(tmp_path, [pod("a", "r-a-1.tar.gz"), pod("b", "r-b-1.tar.gz"), frozen], [HOST_PATH])
    found = {w.name: w for w in wanted(run)}
    assert set(found) == {"r-a-1.tar.gz", "r-b-1.tar.gz", "r-a-2.tar.gz"}
    assert found["r-a-1.tar.gz"].place == found["r-a-2.tar.gz"].place != found["r-b-1.tar.gz"].place
    assert [w.name for w in wanted(run, "b")] == ["r-b-1.tar.gz"]


def test_a_claim_is_one_place_for_all_nodes(tmp_path: Path) -> None:
    run = run_of(tmp_path, [pod("a", "r-a-1.tar.gz"), pod("b", "r-b-1.tar.gz")], [HOST_PATH], claim="captures")
    first, second = wanted(run)
    assert first.place == second.place
    (source,) = first.sources
    assert isinstance(source, Shelved)
    assert str(source) == "claim captures"
    assert source.path == "incidents/r-a-1.tar.gz"


def test_a_store_is_asked_before_a_node(tmp_path: Path) -> None:
    shelf = tmp_path / "store"
    at = {ON_NODES: "/var/lib/retina-run/archives/incidents", str(shelf): str(shelf)}
    uploads = [HOST_PATH, {"kind": "directory", "options": {"path": str(shelf)}}]
    (one,) = wanted(run_of(tmp_path, [{**pod("a", "r-a-1.tar.gz"), "at": at}], uploads))
    assert [str(s) for s in one.sources] == [str(shelf), "a: /var/lib/retina-run/archives/incidents"]


def test_a_node_that_isn_t_there_and_a_record_that_does_not_say(tmp_path: Path) -> None:
    run = run_of(tmp_path, [pod("node-a", "r-a-1.tar.gz")], [HOST_PATH], jobs=False)
    with pytest.raises(UsageError, match="did you mean node-a"):
        wanted(run, "node-b")
    with pytest.raises(UsageError, match="doesn't say what its Jobs were like"):
        wanted(run)


@pytest.mark.parametrize("on_a_shelf", [True, False])
def test_a_rate_so_low_that_it_takes_hours_holds_nobody_up_who_has_given_up(tmp_path: Path, on_a_shelf: bool) -> None:
    """Of a folder that is a store, and of one that a run says its node has kept its archive in."""
    source = tmp_path / "store"
    source.mkdir()
    (source / "r-a-1.tar.gz").write_bytes(bytes(4000))
    give_up = threading.Event()
    throttle = Throttle(1.0, lambda s: give_up.set() if s > 3000 else None)
    if on_a_shelf:
        local = {
            **pod("a", "r-a-1.tar.gz"),
            "executor": "local",
            "reach": None,
            "at": {ON_NODES: str(source)},
            "size": 4000,
        }
        (one,) = wanted(run_of(tmp_path, [local], [HOST_PATH]))
        (brings,) = one.sources
    else:
        target = open_target("directory", {"path": str(source)})
        assert target is not None
        brings = Stored(target, "r-a-1.tar.gz")
    with suppress(NotStored):
        brings.bring(tmp_path / "r-a-1.tar.gz", give_up, throttle)
    assert give_up.is_set()


def test_a_signal_that_another_thread_takes_is_heeded() -> None:
    """As the kernel may have it when a stopped process is told to end and to go on."""
    heeded: list[bool] = []
    main = threading.main_thread().ident or 0

    def waits() -> bool:
        """Whether the main thread does nothing but wait for this one."""
        inner = [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])]
        return inner[inner.index("_all") - 1] in ("wait", "result")

    def get(one: Wanted) -> str:
        eventually(waits, "the archive is waited for")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)
        heeded.append(give_up.wait(30))
        return "interrupted"

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with pytest.raises(Terminated), _interruptible() as give_up:
            list(_all([Wanted("a.tar.gz", [])], get, Shelves(), give_up))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert heeded == [True]
