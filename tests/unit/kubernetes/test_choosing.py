"""Which nodes and which pods are meant, against a fake API that only lists: the answers' forms are Kubernetes' own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from retina_runner import filters
from retina_runner.errors import UsageError
from retina_runner.executors.kubernetes.api import Api, Denied
from retina_runner.executors.kubernetes.choosing import Chosen, choose, notes_of, scope_of
from retina_runner.label_selectors import parse


def node(name: str, ready: bool = True, **spec: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, "pool": name[-1]}
    conditions = [
        {
            "type": "Ready",
            "status": "True" if ready else "Unknown",
            "reason": "KubeletReady" if ready else "NodeStatusUnknown",
        }
    ]
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"conditions": conditions}}


def pod(
    name: str, on: str, *ips: str, host: bool = False, ports: tuple[int, ...] = (), **labels: str
) -> dict[str, Any]:
    containers = [{"ports": [{"containerPort": p} for p in ports]}]
    spec = {"nodeName": on, "containers": containers, **({"hostNetwork": True} if host else {})}
    status = {"phase": "Running", "podIPs": [{"ip": i} for i in ips]}
    return {"metadata": {"namespace": "shop", "name": name, "labels": labels}, "spec": spec, "status": status}


class FakeListing:
    """A fake of the API that knows objects by path, and selects by label as the real one does."""

    def __init__(self, objects: Mapping[str, list[dict[str, Any]]]):
        self._objects = objects
        self.access = SimpleNamespace(context=SimpleNamespace(name="fake"))

    def pages(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        selector = parse((query or {}).get("labelSelector", ""))
        yield from (o for o in self._objects.get(path, []) if selector.matches(o["metadata"].get("labels", {})))

    def call(self, method: str, path: str) -> Any:
        folder, _, name = path.rpartition("/")
        for found in self._objects.get(folder, []):
            if found["metadata"]["name"] == name:
                return found
        raise Denied(404, "NotFound", f"{name} not found")


NODES = [
    node("node-a"),
    node("node-b", unschedulable=True),
    node("node-c", ready=False, taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
]
SHOP = [
    pod("web-1", "node-a", "10.0.1.5", "fd00:1::5", app="web"),
    pod("web-2", "node-b", "10.0.2.6", app="web", canary="true"),
    pod("db-1", "node-b", "10.0.2.7", app="db"),
    pod("proxy-1", "node-c", "192.0.2.3", host=True, ports=(8080, 8443), app="proxy"),
    pod("bare-1", "node-c", "192.0.2.3", host=True, app="bare"),
    {**pod("done", "node-c", "10.0.3.9", app="web"), "status": {"phase": "Succeeded"}},
]
DEPLOYMENT = {
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "canary", "operator": "DoesNotExist"}]}
    },
}
OBJECTS: dict[str, list[dict[str, Any]]] = {
    "/api/v1/nodes": NODES,
    "/api/v1/namespaces": [{"metadata": {"name": "shop", "labels": {"team": "x"}}}, {"metadata": {"name": "kube-system"}}],
    "/api/v1/namespaces/shop/pods": SHOP,
    "/apis/apps/v1/namespaces/shop/deployments": [DEPLOYMENT],
    "/api/v1/namespaces/shop/services": [
        {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}}},
        {"metadata": {"name": "out"}, "spec": {}},
    ],
}  # fmt: skip


def chosen(**selection: Any) -> dict[str, str]:
    """Node to filter."""
    found = choose(cast(Api, FakeListing(OBJECTS)), selection, "shop")
    return {c.node: filters.render(c.scope) if c.scope is not None else "" for c in found.nodes}


@pytest.mark.parametrize(
    ("selection", "nodes"),
    [
        ({}, ["node-a", "node-b", "node-c"]),
        ({"nodes": "all"}, ["node-a", "node-b", "node-c"]),
        ({"nodes": ["node-b", "node-a"]}, ["node-a", "node-b"]),
        ({"node_selector": "pool in (a,c)"}, ["node-a", "node-c"]),
        ({"node_selector": {"pool": "b"}}, ["node-b"]),
        ({"pods": {"app": "web"}}, ["node-a", "node-b"]),
        ({"pods": "app=web,!canary"}, ["node-a"]),
        ({"pods": "app=web", "node_selector": "pool notin (a)"}, ["node-b"]),
        ({"pod_names": ["db-1"]}, ["node-b"]),
        ({"owner": "deployment/web"}, ["node-a"]),
        ({"service": "web"}, ["node-a", "node-b"]),
        ({"namespaces": {"team": "x"}, "pods": "app=db"}, ["node-b"]),
        ({"namespace": "shop", "pods": "app=proxy"}, ["node-c"]),
    ],
)
def test_nodes(selection: dict[str, Any], nodes: list[str]) -> None:
    assert list(chosen(**selection)) == nodes


def test_the_scope_is_the_addresses_of_the_nodes_own_pods() -> None:
    found = chosen(pods="app=web")
    assert found["node-a"] == filters.render(filters.scope_addresses(["10.0.1.5", "fd00:1::5"]))
    assert found["node-b"] == filters.render(filters.scope_addresses(["10.0.2.6"]))


def test_pods_with_the_nodes_network_are_known_by_their_ports() -> None:
    assert chosen(pods="app=proxy")["node-c"] == "((port 8080) or (port 8443))"
    with pytest.raises(UsageError, match="bare-1 has its node's network and names no port"):
        scope_of([SHOP[4]])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"nodes": ["nodea"]}, "no node nodea; did you mean node-a"),
        ({"node_selector": "pool=d"}, "no node has labels pool=d; did you mean pool="),
        ({"node_selector": "pool in a"}, r"label selector 'pool in a': expected \("),
        ({"pods": "app=wb"}, "no pod of namespace shop matches pods app=wb; did you mean app=web"),
        ({"pod_names": ["web-3"]}, "did you mean web-"),
        ({"namespace": "shp", "pods": "app=web"}, "the cluster has no namespace shp; did you mean shop"),
        ({"namespaces": "team=y", "pods": "app=web"}, "no namespace has labels team=y"),
        ({"owner": "deployment/wbe"}, "no deployment wbe; did you mean web"),
        ({"owner": "cronjob/x"}, "expected one of deployment"),
        ({"service": "out"}, "service out of namespace shop selects no pods"),
        ({"pod_names": ["done"]}, "1 pods of namespace shop match pod_names done, and all of them have ended"),
        ({"pods": "app=web", "nodes": ["node-a"], "pod_names": ["web-2"]}, "none of them is on a chosen node"),
        ({"pods": "app=web", "nodes": ["node-c"]}, "match pods app=web, and none of them is on a chosen node"),
    ],
)  # fmt: skip
def test_no_match_says_what_is_near(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(**selection)


def test_of_several_pods_that_are_named_none_is_left_out_silently() -> None:
    found = choose(cast(Api, FakeListing(OBJECTS)), {"pod_names": ["web-1", "web-7", "db-1"]}, "shop")
    assert found.missing == ("no pod of namespace shop is called web-7; did you mean web-2?",)
    assert [c.node for c in found.nodes] == [
        "node-a",
        "node-b",
    ]  # what a later look goes by, when one of them is being replaced
    # One that other words leave out is there.
    narrowed = choose(cast(Api, FakeListing(OBJECTS)), {"pod_names": ["web-1", "db-1"], "pods": "app=web"}, "shop")
    assert narrowed.missing == ()


def test_nodes_that_may_not_do_are_named() -> None:
    assert notes_of(NODES) == (
        "node node-b: cordoned; it is asked nevertheless",
        "node node-c: taint gpu=yes:NoSchedule, not ready (NodeStatusUnknown); it is asked nevertheless",
    )
    assert choose(cast(Api, FakeListing(OBJECTS)), {"nodes": ["node-a"]}, "shop").notes == ()


def test_a_refusal_of_the_server_is_told_with_the_context() -> None:
    class Refusing(FakeListing):
        def pages(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
            raise Denied(403, "Forbidden", "nodes is forbidden")

    with pytest.raises(UsageError, match="Kubernetes, context fake: nodes is forbidden"):
        choose(cast(Api, Refusing({})), {}, "shop")


def test_chosen_is_a_value() -> None:
    assert Chosen("a") == Chosen("a", None)
