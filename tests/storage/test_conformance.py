"""Every store keeps the same promises, whichever way an archive gets there: by the runner, or by its node with a grant."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retina_runner.delivery import Delivery, Place
from retina_runner.uploads import NotStored
from tests.storage.stores import MIB, AzureStore, Node, S3Store, Store, target_of, write_random

pytestmark = pytest.mark.storage

SIZES = [
    pytest.param(1024, id="1KB"),
    pytest.param(50 * MIB + 12345, id="50MB"),
    pytest.param(600 * MIB + 1, id="600MB", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def by_node(store: Store, node: Node, **options: Any) -> list[dict[str, Any]]:
    """The events of storing a node's archive from the node."""
    target = target_of(store, via="node", **options)
    delivery = Delivery([Place(store.kind, {}, target)], node.parcel.run)
    return list(delivery.from_node("web1", "web1", False, str(node.directory), node.archive, node.call))


@pytest.mark.parametrize("size", SIZES)
def test_the_runner_stores_it_whole(store: Store, tmp_path: Path, size: int) -> None:
    parcel = write_random(tmp_path / "nightly-web1-20261125030000UTC.tar.gz", size)
    location = target_of(store, prefix="incidents").store(parcel)
    (key,) = store.names()
    assert location.endswith(key)
    assert sha256(store.content(key)) == parcel.sha256
    if store.kind != "directory":
        assert key == "incidents/nightly-20261125030000UTC/nightly-web1-20261125030000UTC.tar.gz"
        assert store.metadata(key) == {"run": parcel.run, "node": "web1", "sha256": parcel.sha256}


@pytest.mark.parametrize("size", SIZES)
def test_a_node_stores_it_whole(remote: Store, tmp_path: Path, size: int) -> None:
    node = Node(tmp_path, size)
    (event,) = by_node(remote, node, prefix="incidents")
    assert (event["state"], event["via"]) == ("stored", "node"), event
    (key,) = remote.names()
    assert key == "incidents/nightly-20261125030000UTC/nightly-web1-20261125030000UTC.tar.gz"
    assert event["location"].endswith(key)
    assert sha256(remote.content(key)) == node.parcel.sha256
    assert remote.metadata(key) == {"run": node.parcel.run, "node": "web1", "sha256": node.parcel.sha256}


def test_the_key_is_a_template(remote: Store, tmp_path: Path) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", 10)
    target_of(remote, key="{node}/{run}/x-{archive}", prefix="unused").store(parcel)
    assert remote.names() == [f"web1/{parcel.run}/x-a.tar.gz"]


def test_storing_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", 5000)
    assert target_of(store).store(parcel) == target_of(store).store(parcel)
    assert len(store.names()) == 1


def test_a_node_storing_again_changes_nothing(remote: Store, tmp_path: Path) -> None:
    node = Node(tmp_path, 5000)
    first, again = by_node(remote, node), by_node(remote, node)
    assert [e["state"] for e in first + again] == ["stored", "stored"]
    assert len(remote.names()) == 1


@pytest.mark.parametrize("size", [5000, 33 * MIB])
def test_other_content_is_never_overwritten(store: Store, tmp_path: Path, size: int) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", size)
    target_of(store).store(parcel)
    (key,) = store.names()
    changed = write_random(tmp_path / "a.tar.gz", size)
    with pytest.raises(NotStored, match="not overwritten"):
        target_of(store).store(changed)
    assert sha256(store.content(key)) == parcel.sha256


@pytest.mark.parametrize("size", [5000, 33 * MIB])
def test_a_node_never_overwrites(remote: Store, tmp_path: Path, size: int) -> None:
    node = Node(tmp_path, size)
    remote.put(f"{node.parcel.run}/{node.path.name}", b"somebody else's")
    events = by_node(remote, node)
    assert "stored" not in [e.get("state") for e in events], events
    assert remote.content(f"{node.parcel.run}/{node.path.name}") == b"somebody else's"


def test_small_files_lie_beside_it(store: Store, tmp_path: Path) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", 100)
    target = target_of(store)
    target.store(parcel)
    target.note(parcel, "manifest.json", b'{"format": 1}')
    target.note(parcel, "run.json", b"{}")
    target.note(parcel, "run.json", b'{"exit_code": 0}')  # of an upload that was finished later
    keys = store.names()
    assert len(keys) == 3
    assert [json.loads(store.content(k)) for k in keys if k.endswith("manifest.json")] == [{"format": 1}]
    assert [json.loads(store.content(k)) for k in keys if k.endswith("run.json")] == [{"exit_code": 0}]


def test_what_was_stored_can_be_read_back(store: Store, tmp_path: Path) -> None:
    parcel = write_random(tmp_path / "a.tar.gz", 9 * MIB)
    target = target_of(store)
    target.store(parcel)
    ((key, size),) = target.listing("")
    assert size == parcel.size_bytes
    assert sha256(b"".join(target.read(key))) == parcel.sha256


def test_listing_is_whole(remote: Store, tmp_path: Path) -> None:
    """More than a page of each store's is not needed to see that a prefix is one."""
    target = target_of(remote)
    parcel = write_random(tmp_path / "a.tar.gz", 10)
    for number in range(12):
        target.store(replace(parcel, run=f"run-{number:02d}"))
    assert sum(1 for _ in target.listing("")) == 12
    assert [key for key, _ in target.listing("run-03/")] == ["run-03/a.tar.gz"]


def test_preflight_leaves_nothing(store: Store) -> None:
    target_of(store).preflight(60)
    assert store.names() == []
    if isinstance(store, S3Store):
        assert store.unfinished() == []


def test_what_is_not_there_is_said(remote: Store, tmp_path: Path) -> None:
    wrong = (
        {"container_url": f"{remote.options().get('container_url')}x"}
        if remote.kind == "azure_blob"
        else {"bucket": "nosuch"}
    )
    target = target_of(remote, **wrong)
    with pytest.raises(NotStored, match=r"there is no (container|bucket)"):
        target.preflight(60)
    with pytest.raises(NotStored, match=r"there is no (container|bucket)"):
        target.store(write_random(tmp_path / "a.tar.gz", 10))


def test_a_store_that_is_down_is_said(remote: Store) -> None:
    from tests.storage.servers import free_port

    with pytest.raises(NotStored) as caught:
        target_of(remote, port=free_port()).preflight(60)
    assert remote.secret not in str(caught.value)


@pytest.fixture
def wrong_secret(remote: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    (name,) = remote.environment
    wrong = "d3JvbmctY2FuYXJ5LWtleS13cm9uZy1jYW5hcnkta2V5LXdyb25nLWNhbmFyeS1rZXk="
    monkeypatch.setenv(name, remote.environment[name].replace(remote.secret, wrong))
    return wrong


def test_a_wrong_key_is_refused_and_not_shown(remote: Store, wrong_secret: str, tmp_path: Path) -> None:
    for action in (
        lambda: target_of(remote).preflight(60),
        lambda: target_of(remote).store(write_random(tmp_path / "a.tar.gz", 10)),
    ):
        with pytest.raises(NotStored, match="refused") as caught:
            action()
        assert wrong_secret not in repr(caught.value)
        assert wrong_secret not in str(caught.value)
    assert remote.names() == []


@pytest.mark.parametrize(
    ("permission", "expires_in_s", "said"),
    [("r", 3600, "may not write"), ("c", 3600, "may not write"), ("cw", -60, "expired"), ("cw", 30, "needs it for")],
)
def test_a_sas_that_will_not_do(
    azure_store: AzureStore, monkeypatch: pytest.MonkeyPatch, permission: str, expires_in_s: float, said: str
) -> None:
    sas = azure_store.sas(permission, expires_in_s)
    monkeypatch.setenv(azure_store.variable, sas)
    with pytest.raises(NotStored, match=said) as caught:
        target_of(azure_store).preflight(600)
    assert sas.rpartition("sig=")[2] not in str(caught.value)


def test_a_sas_for_another_container(azure_store: AzureStore, azurite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = AzureStore(azurite)
    monkeypatch.setenv(azure_store.variable, other.sas("racwl"))
    with pytest.raises(NotStored, match="refused"):
        target_of(azure_store).preflight(60)


@pytest.mark.parametrize("permission", ["cw", "racwl"])
@pytest.mark.parametrize("size", [1024, 40 * MIB])
def test_a_sas_stores(
    azure_store: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permission: str, size: int
) -> None:
    monkeypatch.setenv(azure_store.variable, azure_store.sas(permission))
    target = target_of(azure_store)
    target.preflight(60)
    parcel = write_random(tmp_path / "a.tar.gz", size)
    target.store(parcel)
    (key,) = azure_store.names()
    assert sha256(azure_store.content(key)) == parcel.sha256


def test_a_sas_is_not_handed_on(azure_store: AzureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SAS can't sign a narrower one, so a node gets none, and it is said."""
    monkeypatch.setenv(azure_store.variable, azure_store.sas("racwl"))
    (event,) = by_node(azure_store, Node(tmp_path, 100))
    assert event["event"] == "warning"
    assert "narrowed" in event["why"]
