"""Captures on a real cluster, with exact truth: what a pod sent is what the archives hold, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.shop import Shop
from tests.lab import Archive, Run

pytestmark = pytest.mark.cluster

UDP4, UDP6 = 14 + 20 + 8, 14 + 40 + 8


def start(api: Api, folder: Path, runbook: str, *arguments: str, env: Mapping[str, str] | None = None) -> Run:
    """A run against the cluster, with the test's node image."""
    folder.mkdir(exist_ok=True)
    environment = {"KUBECONFIG": str(api.kubeconfig), "RETINA_RUN_NODE_IMAGE": api.image, **(env or {})}
    return Run(runbook, folder, *arguments, env=environment)


def left_behind(api: Api) -> list[str]:
    """Everything of any run that is in the cluster."""
    kinds = "jobs,pods,configmaps,secrets"
    found = api.get(kinds, "-A", "-l", "retina-run/run")["items"]
    return [f"{o['kind']} {o['metadata']['namespace']}/{o['metadata']['name']}" for o in found]


@pytest.fixture(autouse=True)
def _nothing_left(cluster: Api) -> Iterator[None]:
    yield
    cluster.eventually(lambda: not left_behind(cluster), f"nothing of a run is left, there was {left_behind(cluster)}")


def numbers(archive: Archive, payload_at: int, family: int) -> list[int]:
    """The numbers in the datagrams of one family, 4 or 6."""
    found = [p for _, p in archive.pcap() if p[14] >> 4 == family]
    return sorted(int.from_bytes(p[payload_at : payload_at + 4], "big") for p in found)


def by_name(run: Run) -> dict[str, Archive]:
    """Archives by capture and node, as their manifests say."""
    return {f"{a.manifest['capture']}/{a.manifest['node']}": a for a in run.archives()}


def test_two_deployments_exact_counts_and_nothing_of_the_bystander(cluster: Api, shop: Shop, tmp_path: Path) -> None:
    """v4 and v6 from pod to pod; the filter of each node is its own pods' addresses."""
    run = start(cluster, tmp_path, f"""
name: shop
duration: 12s
captures:
  - name: clients
    nodes: {{kubernetes: {{namespace: {shop.namespace}, pods: {{app: client}}}}}}
    collect: [{{tcpdump: {{interfaces: [eth0], filter: udp port 7000}}}}]
  - name: servers
    nodes: {{kubernetes: {{namespace: {shop.namespace}, owner: deployment/server}}}}
    collect: [{{tcpdump: {{interfaces: [eth0], filter: udp port 7000}}}}]
  - name: bystanders
    nodes: {{kubernetes: {{namespace: {shop.namespace}, pods: "app in (bystander)"}}}}
    collect: [{{tcpdump: {{interfaces: [eth0], filter: udp port 7000}}}}]
""")  # fmt: skip
    run.wait_for("t0")
    for _ in range(3):
        run.wait_for("window")
    v4, v6 = shop.addresses["server"]
    shop.send("client", v4, 7000, 500)
    shop.send("client", v6, 7000, 300)
    shop.send("bystander", v4, 7000, 40)
    assert run.end() == 0, (run.events, cluster.state())
    archives = by_name(run)
    assert set(archives) == {
        f"clients/{shop.node['client']}",
        f"servers/{shop.node['server']}",
        f"bystanders/{shop.node['bystander']}",
    }
    clients = archives[f"clients/{shop.node['client']}"]
    servers = archives[f"servers/{shop.node['server']}"]
    assert numbers(clients, UDP4, 4) == list(range(500))
    assert numbers(clients, UDP6, 6) == list(range(300))
    assert numbers(servers, UDP4, 4) == sorted([*range(500), *range(40)])
    assert numbers(servers, UDP6, 6) == list(range(300))
    assert numbers(archives[f"bystanders/{shop.node['bystander']}"], UDP4, 4) == list(range(40))
    for archive in archives.values():
        assert verify_archive(archive.path).problems == ()
        assert archive.verdict(".pcap")["verdict"] == "complete"
        assert archive.manifest["executor"] == "kubernetes"
