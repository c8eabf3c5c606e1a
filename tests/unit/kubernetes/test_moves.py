"""What a second look at pods makes of plans: the cluster's answers are a fake listing's, the rest is what a run does."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from retina_runner.cli import moves as moving
from retina_runner.cli.moves import Moves, difference
from retina_runner.cli.resolve import Links, resolve
from retina_runner.errors import UsageError
from retina_runner.executors.kubernetes import choosing
from retina_runner.executors.kubernetes.api import Api
from retina_runner.executors.kubernetes.objects import JobSettings
from retina_runner.moving import Changes
from retina_runner.rundir import RunDirectory
from tests.unit.kubernetes.test_choosing import OBJECTS, FakeListing, pod

RUNBOOK = """
name: moves
captures:
  - name: web
    nodes: {kubernetes: {namespace: shop, pods: {app: web}%s}}
    collect: [{tcpdump: {filter: tcp}}]
  - name: all
    nodes: {kubernetes: {nodes: all}}
    collect: [iptables]
"""
KUBECONFIG = """
apiVersion: v1
kind: Config
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: x, user: {token: nobody}}]
current-context: x
"""


class World:
    """A run whose cluster is `pods`, which a test changes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, scope: str = "", limit: str | None = None):
        self.pods: list[dict[str, Any]] = [
            with_uid("web-1", "node-a", "10.0.1.5"),
            with_uid("web-2", "node-b", "10.0.2.6"),
        ]
        self.trouble = ""
        monkeypatch.setattr(choosing, "select", self.select)
        monkeypatch.setattr(moving, "SETTLE_S", 0.0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(KUBECONFIG)
        runbook = folder / "r.yaml"
        runbook.write_text(RUNBOOK % (f", scope: {scope}" if scope else ""))
        words = argparse.Namespace(
            runbook=runbook, extra_vars=[], inventory=[], limit=limit, shard=None, work_dir=None, forks=4
        )
        self.resolved = resolve(words)
        self.moves = Moves(self.resolved, Links(4, self.resolved.jobs), RunDirectory.create(folder, "run"))
        self.targets = {p.id: self.moves.target(p, n) for n, p in enumerate(self.resolved.plans)}

    def select(self, selection: Mapping[str, Any]) -> choosing.Selected:
        if self.trouble:
            raise UsageError(self.trouble)
        api = cast(Api, FakeListing({**OBJECTS, "/api/v1/namespaces/shop/pods": self.pods}))
        found = choosing.choose(api, selection, "shop")
        return choosing.Selected(
            found.nodes, str(self.kubeconfig), "x", JobSettings("shop", "i"), found.notes, found.unsettled
        )

    def look(self) -> Changes:
        return self.moves.look(lambda: True)


def with_uid(name: str, on: str, *addresses: str) -> dict[str, Any]:
    made = pod(name, on, *addresses, app="web")
    made["metadata"]["uid"] = f"uid-of-{name}-{on}-{addresses}"
    return made


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_nothing_has_moved(world: World) -> None:
    assert world.moves.possible
    assert world.look() == Changes()


def test_a_new_address_is_a_new_plan_in_another_directory(world: World) -> None:
    world.pods[0] = with_uid("web-9", "node-a", "10.0.1.9", "fd00::9")
    changes = world.look()
    assert changes == Changes(
        replanned={"web/node-a": "pod shop/web-1 (10.0.1.5) has gone; pod shop/web-9 (10.0.1.9, fd00::9) has come"}
    )
    assert world.look() == changes, "a look changes nothing"
    (target,) = world.moves.take(changes)
    old = world.targets["web/node-a"]
    assert (target.id, target.link, target.reach) == (old.id, old.link, old.reach)
    assert target.directory == f"{old.directory}+1"
    assert b"10.0.1.9" in target.plan
    assert b"10.0.1.5" not in target.plan
    assert world.look() == Changes()
    world.pods[0] = with_uid("web-9", "node-a", "10.0.1.10")
    (again,) = world.moves.take(world.look())
    assert again.directory == f"{old.directory}+2"


def test_nodes_join_with_jobs_of_their_own_and_leave(world: World) -> None:
    world.pods[0] = with_uid("web-1", "node-c", "10.0.3.5")
    changes = world.look()
    assert changes == Changes(left={"web/node-a": "pod shop/web-1 (10.0.1.5) has gone"},
                              joined={"web/node-c": "pod shop/web-1 (10.0.3.5) has come"})  # fmt: skip
    (target,) = world.moves.take(changes)
    assert target.node == "node-c"
    assert target.reach.job == f"retina-run-{world.resolved.token}-{len(world.targets)}"
    assert target.reach.job in world.resolved.jobs
    assert target.directory.endswith(f"-{len(world.targets)}")
    assert world.look() == Changes()


def test_pods_views_are_told_apart_by_their_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, scope="pod-netns")
    assert "web/node-a/shop/web-1" in world.targets
    world.pods[0]["metadata"]["uid"] = "another"  # the same name, node and address: a stateful set's
    assert list(world.look().replanned) == ["web/node-a/shop/web-1"]
    world.pods[1] = with_uid("web-3", "node-b", "10.0.2.7")
    changes = world.look()
    assert (list(changes.left), list(changes.joined)) == (["web/node-b/shop/web-2"], ["web/node-b/shop/web-3"])


def test_all_pods_may_go(world: World) -> None:
    world.pods = []
    assert set(world.look().left) == {"web/node-a", "web/node-b"}


def test_a_pod_without_an_address_is_told(world: World) -> None:
    world.pods.append(with_uid("web-3", "node-c"))
    changes = world.look()
    assert not changes
    assert changes.unseen["web/node-a"] == "pod shop/web-3 had no address before T0: nothing of it is here"
    assert set(changes.unseen) == {"web/node-a", "web/node-b"}


def test_what_cannot_be_asked_is_told(world: World) -> None:
    world.trouble = "Kubernetes, context x: connection refused"
    changes = world.look()
    assert not changes
    assert changes.unseen["web/node-b"] == f"its pods couldn't be looked at again before T0: {world.trouble}"
    assert "all/node-b" not in changes.unseen


def test_a_limit_holds_for_who_would_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, limit="node-a,node-b")
    world.pods.append(with_uid("web-3", "node-c", "10.0.3.5"))
    assert world.look() == Changes()


def test_an_order_of_answers_is_no_change(world: World) -> None:
    world.pods.append(with_uid("web-0", "node-a", "10.0.1.4"))
    world.moves.take(world.look())
    world.pods.reverse()
    assert world.look() == Changes()


def test_the_difference_as_people_read_it() -> None:
    assert (
        difference(["shop/a (1)", "shop/b (2)"], ["shop/b (2)", "shop/a (3)"])
        == "pod shop/a (1) has gone; pod shop/a (3) has come"
    )
    assert difference(["shop/a (1)"], ["shop/a (1)"]) == "its pods have changed"
