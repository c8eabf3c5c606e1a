"""Jobs store their archives themselves, at real stores on an address of the cluster's network, by grants of the runner's.

Runner, stores and kubectl are in the control plane's network namespace, where nodes reach them; a proxy in front of the
store counts, and breaks what a test says. tests/storage/test_fleet.py has the same over SSH.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from retina_runner.naming import without_ending
from retina_runner.uploads import BLOCK_BYTES
from retina_runner.verification import first_manifest, verify_archive
from tests.cluster import programs
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.network import CONTROL_PLANE
from tests.cluster.runs import LABEL, PatientRun, Runs
from tests.lab import within
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.servers import Azurite, Server, Swift
from tests.storage.stores import MIB, AzureStore, S3Store

pytestmark = pytest.mark.cluster

SIZE = 50 * MIB


class Inside(Api):
    """The cluster as the control plane's network reaches it."""

    def program(self) -> str:
        return str(programs.kubernetes() / "kubectl")


@pytest.fixture
def inside(own_cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Runs]:
    """This thread, and what it starts, in the control plane's network; runs there, which leave nothing."""
    kubeconfig = own_cluster.kubeconfig_at(f"https://{CONTROL_PLANE}:6443", tmp_path / "inside.kubeconfig")
    runs = Runs(Inside(kubeconfig, own_cluster.image), tmp_path)
    with within(own_cluster.network.control_plane):
        try:
            yield runs
            runs.api.eventually(lambda: not runs.left(), "nothing of the runs is left")
        finally:
            runs.close()


@pytest.fixture(scope="module", params=["azure_blob", "s3"])
def server(
    request: pytest.FixtureRequest, own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    kind = Azurite if request.param == "azure_blob" else Swift
    with within(own_cluster.network.control_plane):
        made = kind(tmp_path_factory.mktemp("server"), CONTROL_PLANE)
        made.start()
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
def store(server: Server, inside: Runs, monkeypatch: pytest.MonkeyPatch) -> AzureStore | S3Store:
    made = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)  # type: ignore[arg-type]
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def proxy(store: AzureStore | S3Store) -> Iterator[FaultyProxy]:
    with FaultyProxy(store.server.port, host=CONTROL_PLANE) as made:
        yield made


def begin(
    inside: Runs, namespace: str, node: str, store: AzureStore | S3Store, port: int, size: int = SIZE, **more: Any
) -> PatientRun:
    """A run of one Job, whose archive of that size is stored by way of `port`, and kept nowhere else."""
    argv = ["head", "-c", str(size), "/dev/urandom"]
    runbook = {
        "name": "granted", "duration": "1s", "compression": "none", "keep": more.pop("keep", "never"),
        "limits": {"memory": "2GiB"},
        "captures": [{
            "nodes": {"kubernetes": {"nodes": [node], "job": {"namespace": namespace}}},
            "collect": [{"command": {"argv": argv, "when": ["after"], "output_limit": f"{size}B", "limit": "120s"}}],
        }],
        "upload": [{store.kind: store.options(port, **{"via": "node", **more})}],
    }  # fmt: skip
    return inside.start(json.dumps(runbook))


def blocks_of(store: AzureStore | S3Store) -> dict[str, Any]:
    return {"method": "PUT", "containing": "comp=block&" if store.kind == "azure_blob" else "partNumber="}


def count_of_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def stored(run: PatientRun, store: AzureStore | S3Store) -> int:
    """The node has stored it, and beside it lie its manifest and the run's record; nothing is here. Its size."""
    (event,) = run.all("upload")
    assert (event["state"], event["via"]) == ("stored", "node"), run.events[-8:]
    assert run.all("warning") == []
    assert run.archives() == []
    (node,) = run.summary()["nodes"]
    (archive,) = run.all("archive")
    key = f"{run.directory.name}/{archive['name']}"
    content = store.content(key)
    assert hashlib.sha256(content).hexdigest() == archive["sha256"]
    manifest = json.loads(store.content(f"{without_ending(key)}.manifest.json"))
    assert manifest == first_manifest(iter([content]))
    assert manifest["executor"] == "kubernetes"
    assert json.loads(store.content(f"{run.directory.name}/run.json"))["exit_code"] == 0
    assert node["state"] == "collected"
    return len(content)


def test_only_the_store_has_it_and_it_comes_back(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """No byte of the archive but its front goes through the runner; each block is sent once."""
    run = begin(inside, namespace, own_cluster.nodes[2].name, store, proxy.port)
    assert run.end() == 0, (run.events[-8:], run.stderr)
    size = stored(run, store)
    assert proxy.count(blocks_of(store)["containing"]) == count_of_blocks(size)
    assert size <= proxy.body_bytes <= size + MIB
    back = inside.command("download", str(run.directory), "--output", str(tmp_path / "back"), **store.environment)
    assert back.returncode == 0, back
    (path,) = (tmp_path / "back").iterdir()
    assert verify_archive(path).problems == ()


def test_a_store_that_is_killed_and_comes_back(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """While the fourth block is on its way: the first three aren't sent again."""
    blocks = blocks_of(store)

    def crash() -> None:
        store.server.settle(store.name, 3)
        store.server.kill()
        store.server.start()

    proxy.faults += [Fault(**blocks, times=3, before=lambda: None), Fault(**blocks, cut_after=MIB, before=crash)]
    run = begin(inside, namespace, own_cluster.nodes[1].name, store, proxy.port)
    assert run.end() == 0, (run.events[-8:], run.stderr)
    size = stored(run, store)
    assert proxy.faults[1].spent == 1
    assert proxy.count(blocks["containing"]) == count_of_blocks(size) + 1


def test_a_grant_that_has_expired(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The runner makes another, and the node goes on with the block that was refused."""
    blocks = blocks_of(store)
    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),
        Fault(**blocks, refuse=(403, "AuthenticationFailed")),
    ]
    run = begin(inside, namespace, own_cluster.nodes[1].name, store, proxy.port)
    assert run.end() == 0, (run.events[-8:], run.stderr)
    size = stored(run, store)
    assert proxy.count(blocks["containing"]) == count_of_blocks(size) + 1


def test_an_api_server_that_restarts_while_a_node_stores(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The runner's connection breaks, the node isn't concerned; what was confirmed isn't sent again."""
    blocks = blocks_of(store)
    on_its_way, back = threading.Event(), threading.Event()

    def hold() -> None:
        on_its_way.set()
        back.wait(120)

    proxy.faults += [Fault(**blocks, times=2, before=lambda: None), Fault(**blocks, before=hold)]
    run = begin(inside, namespace, own_cluster.nodes[1].name, store, proxy.port)
    try:
        inside.api.eventually(on_its_way.is_set, "a block is on its way")
        own_cluster.stop("control-plane", "kube-apiserver")
        run.wait_for("lost")
    finally:
        own_cluster.start("control-plane", "kube-apiserver")
        back.set()
    assert run.end() == 0, (run.events[-8:], run.stderr)
    assert run.all("reattached")
    size = stored(run, store)
    assert proxy.count(blocks["containing"]) <= count_of_blocks(size) + 1


def test_a_runner_that_is_killed_while_a_node_stores(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """`resume` has the node finish, with a grant of its own."""
    blocks = blocks_of(store)
    on_its_way, dead = threading.Event(), threading.Event()

    def hold() -> None:
        on_its_way.set()
        dead.wait(120)

    proxy.faults += [Fault(**blocks, times=3, before=lambda: None), Fault(**blocks, cut_after=0, before=hold)]
    run = begin(inside, namespace, own_cluster.nodes[1].name, store, proxy.port)
    inside.api.eventually(on_its_way.is_set, "a block is on its way")
    run.signal(signal.SIGKILL)
    run.process.wait()
    dead.set()
    done = inside.command("resume", str(run.directory), "--json", **store.environment)
    assert done.returncode == 0, done
    run.events = [json.loads(line) for line in done.stdout.splitlines()]
    size = stored(run, store)
    assert proxy.count(blocks["containing"]) <= count_of_blocks(size) + 1


def test_no_secret_shows_in_the_cluster(
    own_cluster: Cluster, inside: Runs, namespace: str, store: AzureStore | S3Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """While blocks are on their way and after a refusal for good: in no object of the cluster (pods with their environment
    and arguments, plans, Secrets, events), no process's command line or environment but the runner's variable, no file of the
    node's or log of the cluster's, and nothing of the run."""
    signatures: set[str] = set()
    shown: list[str] = []
    looked: list[int] = []
    allowed = ("RR_TEST_", "AZURITE_ACCOUNTS=")

    def secrets() -> set[str]:
        for request in list(proxy.seen):
            for pair in request.partition("?")[2].split("&"):
                name, _, value = pair.partition("=")
                if name in ("sig", "X-Amz-Signature"):
                    signatures.update((value.partition(" ")[0], unquote(value.partition(" ")[0])))
        return {store.secret, *signatures}

    def look() -> None:
        known = secrets()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
                variables = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
                given = "\0".join(v for v in variables if not v.startswith(allowed))
                shown.extend(f"{folder}: {line[:80]}" for s in known if s in line or s in given)
        objects = inside.api.kubectl("get", "pods,jobs,configmaps,secrets,events", "-A", "-o", "json")
        assert f'"{LABEL}"' in objects
        shown.extend("an object" for s in known if s in objects)
        looked.append(len(known))

    def search(folder: Path) -> None:
        """Whole files, archives opened. (The node's own copy of the archive is random bytes.)"""
        # Pods of earlier tests are being removed, and their logs with them: what has gone since it was listed holds nothing.
        for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 200 * MIB:
                    content = path.read_bytes()
                    content += gzip.decompress(content) if path.name.endswith(".gz") else b""
                    shown.extend(str(path) for s in secrets() if s.encode() in content)

    proxy.faults += [
        Fault("PUT", "granted-", times=2, before=look),
        Fault("PUT", "granted-", refuse=(403, "AuthenticationFailed"), times=99, before=lambda: None),
    ]
    run = begin(inside, namespace, own_cluster.nodes[1].name, store, proxy.port, size=40 * MIB)
    status = run.end()
    assert status == 5, (run.events[-5:], run.stderr)
    assert len(looked) == 2
    assert looked[0] >= 2
    events = inside.api.kubectl("get", "events", "-A", "-o", "json")
    said = run.stderr + json.dumps(run.events) + events
    shown.extend("said" for s in secrets() if s in said)
    search(run.folder)
    for place in ("control-plane/logs", "node-1/logs", "node-1/var-log", "node-1/var-lib-retina-run"):
        assert (own_cluster.directory / place).exists(), place
        search(own_cluster.directory / place)
    assert shown == []
    assert os.environ[store.variable]
    assert len(list((run.directory / "archives").iterdir())) == 1  # what couldn't be stored is here
