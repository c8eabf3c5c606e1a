"""Nodes behind real sshd's store their archives themselves, at real stores on another address of their network.

Runner, stores and nodes each have an address of the fleet's bridge; a proxy in front of the store counts, and breaks what
a test says. So what is shown here is the whole way: runbook, grant over SSH, agent, store, and the run's own record.
"""

from __future__ import annotations

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

from retina_runner.schema import violations
from retina_runner.units import format_size
from retina_runner.uploads import BLOCK_BYTES, SINGLE_MOST_BYTES
from tests.fleet.fleet import Fleet
from tests.fleet.test_ssh import retina_run
from tests.lab import Archive, Run, eventually, sh, within
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.servers import Azurite, Server, Swift, Tinyproxy, private_identity
from tests.storage.stores import MIB, AzureStore, S3Store

pytestmark = [pytest.mark.storage, pytest.mark.root]

STORES = "10.94.100.1"
"""Where the stores are: nodes can be kept from it without being kept from the runner."""
PROXY = "10.94.100.2"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(2) as made:
        for address in (STORES, PROXY):
            sh("ip", "-n", made.netns, "addr", "add", f"{address}/16", "dev", "br0")
        for number in made.every_node():
            made.run(number, "mount", "-o", "remount,size=2g", "/var/tmp")
        with within(made.netns):
            yield made


@pytest.fixture(scope="module", params=["azure_blob", "s3"])
def server(request: pytest.FixtureRequest, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kind = Azurite if request.param == "azure_blob" else Swift
    made = kind(tmp_path_factory.mktemp("server"), STORES)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch, _unharmed: None) -> AzureStore | S3Store:
    made = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)  # type: ignore[arg-type]
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def proxy(store: AzureStore | S3Store) -> Iterator[FaultyProxy]:
    with FaultyProxy(store.server.port, host=STORES) as made:
        yield made


class Stored(Run):
    wait_s = 150.0


def begin(
    fleet: Fleet, folder: Path, size: int, store: AzureStore | S3Store, port: int, nodes: list[int], **more: Any
) -> Run:
    """A run whose archives are about `size`, of bytes that don't compress, stored by way of `port`."""
    keep = more.pop("keep", "always")
    runbook = {
        "name": "nightly", "duration": "1s", "compression": "none", "keep": keep,
        "limits": {"disk_free_percent": 0, "disk_free_bytes": "10MB", "node_bytes": "2GB"},
        "captures": [{
            "nodes": {"hosts": "nodes"},
            "collect": [{"command": {
                "argv": ["head", "-c", str(size), "/dev/urandom"], "when": ["after"], "output_limit": f"{size}B", "limit": "5m",
            }}],
        }],
        "upload": [{store.kind: store.options(port, **{"via": "node", **more})}],
    }  # fmt: skip
    inventory = fleet.inventory(folder / "hosts.yaml", nodes)
    return Stored(json.dumps(runbook), folder, "-i", str(inventory))


def blocks_of(store: AzureStore | S3Store) -> dict[str, str]:
    return {"method": "PUT", "containing": "comp=block&" if store.kind == "azure_blob" else "partNumber="}


def count_of_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def assert_stored(run: Run, store: AzureStore | S3Store, nodes: list[int], via: str = "node") -> dict[str, int]:
    """Every node's archive is at the store, whole and by itself; their sizes."""
    uploads = run.all("upload")
    assert [(e["node"], e["state"], e["via"]) for e in sorted(uploads, key=lambda e: str(e["node"]))] == [
        (f"n{n}", "stored", via) for n in nodes
    ], run.events[-8:]
    sizes = {}
    for node in run.summary()["nodes"]:
        name = Path(node["archive"]).name
        content = store.content(f"{run.directory.name}/{name}")
        assert hashlib.sha256(content).hexdigest() == node["sha256"]
        assert store.metadata(f"{run.directory.name}/{name}") == {
            "run": run.directory.name, "node": node["node"], "sha256": node["sha256"],
        }  # fmt: skip
        sizes[node["node"]] = len(content)
    return sizes


def gone(fleet: Fleet) -> None:
    eventually(lambda: not fleet.all_left(), "nothing is left on the nodes")


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1024, id="1KB"),
        pytest.param(50 * MIB, id="50MB"),
        pytest.param(600 * MIB, id="600MB", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_nodes_store_their_own(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy, size: int
) -> None:
    """Above 32 MB in blocks of 8 MiB, each sent once; what came home besides is the same."""
    nodes = [1] if size > 100 * MIB else [1, 2]
    run = begin(fleet, tmp_path, size, store, proxy.port, nodes)
    run.wait_s = 600.0
    assert run.end() == 0, (run.events[-8:], run.stderr)
    sizes = assert_stored(run, store, nodes)
    assert {a.stat().st_size for a in (run.directory / "archives").iterdir()} == set(sizes.values())
    blocks = sum(count_of_blocks(s) for s in sizes.values() if s > 32 * MIB)
    assert proxy.count(blocks_of(store)["containing"]) == blocks
    small = 1 * MIB  # manifests, run.json, the lists of blocks
    assert sum(sizes.values()) <= proxy.body_bytes <= sum(sizes.values()) + small
    gone(fleet)


def test_a_store_killed_in_the_middle(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """SIGKILL while the fourth block is on its way, and a new start: the first three aren't sent again."""
    blocks = blocks_of(store)

    def crash() -> None:
        store.server.settle(store.name, 3)
        store.server.kill()
        store.server.start()

    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, cut_after=MIB, before=crash),  # type: ignore[arg-type]
    ]
    run = begin(fleet, tmp_path, 50 * MIB, store, proxy.port, [1])
    assert run.end() == 0, (run.events[-8:], run.stderr)
    (size,) = assert_stored(run, store, [1]).values()
    assert proxy.faults[1].spent == 1
    assert proxy.count(blocks["containing"]) == count_of_blocks(size) + 1
    assert proxy.body_bytes < size + BLOCK_BYTES + MIB
    gone(fleet)


def test_a_grant_that_is_refused_on_the_way(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """As one that has expired is: the runner makes another, and the node goes on with the block that was refused."""
    blocks = blocks_of(store)
    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, refuse=(403, "AuthenticationFailed")),  # type: ignore[arg-type]
    ]
    run = begin(fleet, tmp_path, 50 * MIB, store, proxy.port, [1])
    assert run.end() == 0, (run.events[-8:], run.stderr)
    (size,) = assert_stored(run, store, [1]).values()
    assert proxy.count(blocks["containing"]) == count_of_blocks(size) + 1
    gone(fleet)


def test_a_link_that_is_cut_and_heals(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The node reaches neither store nor runner until the runner has missed it; then nothing is sent twice but one block."""
    blocks = blocks_of(store)
    on_its_way = threading.Event()
    proxy.faults += [
        Fault(**blocks, times=2, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, before=lambda: (fleet.cut(1), on_its_way.set())),  # type: ignore[arg-type, func-returns-value]
    ]
    run = begin(fleet, tmp_path, 50 * MIB, store, proxy.port, [1])
    try:
        assert on_its_way.wait(run.wait_s), run.events
        run.wait_for("lost", id="n1")
    finally:
        fleet.heal(1)
    assert run.end() == 0, (run.events[-8:], run.stderr)
    assert run.all("reattached")
    (size,) = assert_stored(run, store, [1]).values()
    assert proxy.count(blocks["containing"]) <= count_of_blocks(size) + 2
    assert proxy.body_bytes < size + 2 * BLOCK_BYTES + MIB
    gone(fleet)


def test_a_runner_killed_in_the_middle(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """Its connections go with it; `resume` has the node go on, with a grant of its own."""
    blocks = blocks_of(store)
    on_its_way, dead = threading.Event(), threading.Event()

    def hold() -> None:
        on_its_way.set()
        dead.wait(60)

    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, cut_after=0, before=hold),  # type: ignore[arg-type]
    ]
    run = begin(fleet, tmp_path, 50 * MIB, store, proxy.port, [1])
    assert on_its_way.wait(run.wait_s), run.events
    run.signal(signal.SIGKILL)
    run.process.wait()
    dead.set()
    done = retina_run(fleet, "resume", str(run.directory), "--json")
    assert done.returncode == 0, done
    run.events = [json.loads(line) for line in done.stdout.splitlines()]
    (size,) = assert_stored(run, store, [1]).values()
    assert proxy.count(blocks["containing"]) == count_of_blocks(size) + 1
    assert proxy.body_bytes < size + MIB
    gone(fleet)


def test_a_node_that_does_not_reach_the_store(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The other node stores its own; of this one it is said, and the runner stores it."""
    fleet.run(2, "ip", "route", "add", "unreachable", f"{STORES}/32")
    try:
        run = begin(fleet, tmp_path, 40 * MIB, store, proxy.port, [1, 2])
        assert run.end() == 0, (run.events[-8:], run.stderr)
    finally:
        fleet.run(2, "ip", "route", "del", "unreachable", f"{STORES}/32")
    assert {e["node"]: e["via"] for e in run.all("upload")} == {"n1": "node", "n2": "runner"}
    (warning,) = run.all("warning")
    assert warning["node"] == "n2"
    assert "the runner does" in warning["why"], warning
    assert STORES in warning["why"]
    for node in run.summary()["nodes"]:
        content = store.content(f"{run.directory.name}/{Path(node['archive']).name}")
        assert hashlib.sha256(content).hexdigest() == node["sha256"]
    gone(fleet)


def test_auto_goes_by_size_and_by_what_a_node_reaches(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The same runbook, large archives: one node stores its own, of the other the runner knows beforehand that it can't."""
    fleet.run(2, "ip", "route", "add", "unreachable", f"{STORES}/32")
    try:
        run = begin(fleet, tmp_path, 40 * MIB, store, proxy.port, [1, 2], via="auto")
        assert run.end() == 0, (run.events[-8:], run.stderr)
        checked = retina_run(fleet, "--check", "-i", str(tmp_path / "hosts.yaml"), str(tmp_path / "runbook.yaml"))
    finally:
        fleet.run(2, "ip", "route", "del", "unreachable", f"{STORES}/32")
    assert run.all("warning") == []
    found = {u["node"]: (u["via"], u["chosen"]) for u in run.all("upload")}
    assert found["n1"][0] == "node"
    assert "large" in found["n1"][1]
    assert found["n2"][0] == "runner"
    assert "doesn't get through" in found["n2"][1]
    assert STORES in found["n2"][1]
    assert {n["node"]: (u["via"], u["chosen"]) for n in run.summary()["nodes"] for u in n["uploads"]} == found
    assert {e["node"]: [s["ok"] for s in e["stores"]] for e in run.all("node-check")} == {"n1": [True], "n2": [False]}
    assert not [v for e in run.events for v in violations("event", e)]
    assert not violations("run", run.summary())
    assert checked.returncode == 0, checked
    assert f"by its node above {format_size(SINGLE_MOST_BYTES)} where that reaches it" in checked.stdout
    assert checked.stdout.count("(the runner will store the archive)") == 1
    gone(fleet)


def test_auto_lets_the_runner_store_what_is_small(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    run = begin(fleet, tmp_path, 1024, store, proxy.port, [1, 2], via="auto")
    assert run.end() == 0, (run.events[-8:], run.stderr)
    assert_stored(run, store, [1, 2], via="runner")
    assert all("is small" in u["chosen"] for u in run.all("upload"))
    gone(fleet)


@pytest.fixture
def off_by_an_hour(fleet: Fleet, _unharmed: None) -> Iterator[int]:
    fleet.set_clock(2, 3600)
    yield 2
    fleet.set_clock(2, 0)


def test_a_node_whose_clock_is_wrong(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy, off_by_an_hour: int
) -> None:
    """Grants are signed, and expire, by the clocks of runner and store."""
    run = begin(fleet, tmp_path, 1024, store, proxy.port, [1, off_by_an_hour])
    assert run.end() == 0, (run.events[-8:], run.stderr)
    assert_stored(run, store, [1, off_by_an_hour])
    gone(fleet)


def test_a_store_behind_a_proxy(fleet: Fleet, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind TLS, with nothing of it in any node's environment: the node gets proxy and authority with its grant. Another
    node, which mustn't go to the proxy either, leaves it to the runner."""
    private = type(server)(tmp_path / "server", STORES, private_identity(tmp_path / "identity", STORES))
    between = Tinyproxy(tmp_path / "proxy", [private.port], PROXY)
    try:
        private.start()
        between.start()
        store = AzureStore(private) if isinstance(private, Azurite) else S3Store(private)  # type: ignore[arg-type]
        monkeypatch.setenv(store.variable, store.environment[store.variable])
        monkeypatch.setenv("RR_TEST_PROXY", between.url())
        for number, where in ((1, STORES), (2, STORES), (2, PROXY)):
            fleet.run(number, "ip", "route", "add", "unreachable", f"{where}/32")
        folder = tmp_path / "run"
        folder.mkdir()
        assert private.tls is not None
        run = begin(
            fleet,
            folder,
            40 * MIB,
            store,
            0,
            [1, 2],
            via="auto",
            proxy="env:RR_TEST_PROXY",
            ca_file=str(private.tls.authority),
        )
        assert run.end() == 0, (run.events[-8:], run.stderr)
        assert {e["node"]: e["via"] for e in run.all("upload")} == {"n1": "node", "n2": "runner"}
        (chosen,) = (e["chosen"] for e in run.all("upload") if e["node"] == "n2")
        assert f"the proxy {PROXY}:{between.port}" in chosen
        assert between.passed(private) >= 2
        for node in run.summary()["nodes"]:
            content = store.content(f"{run.directory.name}/{Path(node['archive']).name}")
            assert hashlib.sha256(content).hexdigest() == node["sha256"]
        said = (run.stderr + json.dumps(run.events)).encode() + b"".join(
            path.read_bytes() for path in folder.rglob("*") if path.is_file()
        )
        assert between.password.encode() not in said
        gone(fleet)
    finally:
        for number, where in ((1, STORES), (2, STORES), (2, PROXY)):
            fleet.run(number, "ip", "route", "del", "unreachable", f"{where}/32", check=False)
        between.kill()
        private.kill()


def beside(store: AzureStore | S3Store, run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """The archives' keys, and the manifests that lie beside them."""
    names = [n for n in store.names() if n.startswith(run.directory.name)]
    archives = [n for n in names if n.endswith(".tar.gz")]
    return archives, [json.loads(store.content(n.removesuffix("tar.gz") + "manifest.json")) for n in archives]


def test_archives_that_never_come_here_have_their_manifest_beside_them(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    run = begin(fleet, tmp_path, 40 * MIB, store, proxy.port, [1, 2], keep="never")
    assert run.end() == 0, (run.events[-8:], run.stderr)
    assert list((run.directory / "archives").iterdir()) == []
    assert run.all("fetched") == []
    archives, manifests = beside(store, run)
    for key, manifest in zip(archives, manifests, strict=True):
        path = tmp_path / key.rpartition("/")[2]
        path.write_bytes(store.content(key))
        assert Archive(path).manifest == manifest
    assert {m["node"] for m in manifests} == {"n1", "n2"}
    told = json.loads(store.content(f"{run.directory.name}/run.json"))
    assert (told["exit_code"], [n["state"] for n in told["nodes"]]) == (0, ["collected", "collected"])
    gone(fleet)


def test_a_manifest_that_can_not_be_put_beside_is_made_up_for(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """The archive comes home after all, so that `retina-run upload` has what it takes."""
    proxy.faults.append(Fault("PUT", ".manifest.json", refuse=(403, "AuthorizationFailure"), times=99))
    run = begin(fleet, tmp_path, 40 * MIB, store, proxy.port, [1], keep="never")
    assert run.end() == 5, (run.events[-8:], run.stderr)
    assert len(list((run.directory / "archives").iterdir())) == 1
    proxy.faults.clear()
    done = retina_run(fleet, "upload", str(run.directory))
    assert done.returncode == 0, done
    (_,), (manifest,) = beside(store, run)
    assert manifest["node"] == "n1"
    assert json.loads(store.content(f"{run.directory.name}/run.json"))["exit_code"] == 0
    gone(fleet)


def test_no_secret_shows_on_nodes_or_runner(
    fleet: Fleet, tmp_path: Path, store: AzureStore | S3Store, proxy: FaultyProxy
) -> None:
    """While blocks are on their way, and after one failed for good: in no command line or environment of any process but the
    variables that tests give, in no file of the node's, of the run or of its archives, and in nothing that was said."""
    signatures: set[str] = set()
    shown: list[str] = []
    looked: list[str] = []
    allowed = ("RR_TEST_", "AZURITE_ACCOUNTS=")

    def look() -> None:
        for request in list(proxy.seen):
            for pair in request.partition("?")[2].split("&"):
                name, _, value = pair.partition("=")
                if name in ("sig", "X-Amz-Signature"):
                    signatures.update((value, unquote(value)))
        secrets = {store.secret, *signatures}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                line = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
                variables = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            given = "\0".join(v for v in variables if not v.startswith(allowed))
            shown.extend(f"{folder}: {line[:80]}" for s in secrets if s in line or s in given)
        for secret in secrets:
            # The archive itself is random bytes; what else the agent writes is looked through, its log and memory among it.
            files = fleet.run(1, "grep", "-rlaF", "--exclude-dir=archive", "--exclude-dir=out", "--exclude-dir=raw", "-e", secret,
                              "/var/tmp", "/tmp", "/run", "/var/log", check=False)  # fmt: skip
            shown.extend(files.split())
        looked.append("once")

    proxy.faults += [
        Fault("PUT", "nightly-n1", times=2, before=look),
        Fault("PUT", "nightly-", refuse=(403, "AuthenticationFailed"), times=99),
    ]
    run = begin(fleet, tmp_path, 40 * MIB, store, proxy.port, [1])
    status = run.end()
    look()
    assert status == 5, (run.events[-5:], run.stderr)
    assert len(looked) == 3
    assert len(signatures) >= 2
    assert shown == []
    planned = retina_run(fleet, "plan", "-i", str(tmp_path / "hosts.yaml"), str(tmp_path / "runbook.yaml"))
    assert planned.returncode == 0, planned
    said = (run.stderr + json.dumps(run.events) + planned.stdout + planned.stderr).encode()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            said += content + (gzip.decompress(content) if path.name.endswith(".gz") else b"")
    for secret in (store.secret, *signatures):
        assert secret.encode() not in said
    assert os.environ[store.variable]
    gone(fleet)
