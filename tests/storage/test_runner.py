"""The runner's own way on a bad network: what breaks is sent again, what stays broken is told, a killed runner's work is gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.uploads import BLOCK_BYTES, NotStored
from tests.lab import REPOSITORY, RETINA_RUN, Run, eventually, sh
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.servers import Azurite, Swift
from tests.storage.stores import MIB, AzureStore, Node, S3Store, Store, target_of, write_random
from tests.storage.test_conformance import by_node, sha256
from tests.storage.test_node import BLOCKS_5, put_of_blocks
from tests.storage.test_runs import retina_run, runbook

pytestmark = pytest.mark.storage


@pytest.fixture
def proxy(remote: Store) -> Iterator[FaultyProxy]:
    with FaultyProxy(remote.server.port) as made:  # type: ignore[attr-defined]
        yield made


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"refuse": (500, "InternalError")}, id="500"),
        pytest.param({"refuse": (503, "ServerBusy"), "times": 3}, id="503 three times"),
        pytest.param({"cut_after": 1 * MIB}, id="broken in the body"),
        pytest.param({"swallow": True}, id="answer lost"),
        pytest.param({"shorten": True}, id="answer cut short"),
        pytest.param({"pause_s": 1.5}, id="slow"),
    ],
)
@pytest.mark.parametrize("size", [pytest.param(2 * MIB, id="one request"), pytest.param(BLOCKS_5, id="blocks")])
def test_a_fault_in_a_body(remote: Store, proxy: FaultyProxy, tmp_path: Path, size: int, fault: dict[str, Any]) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", size)
    which = put_of_blocks(remote) if size == BLOCKS_5 else {"method": "PUT"}
    proxy.faults.append(Fault(**{**which, **fault}))
    target_of(remote, port=proxy.port).store(parcel)
    (key,) = remote.names()
    assert sha256(remote.content(key)) == parcel.sha256
    assert proxy.faults[0].spent == fault.get("times", 1)


@pytest.mark.parametrize("how", ["swallow", "refuse"])
def test_a_fault_when_blocks_become_the_archive(remote: Store, proxy: FaultyProxy, tmp_path: Path, how: str) -> None:
    """Nothing is sent again for it, whether the store had done it or not."""
    parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
    which = ("PUT", "comp=blocklist") if remote.kind == "azure_blob" else ("POST", "uploadId=")
    fault: dict[str, Any] = {"refuse": (503, "ServerBusy")} if how == "refuse" else {how: True}
    proxy.faults.append(Fault(*which, **fault))
    target_of(remote, port=proxy.port).store(parcel)
    (key,) = remote.names()
    assert sha256(remote.content(key)) == parcel.sha256
    assert proxy.count(put_of_blocks(remote)["containing"]) == 5
    assert left_behind(remote) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AuthorizationFailure"),
        (404, "NotThere"),
        (409, "Odd"),
        (400, "Bad"),
        (500, "InternalError"),
        (503, "SlowDown"),
    ],
)
def test_a_refusal_that_stays(remote: Store, proxy: FaultyProxy, tmp_path: Path, status: int, code: str) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", 2 * MIB)
    proxy.faults.append(Fault("PUT", refuse=(status, code), times=99))
    with pytest.raises(NotStored) as caught:
        target_of(remote, port=proxy.port).store(parcel)
    assert remote.secret not in str(caught.value)
    assert proxy.count("PUT") <= (1 if status < 500 else 7)
    assert parcel.path.exists()
    assert remote.names() == []


def left_behind(store: Store) -> list[str]:
    """Unfinished uploads at the store."""
    if isinstance(store, S3Store):
        return store.unfinished()
    assert isinstance(store, AzureStore)
    return sorted({b.name for b in store._container.list_blobs(include=["uncommittedblobs"])} - set(store.names()))


STORE = """
import json, sys
from pathlib import Path
from retina_runner.uploads import Parcel
from retina_runner.uploads.opening import open_target
kind, options, parcel = json.loads(sys.argv[1])
open_target(kind, options).store(Parcel(parcel[0], parcel[1], Path(parcel[2]), parcel[3], parcel[4]))
"""


def taken(proxy: FaultyProxy, blocks: dict[str, str]) -> int:
    """How many blocks the store has confirmed."""
    return sum(blocks["containing"] in request for request in list(proxy.answered))


def kill_in_the_fourth_block(store: Store, proxy: FaultyProxy, begin: Any) -> int:
    """Start it, and SIGKILL it while blocks are on their way that the store never gets; how many it did get."""
    arrived, dead = threading.Event(), threading.Event()

    def hold() -> None:
        # Two are on their way at a time: when the fourth comes the third may not have arrived yet, and would die as well.
        eventually(lambda: taken(proxy, blocks) - before >= 3, "the store has three blocks")
        arrived.set()
        dead.wait(60)

    blocks = put_of_blocks(store)
    before = taken(proxy, blocks)
    done = Fault(**blocks, times=3, before=lambda: None)  # type: ignore[arg-type]
    proxy.faults += [done, Fault(**blocks, times=9, cut_after=0, before=hold)]  # type: ignore[arg-type]
    process: subprocess.Popen[Any] = begin()
    try:
        assert arrived.wait(90)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        dead.set()
    proxy.faults.clear()
    return done.spent


def test_a_killed_runner_s_blocks_are_not_sent_again(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Another process asks the store what it has; nothing unfinished is left there in the end."""
    import json

    parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
    told = [
        remote.kind,
        remote.options(proxy.port),
        [parcel.run, parcel.node, str(parcel.path), parcel.sha256, parcel.size_bytes],
    ]
    got = kill_in_the_fourth_block(
        remote, proxy, lambda: subprocess.Popen([sys.executable, "-c", STORE, json.dumps(told)], cwd=REPOSITORY)
    )
    assert got == 3
    # By what the store has taken: of the dead runner's last request the proxy may hear even now.
    before = taken(proxy, put_of_blocks(remote))
    target_of(remote, port=proxy.port).store(parcel)
    assert taken(proxy, put_of_blocks(remote)) - before == 2
    (key,) = remote.names()
    assert sha256(remote.content(key)) == parcel.sha256
    assert left_behind(remote) == []


def test_blocks_of_other_content_are_sent_again(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """What is left of an upload is only good for the same bytes."""
    parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
    with open(parcel.path, "r+b") as file:
        other = file.read(BLOCK_BYTES)
        file.seek(0)
        file.write(b"other" + other[5:])
    proxy.faults.append(Fault("PUT" if remote.kind == "azure_blob" else "POST",
                              "comp=blocklist" if remote.kind == "azure_blob" else "uploadId=", refuse=(403, "No"), times=99))  # fmt: skip
    with pytest.raises(NotStored):
        target_of(remote, port=proxy.port).store(parcel)
    proxy.faults.clear()
    with open(parcel.path, "r+b") as file:
        file.write(other[:5])
    before = proxy.count(put_of_blocks(remote)["containing"])
    target_of(remote, port=proxy.port).store(parcel)
    assert proxy.count(put_of_blocks(remote)["containing"]) - before == 1
    (key,) = remote.names()
    assert sha256(remote.content(key)) == parcel.sha256
    assert left_behind(remote) == []


def test_the_runner_goes_on_where_a_node_gave_up(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    node = Node(tmp_path, BLOCKS_5)
    blocks = put_of_blocks(remote)
    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, times=9, refuse=(403, "AuthenticationFailed")),  # type: ignore[arg-type]
    ]
    (event,) = by_node(remote, node, port=proxy.port)
    assert event["event"] == "warning"
    proxy.faults.clear()
    before = proxy.count(blocks["containing"])
    target_of(remote, port=proxy.port).store(node.parcel)
    assert proxy.count(blocks["containing"]) - before == 2
    (key,) = remote.names()
    assert sha256(remote.content(key)) == node.parcel.sha256
    assert left_behind(remote) == []


def test_blocks_that_the_store_forgot_are_sent_again_once(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
    azure = remote.kind == "azure_blob"
    which = ("PUT", "comp=blocklist") if azure else ("POST", "uploadId=")
    proxy.faults.append(Fault(*which, refuse=(400, "InvalidBlockList" if azure else "InvalidPart")))
    target_of(remote, port=proxy.port).store(parcel)
    assert proxy.count(put_of_blocks(remote)["containing"]) == 10
    (key,) = remote.names()
    assert sha256(remote.content(key)) == parcel.sha256
    assert left_behind(remote) == []


def test_a_write_only_sas_begins_anew(azure_store: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not ask which blocks are there; whatever is left of a first try is in nobody's way."""
    parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
    with FaultyProxy(azure_store.server.port, Fault("PUT", "comp=blocklist", refuse=(403, "No"), times=99)) as proxy:
        options = {**azure_store.options(proxy.port)}
        monkeypatch.setenv(azure_store.variable, azure_store.sas("cw"))
        from retina_runner.uploads.opening import open_target

        target = open_target("azure_blob", options)
        assert target is not None
        with pytest.raises(NotStored):
            target.store(parcel)
        proxy.faults.clear()
        target.store(parcel)
        assert proxy.count("comp=block&") == 10
    (key,) = azure_store.names()
    assert sha256(azure_store.content(key)) == parcel.sha256


@pytest.mark.root
def test_a_killed_upload_command_is_gone_on_with(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """`retina-run upload` dies by SIGKILL, and is called again."""
    text = runbook((remote.kind, remote.options(proxy.port, via="runner")), size=BLOCKS_5)
    proxy.faults.append(Fault("PUT", "nightly-", refuse=(403, "AuthorizationFailure"), times=99))
    run = Run(text, tmp_path)
    assert run.end() == 5, (run.events[-5:], run.stderr)
    proxy.faults.clear()
    got = kill_in_the_fourth_block(
        remote, proxy,
        lambda: subprocess.Popen([*RETINA_RUN, "upload", str(run.directory)], cwd=REPOSITORY, stdout=subprocess.DEVNULL),
    )  # fmt: skip
    blocks = put_of_blocks(remote)
    before = taken(proxy, blocks)
    done = retina_run("upload", str(run.directory), folder=tmp_path)
    assert done.returncode == 0, done
    size = run.archive().path.stat().st_size
    assert taken(proxy, blocks) - before == -(-size // BLOCK_BYTES) - got
    assert remote.content(f"{run.directory.name}/{run.archive().path.name}") == run.archive().path.read_bytes()
    assert left_behind(remote) == []


@pytest.mark.parametrize("kind", ["azure_blob", "s3"])
def test_a_server_killed_in_the_middle(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while the fourth block is on its way, and a new start: the store takes each block once. Azurite is given the
    time to write its databases, without which it forgets what it has confirmed."""
    server = Azurite(tmp_path / "server") if kind == "azure_blob" else Swift(tmp_path / "server")
    server.start()
    try:
        store: Store = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        parcel = write_random(tmp_path / "a.tar.gz", BLOCKS_5)
        server.stop()
        server.start()

        def crash() -> None:
            # Two are on their way at a time: while this one is held, all others are confirmed.
            eventually(lambda: taken(proxy, blocks) == 4, "the store has the four others")
            server.settle(store.name, 4)
            server.kill()
            server.start()

        blocks = put_of_blocks(store)
        with FaultyProxy(
            server.port,
            Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
            Fault(**blocks, cut_after=MIB, before=crash),  # type: ignore[arg-type]
        ) as proxy:
            target_of(store, port=proxy.port).store(parcel)
            assert taken(proxy, blocks) == 5
        (key,) = store.names()
        assert sha256(store.content(key)) == parcel.sha256
        assert left_behind(store) == []
    finally:
        server.kill()


@pytest.fixture
def skewed_clock(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A library that tells whoever loads it a time that is wrong by so much."""
    source = REPOSITORY / "tests/fleet/skewed_clock.c"
    made, clock = tmp_path / "clock.so", tmp_path / "clock"
    clock.write_text(f"{request.param} 0 0")
    sh("gcc", "-shared", "-fPIC", "-O1", f'-DCLOCK_FILE="{clock}"', "-o", str(made), str(source), "-ldl", "-lm")
    return str(made)


@pytest.mark.root
@pytest.mark.parametrize("skewed_clock", [-3600, 3600], indirect=True)
def test_a_runner_whose_clock_is_wrong(remote: Store, tmp_path: Path, skewed_clock: str) -> None:
    """By the stores' own clocks: signatures that are too old or of the future. It is said before any node is touched."""
    run = Run(runbook((remote.kind, remote.options())), tmp_path, env={"LD_PRELOAD": skewed_clock})
    assert run.end() == 2, run.events
    said = run.stderr
    assert "this machine's clock is" in said, said
    assert not (tmp_path / "work").exists()
    assert remote.names() == []
