"""Stores for the tests of this folder: servers that live as long as the session, a container or bucket a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.storage.servers import Azurite, Server, Swift
from tests.storage.stores import AzureStore, FolderStore, S3Store, Store

_Served = TypeVar("_Served", bound=Server)
_S = TypeVar("_S", AzureStore, S3Store)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    server = Azurite(tmp_path_factory.mktemp("azurite"))
    yield from _serving(server)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    yield from _serving(server)


def _serving(server: _Served) -> Iterator[_Served]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def azure_store(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> AzureStore:
    return _known(AzureStore(azurite), monkeypatch)


@pytest.fixture
def s3_store(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    return _known(S3Store(swift), monkeypatch)


@pytest.fixture(params=["azure_blob", "s3"])
def remote(request: pytest.FixtureRequest) -> Store:
    """A store that nodes can reach."""
    found: Store = request.getfixturevalue("azure_store" if request.param == "azure_blob" else "s3_store")
    return found


@pytest.fixture(params=["directory", "azure_blob", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Any store."""
    if request.param == "directory":
        return FolderStore(tmp_path / "target")
    found: Store = request.getfixturevalue("azure_store" if request.param == "azure_blob" else "s3_store")
    return found


def _known(store: _S, monkeypatch: pytest.MonkeyPatch) -> _S:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store
