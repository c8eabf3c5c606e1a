"""A private authority: runner and node trust what `ca_file` says, and nothing more than before without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.uploads import NotStored
from tests.storage.servers import Azurite, Swift, private_identity
from tests.storage.stores import AzureStore, Node, S3Store, target_of, write_random
from tests.storage.test_conformance import by_node, sha256

pytestmark = pytest.mark.storage


@pytest.fixture(params=["azure_blob", "s3"])
def private(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AzureStore | S3Store]:
    identity = private_identity(tmp_path / "identity")
    kind = Azurite if request.param == "azure_blob" else Swift
    server = kind(tmp_path / "server", tls=identity)
    try:
        server.start()
        store = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
    finally:
        server.kill()


def authority_of(store: AzureStore | S3Store) -> str:
    assert store.server.tls is not None
    return str(store.server.tls.authority)


def test_the_authority_of_ca_file_is_trusted(private: AzureStore | S3Store, tmp_path: Path) -> None:
    ca_file = authority_of(private)
    target = target_of(private, ca_file=ca_file)
    target.preflight(60)
    parcel = write_random(tmp_path / "a.tar.gz", 5000)
    target.store(parcel)
    node = Node(tmp_path, 40_000_000)
    (event,) = by_node(private, node, ca_file=ca_file, prefix="node")
    assert event["state"] == "stored", event
    assert sha256(private.content(f"node/{node.parcel.run}/{node.path.name}")) == node.parcel.sha256


def test_an_unknown_authority_is_not(
    private: AzureStore | S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotStored, match=r"(?i)certificate"):
        target_of(private).preflight(60)
    # A runner that trusts it by its own environment, and a node that doesn't.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority_of(private))
    monkeypatch.setenv("AWS_CA_BUNDLE", authority_of(private))
    (event,) = by_node(private, Node(tmp_path, 5000))
    assert event["event"] == "warning"
    assert "certificate" in event["why"]
    assert private.names() == []


def test_a_ca_file_that_is_none_is_said(private: AzureStore | S3Store, tmp_path: Path) -> None:
    with pytest.raises(NotStored, match="ca_file"):
        target_of(private, ca_file=str(tmp_path / "nosuch.pem")).preflight(60)
