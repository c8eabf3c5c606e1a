"""HTTP proxies: a real one (tinyproxy) that wants a password, before stores behind TLS of a private authority.

Runner and node go by the environment or by the target's `proxy`; whatever goes wrong, the password shows nowhere.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.uploads import NotStored
from tests.lab import Run
from tests.storage.servers import Azurite, Server, Swift, Tinyproxy, free_port, private_identity
from tests.storage.stores import MIB, AzureStore, Node, S3Store, target_of, write_random
from tests.storage.test_conformance import by_node, sha256
from tests.storage.test_node import ask
from tests.storage.test_runs import runbook

pytestmark = [pytest.mark.storage, pytest.mark.root]

VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY")
WRONG = "wrong-canary-77aa"


@pytest.fixture(scope="module", params=["azure_blob", "s3"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("private")
    kind = Azurite if request.param == "azure_blob" else Swift
    made = kind(folder / "server", tls=private_identity(folder / "identity"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tinyproxy]:
    made = Tinyproxy(tmp_path_factory.mktemp("proxy"), [server.port])
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch, _unharmed: None) -> AzureStore | S3Store:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    made = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)  # type: ignore[arg-type]
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def trusting(store: AzureStore | S3Store, **more: Any) -> dict[str, Any]:
    assert store.server.tls is not None
    return {"ca_file": str(store.server.tls.authority), **more}


def everything_said(run: Run) -> bytes:
    """What the run printed and wrote, archives unpacked."""
    said = (run.stderr + json.dumps(run.events)).encode()
    for path in run.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            said += content + (gzip.decompress(content) if path.name.endswith(".gz") else b"")
    return said


@pytest.mark.parametrize("via", ["runner", "node"])
def test_the_proxy_of_the_environment(
    store: AzureStore | S3Store, proxy: Tinyproxy, tmp_path: Path, via: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = proxy.passed(store.server)
    text = runbook((store.kind, store.options(**trusting(store, via=via))))
    run = Run(text, tmp_path, env={"HTTPS_PROXY": proxy.url()})
    assert run.end() == 0, (run.events[-5:], run.stderr)
    assert [(e["state"], e["via"]) for e in run.all("upload")] == [("stored", via)]
    assert proxy.passed(store.server) - before >= (2 if via == "node" else 1)
    assert proxy.password.encode() not in everything_said(run)


def test_what_no_proxy_names_goes_straight(store: AzureStore | S3Store, proxy: Tinyproxy, tmp_path: Path) -> None:
    before = proxy.passed(store.server)
    text = runbook((store.kind, store.options(**trusting(store, via="node"))))
    run = Run(text, tmp_path, env={"HTTPS_PROXY": proxy.url(), "NO_PROXY": "localhost,127.0.0.1"})
    assert run.end() == 0, (run.events[-5:], run.stderr)
    assert proxy.passed(store.server) == before


@pytest.mark.parametrize("size", [3000, 40 * MIB])
def test_the_proxy_of_the_target(
    store: AzureStore | S3Store, proxy: Tinyproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A reference to its URL; it comes before the environment, and goes to the node with the grant."""
    monkeypatch.setenv("RR_TEST_PROXY", proxy.url())
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    options = trusting(store, proxy="env:RR_TEST_PROXY")
    before = proxy.passed(store.server)
    target = target_of(store, prefix="runner", **options)
    target.preflight(60)
    target.store(write_random(tmp_path / "a.tar.gz", size))
    by_runner = proxy.passed(store.server)
    assert by_runner > before
    node = Node(tmp_path, size)
    (event,) = by_node(store, node, prefix="node", **options)
    assert event["state"] == "stored", event
    assert proxy.passed(store.server) > by_runner
    monkeypatch.delenv("HTTPS_PROXY")
    assert sha256(store.content(f"node/{node.parcel.run}/{node.path.name}")) == node.parcel.sha256


def test_no_proxy_at_all(store: AzureStore | S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    target_of(store, **trusting(store, proxy="none")).preflight(60)
    (event,) = by_node(store, Node(tmp_path, 3000), **trusting(store, proxy="none"))
    assert event["state"] == "stored", event


def test_a_proxy_that_wants_another_password(
    store: AzureStore | S3Store, proxy: Tinyproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any node is touched; by a node, at once and not after a long time of trying."""
    monkeypatch.setenv("RR_TEST_PROXY", proxy.url(WRONG))
    options = trusting(store, proxy="env:RR_TEST_PROXY")
    run = Run(runbook((store.kind, store.options(**options))), tmp_path, env={"RR_TEST_PROXY": proxy.url(WRONG)})
    assert run.end() == 2, run.events
    said = run.stderr
    assert "proxy" in said.lower() or "Unauthorized" in said, said
    assert WRONG not in said
    assert not (tmp_path / "work").exists()
    with pytest.raises(NotStored) as caught:
        target_of(store, **options).preflight(60)
    assert WRONG not in repr(caught.value)
    node = Node(tmp_path / "node", 3000)
    grant = target_of(store, **trusting(store)).grant(node.parcel, 600.0)
    assert grant is not None
    object.__setattr__(grant, "document", {**grant.document, "proxy": proxy.url(WRONG)})
    answer = ask(node, grant)
    assert (answer["state"], answer["repeats"]) == ("unreachable", 0), answer
    assert (
        f"the proxy 127.0.0.1:{proxy.port}: Tunnel connection failed: 40" in answer["why"]
    )  # 401 or 407, by the proxy
    assert WRONG not in json.dumps(answer)


def test_a_proxy_with_a_rule_against_the_store(
    store: AzureStore | S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Tinyproxy(tmp_path / "other", [free_port()])
    other.start()
    try:
        monkeypatch.setenv("RR_TEST_PROXY", other.url())
        with pytest.raises(NotStored):
            target_of(store, **trusting(store, proxy="env:RR_TEST_PROXY")).preflight(60)
        place = {
            "url": store.server.url(),
            "proxy": other.url(),
            "ca_pem": Path(trusting(store)["ca_file"]).read_text(),
        }
        node = Node(tmp_path, 10)
        (answer,) = node.call("reach", stdin=json.dumps({"places": [place]}).encode())["places"]
        assert not answer["ok"]
        assert "403" in answer["why"], answer
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://storeuser:proxy-canary-4f1d@proxy.example:3128", "not a reference to a secret"),
        ("socks5://proxy.example:1080", "not a reference to a secret"),
    ],
)
def test_a_proxy_that_no_runbook_may_name(tmp_path: Path, value: str, said: str) -> None:
    run = Run(runbook(("s3", {"bucket": "captures", "proxy": value})), tmp_path)
    assert run.end() == 2
    text = run.stderr
    assert said in text
    assert "canary" not in text


def test_a_reference_that_leads_to_no_proxy(store: AzureStore | S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RR_TEST_PROXY", "https://user:proxy-canary-4f1d@proxy.example:3128")
    for reference in ("env:RR_TEST_PROXY", "env:RR_TEST_NO_SUCH"):
        with pytest.raises(NotStored, match=r"^proxy: ") as caught:
            target_of(store, **trusting(store, proxy=reference)).preflight(60)
        assert "canary" not in str(caught.value)
