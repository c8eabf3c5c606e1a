"""Captures on a real cluster, with exact truth: what a pod sent is what the archives hold, and nothing stays behind."""

from __future__ import annotations

import pytest

from retina_runner.executors.kubernetes.api import RIGHTS
from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.runs import Runs, by_node, standing_still
from tests.cluster.shop import Shop
from tests.lab import Archive

pytestmark = pytest.mark.cluster

UDP4, UDP6 = 14 + 20 + 8, 14 + 40 + 8


def numbers(archive: Archive, payload_at: int, family: int) -> list[int]:
    """The numbers in the datagrams of one family, 4 or 6."""
    found = [p for _, p in archive.pcap() if p[14] >> 4 == family]
    return sorted(int.from_bytes(p[payload_at : payload_at + 4], "big") for p in found)


def test_two_deployments_exact_counts_and_nothing_of_the_bystander(runs: Runs, shop: Shop) -> None:
    """v4 and v6 from pod to pod; the filter of each node is its own pods' addresses."""
    run = runs.start(f"""
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
    assert run.end() == 0, (run.events, runs.api.state())
    archives = by_node(run)
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
        assert archive.lacking() == {}
        assert archive.manifest["executor"] == "kubernetes"


def test_everything_that_a_node_has_from_inside_a_job(runs: Runs, shop: Shop) -> None:
    """Packets, rules, state, and BPF plugins, with the capabilities that the plan asks for and no more."""
    run = runs.start(f"""
name: everything
duration: 12s
captures:
  - nodes: {{kubernetes: {{nodes: all, job: {{namespace: {shop.namespace}, requests: {{cpu: 10m, memory: 64Mi}}}}}}}}
    collect: [tcpdump, iptables, network-state, {{ebpf: {{plugins: [packetforward, linuxutil]}}}}]
""")
    run.wait_for("window")
    with standing_still(run.process):  # it removes its Jobs in the end
        job = runs.api.get("jobs", "-n", shop.namespace)["items"][0]
    shop.send("client", shop.addresses["server"][0], 7000, 200)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert run.end() == 0, (run.events, runs.api.state())
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert "SYS_ADMIN" not in container["securityContext"]["capabilities"]["add"]
    assert "privileged" not in container["securityContext"]
    archives = run.archives()
    assert len(archives) == len(shop.api.ready())
    for archive in archives:
        assert verify_archive(archive.path).problems == ()
        assert archive.lacking() == {}
        for wanted in (
            "metrics/metrics.json",
            "state/before/ip-addr.json",
            "state/after/nft.txt",
            "state/delta/iptables.json",
        ):
            assert wanted in archive.members, sorted(archive.members)
        assert b"packetforward" in archive.members["metrics/metrics.json"]


def test_two_hundred_megabytes_come_over_whole(runs: Runs, namespace: str, cluster: Api) -> None:
    """A truncated exec stream is an old defect of Kubernetes: the archive is counted, hashed and resumed."""
    node = sorted(cluster.ready())[0]
    run = runs.start(f"""
name: large
duration: 1s
limits: {{memory: 2GiB}}
captures:
  - nodes: {{kubernetes: {{nodes: [{node}], job: {{namespace: {namespace}}}}}}}
    collect: [{{command: {{argv: [head, -c, "210000000", /dev/urandom], output_limit: 250MB, limit: 120s}}}}]
""")
    assert run.end() == 0, (run.events, cluster.state())
    archive = run.archive()
    assert archive.path.stat().st_size > 200_000_000
    assert verify_archive(archive.path).problems == ()


@pytest.mark.parametrize("scope", ["node", "pod-netns"])
def test_a_user_with_nothing_but_our_role(own_cluster: Cluster, runs: Runs, shop: Shop, scope: str) -> None:
    """First without it: a refusal that says what is missing. Then with it: a capture."""
    user = own_cluster.user("operator", shop.namespace)
    runbook = f"""
name: operator
duration: 2s
captures:
  - nodes: {{kubernetes: {{namespace: {shop.namespace}, pods: {{app: server}}, scope: {scope}}}}}
    collect: [tcpdump, network-state]
"""
    refused = runs.start(runbook, KUBECONFIG=str(user))
    assert refused.end() == 2
    assert "forbidden" in refused.stderr
    name = f"retina-run-{shop.namespace}"
    rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in RIGHTS]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}],
    }
    own_cluster.apply(role, binding)
    try:
        own_cluster.eventually(
            lambda: own_cluster.kubectl("auth", "can-i", "create", "jobs", "--as=operator").strip() == "yes",
            "the role holds",
        )
        run = runs.start(runbook, KUBECONFIG=str(user))
        assert run.end() == 0, (run.events, own_cluster.state())
        assert run.archive().manifest["node"] == shop.node["server"]
        runs.api.eventually(lambda: not runs.left(), "the operator's Jobs are gone")
    finally:
        own_cluster.kubectl("delete", "clusterrole,clusterrolebinding", name)
