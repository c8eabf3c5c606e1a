"""What real stores forget: older runs of a runbook, whole, and nothing of anybody else's; and what a credential may not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Run
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.stores import AzureStore, FolderStore, S3Store, Store
from tests.storage.test_runs import retina_run

pytestmark = [pytest.mark.storage, pytest.mark.root]


def book(kind: str, options: dict[str, Any], **retention: Any) -> str:
    return json.dumps({
        "name": "nightly", "duration": "1s",
        "captures": [{"collect": [{"command": {"argv": ["head", "-c", "30000", "/dev/urandom"], "when": ["after"]}}]}],
        "upload": [{kind: {**options, "retention": retention}}],
    })  # fmt: skip


def runs_of(store: Store) -> dict[str, int]:
    """How many keys there are of each run."""
    found: dict[str, int] = {}
    for key in store.names():
        for part in key.replace(".", "/").split("/"):
            if part.startswith("nightly-") and part.endswith("UTC") and part.count("-") == 1:
                found[part] = found.get(part, 0) + 1
    return found


def run_once(text: str, folder: Path, name: str) -> Run:
    (folder / name).mkdir()
    run = Run(text, folder / name)
    assert run.end() == 0, (run.events[-5:], run.stderr)
    return run


def test_older_runs_go_after_each_run_and_nothing_of_anybody_elses(store: Store, tmp_path: Path) -> None:
    options = store.options(prefix="incidents")
    text = book(store.kind, options, runs=2)
    first = run_once(text, tmp_path, "1")
    names = store.names()
    assert len(names) == 3
    folder = "incidents/" if store.kind != "directory" else ""
    theirs = [f"{folder}notes.txt", f"{folder}{first.directory.name}x/run.json", f"{folder}{first.directory.name}.txt"]
    for key in theirs:
        store.put(key, b"theirs")
    for number in ("2", "3"):
        run_once(text, tmp_path, number)
    left = store.names()
    assert len(left) == 6 + len(theirs)
    assert set(theirs) <= set(left)
    assert not set(names) & set(left)
    for key in theirs:
        assert store.content(key) == b"theirs"


def test_what_lies_in_an_old_runs_folder_without_its_metadata_stays(remote: Store, tmp_path: Path) -> None:
    text = book(remote.kind, remote.options(), runs=1)
    first = run_once(text, tmp_path, "1")
    run = first.directory.name
    (archive,) = (k for k in remote.names() if k.endswith(".tar.gz"))
    remote.put(f"{run}/analysis.txt", b"theirs")
    overwrite(remote, archive, b"theirs")
    run_once(text, tmp_path, "2")
    assert sorted(k for k in remote.names() if k.startswith(run)) == [f"{run}/analysis.txt", archive, f"{run}/run.json"]
    told = retina_run("prune", str(tmp_path / "1" / "runbook.yaml"), "--runs", "none", folder=tmp_path)
    assert told.returncode == 0, told
    assert f"{archive} stays: it has no metadata run" in told.stdout
    assert remote.content(archive) == b"theirs"


def overwrite(store: Store, key: str, content: bytes) -> None:
    if isinstance(store, AzureStore):
        store._container.upload_blob(key, content, overwrite=True)
    else:
        store.put(key, content)


def test_pinned_and_unfinished_runs_stay_whatever_the_bounds(remote: Store, tmp_path: Path) -> None:
    first = run_once(book(remote.kind, remote.options(), runs=9), tmp_path, "1")
    second = run_once(book(remote.kind, remote.options(), runs=9), tmp_path, "2")
    third = run_once(book(remote.kind, remote.options(), runs=9), tmp_path, "3")
    key = f"{second.directory.name}/run.json"
    summary = json.loads(remote.content(key))
    summary["nodes"][0]["uploads"][0]["state"] = "failed"  # as a run says whose second target was down
    rewrite(remote, key, json.dumps(summary).encode())
    text = book(remote.kind, remote.options(), runs=1, pin=[first.directory.name])
    (tmp_path / "prune.yaml").write_text(text)
    check = retina_run("prune", "prune.yaml", "--check", "--runs", "none", folder=tmp_path)
    assert f"{first.directory.name}: stays: pinned by {first.directory.name}" in check.stdout, check
    assert f"{second.directory.name}: stays: vm: not uploaded" in check.stdout.replace(os.uname().nodename, "vm")
    assert f"{third.directory.name}: stays (" in check.stdout
    before = remote.names()
    assert retina_run("prune", "prune.yaml", "--runs", "none", folder=tmp_path).returncode == 0
    assert remote.names() == before
    # What this machine knows of a run counts: with its directory at hand, the second is finished business.
    rewrite(remote, f"{first.directory.name}/run.json", remote.content(f"{first.directory.name}/run.json"))
    done = retina_run("prune", "prune.yaml", "--runs", str(tmp_path / "2" / "runs"), folder=tmp_path)
    assert f"{second.directory.name}: more than 1 runs" in done.stdout, done
    assert set(runs_of(remote)) == {first.directory.name, third.directory.name}


def rewrite(store: Store, key: str, content: bytes) -> None:
    """Replace a run.json as the runner would, its metadata with it."""
    metadata = store.metadata(key)
    if isinstance(store, AzureStore):
        store._container.upload_blob(key, content, overwrite=True, metadata=metadata)
    else:
        assert isinstance(store, S3Store)
        store._client.put_object(Bucket=store.name, Key=key, Body=content, Metadata=metadata)


@pytest.mark.parametrize("may", ["rcw", "rlcw"])
def test_a_sas_that_may_not_says_so_and_the_run_is_none_the_worse(
    azure_store: AzureStore, tmp_path: Path, may: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to list, and with it but without the one to delete."""
    text = book("azure_blob", azure_store.options(), runs=1)
    run_once(text, tmp_path, "1")
    monkeypatch.setenv(azure_store.variable, azure_store.sas(may))
    second = run_once(text, tmp_path, "2")
    said = second.stderr
    assert "retention needs the rights to list, to read and to delete" in said, said
    assert len(said.splitlines()) == 1
    assert "sig=" not in said
    assert len(runs_of(azure_store)) == 2
    told = retina_run("prune", str(tmp_path / "2" / "runbook.yaml"), "--runs", "none", folder=tmp_path)
    assert told.returncode == 3, told
    assert "to list, to read and to delete" in told.stderr
    monkeypatch.setenv(azure_store.variable, azure_store.sas("rlcwd"))
    told = retina_run("prune", str(tmp_path / "2" / "runbook.yaml"), "--runs", "none", folder=tmp_path)
    assert told.returncode == 0, told
    assert len(runs_of(azure_store)) == 1


def test_a_bucket_that_refuses_to_delete_says_so_and_is_gone_on_with_later(s3_store: S3Store, tmp_path: Path) -> None:
    text = book("s3", s3_store.options(), runs=1)
    run_once(text, tmp_path, "1")
    with FaultyProxy(
        s3_store.server.port, Fault("DELETE", ".tar.gz", refuse=(403, "AccessDenied"), times=9)
    ) as between:
        (tmp_path / "2").mkdir()
        run = Run(book("s3", s3_store.options(between.port), runs=1), tmp_path / "2")
        assert run.end() == 0, run.events[-5:]
        assert "not pruned: refused (AccessDenied)" in run.stderr
    assert len(runs_of(s3_store)) == 2
    run_once(text, tmp_path, "3")
    assert len(runs_of(s3_store)) == 1


def test_folders_count_runs_of_this_runbook_only(tmp_path: Path) -> None:
    shelf = FolderStore(tmp_path / "shelf")
    text = book("directory", shelf.options(), runs=1)
    run_once(text.replace('"nightly"', '"hourly"'), tmp_path, "other")
    before = shelf.names()
    for number in ("1", "2"):
        run_once(text, tmp_path, number)
    assert len(shelf.names()) == 6
    assert set(before) <= set(shelf.names())
