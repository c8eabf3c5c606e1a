"""A private authority: runner and node trust what `ca_file` says, and nothing more than before without it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.uploads import NotStored
from tests.storage.servers import Azurite
from tests.storage.stores import AzureStore, Node, target_of, write_random
from tests.storage.test_conformance import by_node, sha256

pytestmark = pytest.mark.storage


class Private(Azurite):
    """Azurite behind TLS, with a certificate for 127.0.0.1 that only its own authority vouches for."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.certificate, self.private_key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=private",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(self.private_key), "-out", str(self.certificate)],
            check=True, capture_output=True,
        )  # fmt: skip

    def commands(self) -> list[list[str]]:
        return [[*super().commands()[0], "--cert", str(self.certificate), "--key", str(self.private_key)]]

    def url(self, port: int = 0) -> str:
        return super().url(port).replace("http://", "https://")

    def connection_string(self, port: int = 0) -> str:
        return super().connection_string(port).replace("Protocol=http;", "Protocol=https;")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureStore]:
    server = Private(tmp_path / "server")
    server.start()
    try:
        store = AzureStore(server, connection_verify=str(server.certificate))
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
    finally:
        server.kill()


def test_the_authority_of_ca_file_is_trusted(private: AzureStore, tmp_path: Path) -> None:
    assert isinstance(private.server, Private)
    ca_file = str(private.server.certificate)
    target = target_of(private, ca_file=ca_file)
    target.preflight(60)
    parcel = write_random(tmp_path / "a.tar.gz", 5000)
    target.store(parcel)
    node = Node(tmp_path, 40_000_000)
    (event,) = by_node(private, node, ca_file=ca_file, prefix="node")
    assert event["state"] == "stored", event
    assert sha256(private.content(f"node/{node.parcel.run}/{node.path.name}")) == node.parcel.sha256


def test_an_unknown_authority_is_not(private: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(private.server, Private)
    with pytest.raises(NotStored, match="certificate"):
        target_of(private).preflight(60)
    # A runner that trusts it by its own environment, and a node that doesn't.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(private.server.certificate))
    (event,) = by_node(private, Node(tmp_path, 5000))
    assert event["event"] == "warning"
    assert "certificate" in event["why"]
    assert private.names() == []


def test_a_ca_file_that_is_none_is_said(private: AzureStore, tmp_path: Path) -> None:
    with pytest.raises(NotStored, match="ca_file"):
        target_of(private, ca_file=str(tmp_path / "nosuch.pem")).preflight(60)
