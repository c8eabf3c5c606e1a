"""Whole runs of `retina-run` with real stores as upload targets: exit codes, what is kept, and that no secret shows."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.verification import first_manifest
from tests.lab import RETINA_RUN, Run
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.servers import free_port
from tests.storage.stores import AzureStore, S3Store, Store

pytestmark = [pytest.mark.storage, pytest.mark.root]


def runbook(*uploads: tuple[str, dict[str, Any] | str], keep: str = "", size: int = 300_000) -> str:
    """One command whose output doesn't compress, and these targets. JSON is YAML."""
    return json.dumps({
        "name": "nightly", "duration": "1s", **({"keep": keep} if keep else {}), "compression": "none",
        "captures": [{
            "nodes": "local",
            "collect": [{"command": {
                "argv": ["head", "-c", str(size), "/dev/urandom"], "when": ["after"], "output_limit": f"{size}B",
            }}],
        }],
        "upload": [{kind: options} for kind, options in uploads],
    })  # fmt: skip


def retina_run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [*RETINA_RUN, *arguments], capture_output=True, text=True, timeout=170, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
    )  # fmt: skip


@pytest.fixture
def proxy(azure_store: AzureStore) -> Iterator[FaultyProxy]:
    with FaultyProxy(azure_store.server.port) as made:
        yield made


@pytest.mark.parametrize("via", ["runner", "node"])
def test_a_run_stores_everywhere(azure_store: AzureStore, s3_store: S3Store, tmp_path: Path, via: str) -> None:
    run = Run(
        runbook(
            ("azure_blob", azure_store.options(via=via, prefix="incidents")),
            ("s3", s3_store.options(via=via, prefix="incidents")),
            ("directory", str(tmp_path / "shelf")),
        ),
        tmp_path,
    )
    assert run.end() == 0, (run.events[-5:], run.stderr)
    assert {e["state"] for e in run.all("upload")} == {"stored"}
    assert sorted(e["via"] for e in run.all("upload")) == sorted([via, via, "runner"])
    archive = run.archive()
    content = archive.path.read_bytes()
    for store in (azure_store, s3_store):
        names = store.names()
        base = f"incidents/{run.directory.name}"
        assert f"{base}/{archive.path.name}" in names
        assert f"{base}/run.json" in names
        assert f"{base}/{archive.path.name.removesuffix('.tar.gz')}.manifest.json" in names
        assert store.content(f"{base}/{archive.path.name}") == content
        assert json.loads(store.content(f"{base}/run.json"))["exit_code"] == 0
        manifest = json.loads(store.content(f"{base}/{archive.path.name.removesuffix('.tar.gz')}.manifest.json"))
        assert manifest == archive.manifest
    assert (tmp_path / "shelf" / archive.path.name).read_bytes() == content


def test_one_of_two_targets_fails_and_is_finished_later(
    azure_store: AzureStore, s3_store: S3Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """It goes down after the pre-flight: exit 5, the other has it, the archive stays, `retina-run upload` finishes it."""
    proxy.faults.append(Fault("PUT", "nightly-", refuse=(403, "AuthorizationFailure"), times=99))
    run = Run(
        runbook(
            ("azure_blob", azure_store.options(proxy.port, via="runner")), ("s3", s3_store.options(via="runner")),
        ),
        tmp_path,
    )  # fmt: skip
    assert run.end() == 5, (run.events[-5:], run.stderr)
    assert [(e["state"]) for e in run.all("upload")] == ["failed", "stored"]
    assert run.archive().path.exists()
    assert any(key.endswith(".tar.gz") for key in s3_store.names())
    assert azure_store.names() == []
    proxy.faults.clear()
    done = retina_run("upload", str(run.directory), folder=tmp_path)
    assert done.returncode == 0, done
    assert azure_store.content(f"{run.directory.name}/{run.archive().path.name}") == run.archive().path.read_bytes()
    assert run.summary()["exit_code"] == 0
    for store in (azure_store, s3_store):  # what the other one has of the run is as new
        assert json.loads(store.content(f"{run.directory.name}/run.json"))["exit_code"] == 0
    again = retina_run("upload", str(run.directory), folder=tmp_path)
    assert again.returncode == 0, again


@pytest.mark.parametrize("trouble", ["down", "wrong name", "wrong key", "clock"])
def test_a_target_that_cannot_work_is_known_before_any_node_is_touched(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    options = remote.options()
    (variable,) = remote.environment
    if trouble == "down":
        options = remote.options(free_port())
    elif trouble == "wrong name":
        which = "container_url" if remote.kind == "azure_blob" else "bucket"
        options[which] += "x"
    elif trouble == "wrong key":
        monkeypatch.setenv(variable, remote.environment[variable].replace(remote.secret, "Y2FuYXJ5LXdyb25n"))
    else:
        upstream = remote.server.port  # type: ignore[attr-defined]
        with FaultyProxy(upstream, Fault(skew_s=3600.0, times=99)) as proxy:
            run = Run(runbook((remote.kind, remote.options(proxy.port))), tmp_path)
            status, said = run.end(), run.stderr
        assert status == 2, (run.events, said)
        assert "clock" in said
        assert not (tmp_path / "work").exists()
        return
    run = Run(runbook((remote.kind, options)), tmp_path)
    assert run.end() == 2, (run.events, run.stderr)
    said = run.stderr
    assert "upload to" in said, said
    assert remote.secret not in said
    assert "Y2FuYXJ5LXdyb25n" not in said
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/archives/*"))


def test_a_secret_in_the_runbook_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for uploads in (
        ("azure_blob", {"container_url": "https://acct.blob.core.windows.net/c?sv=2024&sig=c2VjcmV0LWNhbmFyeQ%3D"}),
        (
            "azure_blob",
            {"container_url": "https://acct.blob.core.windows.net/c", "credential": "sig=c2VjcmV0LWNhbmFyeQ"},
        ),
        ("s3", {"bucket": "captures", "credential": "AKIAXXXX:c2VjcmV0LWNhbmFyeQ"}),
    ):
        run = Run(runbook(uploads), tmp_path)
        assert run.end() == 2
        said = run.stderr + json.dumps(run.events)
        assert "runbook.yaml:1" in said
        assert "c2VjcmV0LWNhbmFyeQ" not in said, said


@pytest.mark.parametrize("via", ["runner", "node"])
@pytest.mark.parametrize("keep", ["never", "until-uploaded", "always"])
def test_what_is_kept(azure_store: AzureStore, tmp_path: Path, via: str, keep: str) -> None:
    run = Run(runbook(("azure_blob", azure_store.options(via=via)), keep=keep), tmp_path)
    assert run.end() == 0, (run.events[-5:], run.stderr)
    assert len(run.archives()) == (1 if keep == "always" else 0)
    (key,) = (k for k in azure_store.names() if k.endswith(".tar.gz"))
    beside = json.loads(azure_store.content(key.removesuffix(".tar.gz") + ".manifest.json"))
    assert beside == first_manifest(iter([azure_store.content(key)]))
    assert json.loads(azure_store.content(f"{run.directory.name}/run.json"))["exit_code"] == 0
    back = retina_run("download", str(run.directory), "--output", str(tmp_path / "back"), folder=tmp_path)
    assert back.returncode == 0, back
    (path,) = (tmp_path / "back").iterdir()
    assert path.read_bytes() == azure_store.content(key)
    assert retina_run("verify", str(path), folder=tmp_path).returncode == 0


@pytest.mark.parametrize("keep", ["never", "until-uploaded"])
def test_nothing_goes_before_it_is_stored(
    azure_store: AzureStore, proxy: FaultyProxy, tmp_path: Path, keep: str
) -> None:
    proxy.faults.append(Fault("PUT", "nightly-", refuse=(403, "AuthorizationFailure"), times=99))
    run = Run(runbook(("azure_blob", azure_store.options(proxy.port, via="node")), keep=keep), tmp_path)
    assert run.end() == 5, (run.events[-5:], run.stderr)
    assert len(run.archives()) == 1


def test_two_prefixes_of_one_store_are_two_targets(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the archive, its manifest and the run's record; a run that has one of them has not both."""
    both = [(remote.kind, {**remote.options(), "prefix": prefix}) for prefix in ("here", "there/too")]
    run = Run(runbook(*both, keep="never"), tmp_path)
    assert run.end() == 0, (run.events[-5:], run.stderr)
    for prefix in ("here", "there/too"):
        kinds = {k.rpartition("/")[2].partition(".")[2] for k in remote.names() if k.startswith(f"{prefix}/")}
        assert kinds == {"tar.gz", "manifest.json", "json"}, remote.names()
    stored = {e["target"] for e in run.events if e["event"] == "upload"}
    assert len(stored) == 2, stored
    back = retina_run("download", str(run.directory), "--output", str(tmp_path / "back"), folder=tmp_path)
    assert back.returncode == 0, back
    assert len(list((tmp_path / "back").iterdir())) == 1


def test_archives_come_back_from_a_url(azure_store: AzureStore, s3_store: S3Store, tmp_path: Path) -> None:
    run = Run(
        runbook(
            ("azure_blob", azure_store.options()),
            ("s3", s3_store.options()),
            ("directory", str(tmp_path / "shelf")),
        ),
        tmp_path,
    )
    assert run.end() == 0, run.stderr
    content = run.archive().path.read_bytes()
    for number, source in enumerate((
        ["--from", azure_store.options()["container_url"], "--credential", f"env:{azure_store.variable}"],
        ["--from", f"s3://{s3_store.name}/{run.directory.name}", "--credential", f"env:{s3_store.variable}",
         "--endpoint-url", s3_store.server.url()],
        ["--from", str(tmp_path / "shelf")],
    )):  # fmt: skip
        done = retina_run("download", *source, "--output", str(tmp_path / f"back{number}"), folder=tmp_path)
        assert done.returncode == 0, done
        (path,) = (tmp_path / f"back{number}").iterdir()
        assert path.read_bytes() == content


def test_a_damaged_archive_does_not_come_back(azure_store: AzureStore, tmp_path: Path) -> None:
    run = Run(runbook(("azure_blob", azure_store.options())), tmp_path)
    assert run.end() == 0, run.stderr
    content = bytearray(run.archive().path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    key = f"{run.directory.name}/{run.archive().path.name}"
    azure_store._container.delete_blob(key)
    azure_store.put(key, bytes(content))
    done = retina_run("download", str(run.directory), "--output", str(tmp_path / "back"), folder=tmp_path)
    assert done.returncode in (3, 4), done
    assert list((tmp_path / "back").iterdir()) == []


def test_a_host_path_keeps_so_many(tmp_path: Path) -> None:
    options = {"path": "nightly", "base": str(tmp_path / "kept"), "keep_count": 2}
    names = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Run(runbook(("host_path", options)), folder)
        assert run.end() == 0, (run.events[-5:], run.stderr)
        names.append(run.archive().path.name)
    assert sorted(p.name for p in (tmp_path / "kept" / "nightly").iterdir()) == sorted(names[1:])


def test_no_secret_shows(azure_store: AzureStore, s3_store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Keys, and the signatures of grants, are looked for in command lines and environments while the run stores, in what
    it says, in its directory, its archives and the node's directory. One target fails, so that error texts are among them."""
    import os
    from urllib.parse import quote, unquote

    signatures: set[str] = set()
    shown: list[str] = []
    mine = {s3_store.variable, azure_store.variable}

    def look() -> None:
        for request in list(proxy.seen):
            for pair in request.partition("?")[2].partition(" ")[0].split("&"):
                if pair.startswith("sig="):
                    signatures.update((pair[4:], unquote(pair[4:])))
        secrets = {azure_store.secret, s3_store.secret, *signatures}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                line = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
                variables = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            given = "\0".join(v for v in variables if v.partition("=")[0] not in mine and "AZURITE_ACCOUNTS" not in v)
            shown.extend(f"{folder}: {line[:80]}" for s in secrets if s in line or s in given)

    proxy.faults += [
        Fault("PUT", "nightly-", before=look),
        Fault("PUT", "nightly-", refuse=(403, "AuthenticationFailed"), times=99),
    ]
    run = Run(
        runbook(
            ("azure_blob", azure_store.options(proxy.port, via="node", key="{run}/first-{archive}")),
            ("azure_blob", azure_store.options(proxy.port, via="node", key="{run}/second-{archive}")),
            ("s3", s3_store.options(via="node")),
        ),
        tmp_path,
        env={"PYTHONWARNINGS": "default"},
    )
    status = run.end()
    look()
    assert status == 5, (run.events[-5:], run.stderr)
    assert signatures
    assert shown == []
    said = (run.stderr + json.dumps(run.events)).encode()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            said += content + (gzip.decompress(content) if path.name.endswith(".gz") else b"")
    for secret in (azure_store.secret, s3_store.secret, quote(azure_store.secret, safe=""), *signatures):
        assert secret.encode() not in said
    assert os.environ[azure_store.variable]
