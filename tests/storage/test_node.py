"""A node on a bad network, and what its grant is good for: real uploads through a proxy that breaks them where told."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from retina_runner.delivery import Delivery, Place
from retina_runner.uploads import Grant, Parcel, Target
from tests.lab import eventually
from tests.storage.faults import Fault, FaultyProxy
from tests.storage.servers import Azurite, Swift
from tests.storage.stores import MIB, AzureStore, Node, S3Store, Store, target_of
from tests.storage.test_conformance import sha256

pytestmark = pytest.mark.storage

BLOCKS_5 = 36 * MIB
"""An archive of five blocks, the last of them half."""


@pytest.fixture
def proxy(remote: Store) -> Iterator[FaultyProxy]:
    upstream = urlsplit(str(remote.options().get("container_url") or remote.options()["endpoint_url"])).port
    assert upstream
    with FaultyProxy(upstream) as made:
        yield made


def put_of_blocks(store: Store) -> dict[str, str]:
    return {"method": "PUT", "containing": "comp=block&" if store.kind == "azure_blob" else "partNumber="}


def deliver(target: Target, node: Node) -> list[dict[str, Any]]:
    delivery = Delivery([Place("any", {}, target)], node.parcel.run)
    return list(delivery.from_node("web1", "web1", False, str(node.directory), node.archive, node.call))


def assert_stored(store: Store, node: Node, events: list[dict[str, Any]]) -> None:
    assert [e.get("state") for e in events] == ["stored"], events
    (key,) = store.names()
    assert sha256(store.content(key)) == node.parcel.sha256


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"refuse": (500, "InternalError")}, id="500"),
        pytest.param({"refuse": (503, "ServerBusy"), "times": 3}, id="503 three times"),
        pytest.param({"refuse": (429, "SlowDown")}, id="429"),
        pytest.param({"refuse": (400, "RequestTimeout")}, id="400 RequestTimeout"),
        pytest.param({"refuse": (409, "OperationAborted")}, id="409 OperationAborted"),
        pytest.param({"cut_after": 0}, id="broken before the body"),
        pytest.param({"cut_after": 1 * MIB}, id="broken in the body"),
        pytest.param({"swallow": True}, id="answer lost"),
        pytest.param({"shorten": True}, id="answer cut short"),
        pytest.param({"pause_s": 1.5}, id="slow"),
    ],
)
@pytest.mark.parametrize("size", [pytest.param(2 * MIB, id="one request"), pytest.param(BLOCKS_5, id="blocks")])
def test_a_fault_in_a_body(remote: Store, proxy: FaultyProxy, tmp_path: Path, size: int, fault: dict[str, Any]) -> None:
    node = Node(tmp_path, size)
    which = put_of_blocks(remote) if size == BLOCKS_5 else {"method": "PUT"}
    proxy.faults.append(Fault(**{**which, **fault}))
    assert_stored(remote, node, deliver(target_of(remote, port=proxy.port, via="node"), node))
    assert proxy.faults[0].spent == fault.get("times", 1)


@pytest.mark.parametrize("how", ["swallow", "shorten", "refuse"])
def test_a_fault_when_blocks_are_committed(azure_store: AzureStore, tmp_path: Path, how: str) -> None:
    """The store has it, and the node can't know: it asks again, hears that the name is taken, and the runner compares."""
    node = Node(tmp_path, BLOCKS_5)
    fault: dict[str, Any] = {"refuse": (503, "ServerBusy")} if how == "refuse" else {how: True}
    with FaultyProxy(azure_store.server.port, Fault("PUT", "comp=blocklist", **fault)) as proxy:
        assert_stored(azure_store, node, deliver(target_of(azure_store, port=proxy.port, via="node"), node))
        assert proxy.count("comp=block&") == 5


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AuthorizationFailure"), (404, "NotThere"), (409, "Odd"), (400, "Bad"), (501, "NotImplemented")],
)
def test_a_refusal_that_stays(remote: Store, proxy: FaultyProxy, tmp_path: Path, status: int, code: str) -> None:
    node = Node(tmp_path, 2 * MIB)
    proxy.faults.append(Fault("PUT", refuse=(status, code), times=99))
    (event,) = deliver(target_of(remote, port=proxy.port, via="node"), node)
    assert event["event"] == "warning"
    assert code in event["why"]
    assert proxy.count("PUT") <= 3  # a fresh grant or two for a 403; nothing is hammered
    assert node.path.exists()
    assert remote.names() == []


def test_a_grant_that_expires_on_the_way(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """The third block is refused: a fresh grant is asked for, and the first two are not sent again."""
    node = Node(tmp_path, BLOCKS_5)
    grants: list[Grant] = []
    target = Counting(target_of(remote, port=proxy.port, via="node"), grants)
    answered = 0

    def third() -> None:
        nonlocal answered
        answered += 1

    blocks = put_of_blocks(remote)
    proxy.faults += [
        Fault(**blocks, times=2, before=third),  # type: ignore[arg-type]
        Fault(**blocks, refuse=(403, "AuthenticationFailed")),  # type: ignore[arg-type]
    ]
    assert_stored(remote, node, deliver(target, node))
    assert answered == 2
    assert len(grants) == 2
    assert proxy.count(blocks["containing"]) == 5 + 1


def test_a_grant_that_the_store_lets_expire(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """The first lives for so long as two blocks take here: it is the store that says so, by its own clock."""
    node = Node(tmp_path, BLOCKS_5)
    grants: list[Grant] = []
    target = Counting(target_of(remote, port=proxy.port, via="node"), grants, first_life_s=20.0)
    blocks = put_of_blocks(remote)
    proxy.faults += [
        Fault(**blocks, times=2, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, pause_s=25.0),  # type: ignore[arg-type]
    ]
    assert_stored(remote, node, deliver(target, node))
    assert len(grants) == 2
    refused = [r for r in proxy.seen if blocks["containing"] in r and r not in proxy.answered]
    assert len(refused) == 1
    assert len([r for r in proxy.answered if blocks["containing"] in r]) == 5


class Counting:
    """A target that remembers the grants it made; the first may be a short one."""

    def __init__(self, target: Target, grants: list[Grant], first_life_s: float | None = None):
        self._target, self._grants, self._first_life_s = target, grants, first_life_s

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        short = self._first_life_s if not self._grants else None
        made = self._target.grant(parcel, life_s if short is None else short)
        assert made is not None
        self._grants.append(made)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def test_an_expired_grant_is_refused_by_the_store_itself(remote: Store, tmp_path: Path) -> None:
    node = Node(tmp_path, 4096)
    target = target_of(remote, via="node")
    if remote.kind == "s3":
        old = target.grant(node.parcel, 1.0)  # S3 knows no life of less than a second
        assert old is not None
        url = old.document["url"]
        wrong = {**old.document["headers"], "Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}  # refused with 400 until then
        eventually(lambda: _status("PUT", url, wrong) == 403, "it expires", 60)
    else:
        old = target.grant(node.parcel, -30.0)
    assert old is not None
    answer = ask(node, old)
    assert not answer["ok"]
    assert answer["state"] == "expired", answer
    fresh = target.grant(node.parcel, 600.0)
    assert fresh is not None
    assert ask(node, fresh)["state"] == "stored"


def ask(node: Node, grant: Grant, deadline_s: float = 60) -> dict[str, Any]:
    done = subprocess.run(
        node.argv(deadline_s), input=json.dumps(grant.document).encode(), capture_output=True, timeout=120
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _status(method: str, url: str, headers: dict[str, str], body: bytes = b"x") -> int:
    request = urllib.request.Request(url, data=None if method == "GET" else body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_killed_upload_is_resumed(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """SIGKILL while the fourth block is on its way; another process, with another grant, sends the fourth and fifth."""
    node = Node(tmp_path, BLOCKS_5)
    target = target_of(remote, port=proxy.port, via="node")
    blocks = put_of_blocks(remote)
    arrived, gone_on = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        gone_on.wait(60)

    proxy.faults += [
        Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
        Fault(**blocks, cut_after=0, before=hold),  # type: ignore[arg-type]
    ]
    first = target.grant(node.parcel, 600.0)
    assert first is not None
    process = subprocess.Popen(node.argv(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(json.dumps(first.document).encode())
    process.stdin.close()
    assert arrived.wait(60)
    process.kill()
    process.wait()
    gone_on.set()
    before = proxy.count(blocks["containing"])
    assert_stored(remote, node, deliver(target, node))
    assert before == 4
    assert proxy.count(blocks["containing"]) - before == 2


@pytest.mark.parametrize("kind", ["azure_blob", "s3"])
def test_a_server_killed_in_the_middle(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while the fourth block is on its way, and a new start: the upload ends well, not from zero unless the store
    has forgotten what it confirmed (Azurite does so at times), and then only once."""
    server = Azurite(tmp_path / "server") if kind == "azure_blob" else Swift(tmp_path / "server")
    server.start()
    try:
        store: Store = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        node = Node(tmp_path, BLOCKS_5)
        blocks = put_of_blocks(store)
        server.stop()  # Azurite writes its database now and then, and when it ends: the container shall be in it
        server.start()

        def crash() -> None:
            server.kill()
            server.start()

        with FaultyProxy(
            server.port,
            Fault(**blocks, times=3, before=lambda: None),  # type: ignore[arg-type]
            Fault(**blocks, cut_after=MIB, before=crash),  # type: ignore[arg-type]
        ) as proxy:
            assert_stored(store, node, deliver(target_of(store, port=proxy.port, via="node"), node))
            assert proxy.count(blocks["containing"]) in (6, 6 + 5)
    finally:
        server.kill()


def test_blocks_that_the_store_forgot_are_sent_again_once(azure_store: AzureStore, tmp_path: Path) -> None:
    node = Node(tmp_path, BLOCKS_5)
    with FaultyProxy(
        azure_store.server.port, Fault("PUT", "comp=blocklist", refuse=(400, "InvalidBlockList"))
    ) as proxy:
        assert_stored(azure_store, node, deliver(target_of(azure_store, port=proxy.port, via="node"), node))
        assert proxy.count("comp=block&") == 10
    other = Node(tmp_path / "other", BLOCKS_5)
    with FaultyProxy(
        azure_store.server.port, Fault("PUT", "comp=blocklist", refuse=(400, "InvalidBlockList"), times=9)
    ) as proxy:
        (event,) = deliver(target_of(azure_store, port=proxy.port, via="node", prefix="other"), other)
        assert event["event"] == "warning"
        assert proxy.count("comp=block&") == 10


def test_parts_that_s3_forgot_are_sent_again_once(s3_store: S3Store, tmp_path: Path) -> None:
    node = Node(tmp_path, BLOCKS_5)
    with FaultyProxy(s3_store.server.port, Fault("POST", "uploadId=", refuse=(400, "InvalidPart"))) as proxy:
        assert_stored(s3_store, node, deliver(target_of(s3_store, port=proxy.port, via="node"), node))
        assert proxy.count("partNumber=") == 10
    assert s3_store.unfinished() == []


def test_an_archive_that_changed_is_not_stored(remote: Store, tmp_path: Path) -> None:
    """What lies on the node isn't what the runner was told of: nothing gets the archive's name."""
    for size in (1000, BLOCKS_5):
        node = Node(tmp_path / str(size), size)
        with open(node.path, "r+b") as file:
            file.seek(size // 2)
            file.write(b"changed!")
        (event,) = deliver(target_of(remote, via="node"), node)
        assert event["event"] == "warning", event
        assert "sha256" in event["why"]
    assert remote.names() == []


def test_a_grant_opens_nothing_else(remote: Store, tmp_path: Path) -> None:
    node = Node(tmp_path, 1000)
    remote.put("other/secret.tar.gz", b"somebody's")
    grant = target_of(remote, via="node").grant(node.parcel, 600.0)
    assert grant is not None
    url, headers = str(grant.document["url"]), dict(grant.document["headers"])
    other = url.replace(f"{node.parcel.run}/{node.path.name}", "other/secret.tar.gz")
    assert other != url
    put = {**headers, "x-ms-blob-type": "BlockBlob"}
    assert _status("PUT", other, put) == 403
    assert _status("GET", other, {}) == 403
    assert _status("GET", url, {}) == 403
    assert _status("DELETE", url, {}) == 403
    if remote.kind == "azure_blob":
        base, _, query = url.partition("?")
        container = base.removesuffix(f"/{node.parcel.run}/{node.path.name}")
        assert _status("GET", f"{container}?restype=container&comp=list&{query}", {}) == 403
    assert remote.content("other/secret.tar.gz") == b"somebody's"


def test_a_grant_shows_nowhere_on_the_node(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """While a block is on its way: not in any command line or environment, not in the agent's directory, not after a
    failure in what it says."""
    node = Node(tmp_path, BLOCKS_5)
    target = target_of(remote, port=proxy.port, via="node")
    seen: list[str] = []
    signatures: set[str] = set()

    def look() -> None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                for name in ("cmdline", "environ"):
                    try:
                        text = (folder / name).read_bytes().decode("utf-8", "replace")
                    except OSError:
                        continue
                    seen.extend(f"{folder}/{name}" for s in signatures if s in text)

    proxy.faults += [
        Fault(**put_of_blocks(remote), before=look),  # type: ignore[arg-type]
        Fault(**put_of_blocks(remote), refuse=(403, "AuthenticationFailed"), times=99),  # type: ignore[arg-type]
    ]
    grant = target.grant(node.parcel, 600.0)
    assert grant is not None
    urls = [str(grant.document.get("url", "")), *map(str, grant.document.get("parts", ()))]
    for url in urls:
        for pair in urlsplit(url).query.split("&"):
            if pair.lower().startswith(("sig=", "x-amz-signature=")):
                signatures.add(pair.partition("=")[2])
    assert signatures
    done = subprocess.run(node.argv(60), input=json.dumps(grant.document).encode(), capture_output=True, timeout=120)
    assert proxy.faults[0].spent == 1
    assert seen == []
    everything = done.stdout + done.stderr
    for path in node.directory.rglob("*"):
        if path.is_file() and path != node.path:
            everything += path.read_bytes()
    for signature in signatures:
        assert signature.encode() not in everything


def test_a_proxy_of_the_environment_is_used(remote: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    """http_proxy: requests go to it whole. This one passes them on as they are, which both stores understand."""
    node = Node(tmp_path, 3000)
    grant = target_of(remote, via="node").grant(node.parcel, 600.0)
    assert grant is not None
    import os

    done = subprocess.run(
        node.argv(60), input=json.dumps(grant.document).encode(), capture_output=True, timeout=120,
        env={**os.environ, "http_proxy": f"http://user:canary-of-a-proxy@127.0.0.1:{proxy.port}", "no_proxy": ""},
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1])["ok"], done
    assert [r.partition(" ")[2][:7] for r in proxy.seen] == ["http://"]
    assert b"canary-of-a-proxy" not in done.stdout + done.stderr
