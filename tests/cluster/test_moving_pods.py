"""Pods that move between the choice of nodes and T0, as deployments' pods do when one is deleted: the capture follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from retina_runner.moving import MOVES_MOST
from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.filling import full
from tests.cluster.runs import PatientRun, Runs, standing_still
from tests.cluster.shop import Shop
from tests.lab import Archive

pytestmark = pytest.mark.cluster

HERE_LABEL = "retina-run-tests-roamer"


class Roamer:
    """A deployment of one pod, on the node that carries the label."""

    def __init__(self, api: Api, namespace: str, node: str):
        self.api, self.namespace, self.node = api, namespace, node
        self.uid = self.address = ""

    def open(self) -> None:
        labels = {"app": "roamer"}
        container = {"name": "main", "image": self.api.image, "command": ["sleep", "infinity"]}
        pod = {
            "nodeSelector": {HERE_LABEL: self.namespace},
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        }
        self.api.kubectl("label", "node", self.node, f"{HERE_LABEL}={self.namespace}", "--overwrite")
        self.api.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "roamer", "namespace": self.namespace},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            }
        )
        self.wait()

    def wait(self) -> None:
        """Until another pod than the last runs."""

        def runs() -> bool:
            for pod in self.api.get("pods", "-n", self.namespace, "-l", "app=roamer")["items"]:
                ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
                if ready and pod["metadata"]["uid"] != self.uid and "deletionTimestamp" not in pod["metadata"]:
                    self.uid, self.name = pod["metadata"]["uid"], pod["metadata"]["name"]
                    (self.address,) = [p["ip"] for p in pod["status"]["podIPs"] if ":" not in p["ip"]]
                    assert pod["spec"]["nodeName"] == self.node
                    return True
            return False

        self.api.eventually(runs, "the roamer runs")

    def move(self, node: str = "") -> None:
        """Delete the pod; returns when the deployment's next one runs, on that node."""
        if node:
            self.api.kubectl("label", "node", self.node, f"{HERE_LABEL}-")
            self.node = node
            self.api.kubectl("label", "node", self.node, f"{HERE_LABEL}={self.namespace}", "--overwrite")
        self.api.kubectl("delete", "pod", "-n", self.namespace, "-l", "app=roamer", "--wait=false")
        self.wait()

    def close(self) -> None:
        self.api.kubectl("label", "node", self.node, f"{HERE_LABEL}-")


@pytest.fixture
def roamer(cluster: Api, shop: Shop) -> Iterator[Roamer]:
    made = Roamer(cluster, shop.namespace, shop.nodes[0])
    try:
        made.open()
        yield made
    finally:
        made.close()


def held(shop: Shop, scope: str = "node") -> str:
    """The roamer's node is checked at once; the other capture's Job doesn't fit while its node is full, and is waited for."""
    return f"""
name: moving
duration: 12s
limits: {{ready_timeout: 200s}}
captures:
  - name: roamers
    nodes: {{kubernetes: {{namespace: {shop.namespace}, owner: deployment/roamer, scope: {scope}}}}}
    collect: [{{tcpdump: {{interfaces: [any], filter: udp port 7000}}}}]
  - name: other
    nodes: {{kubernetes: {{namespace: {shop.namespace}, nodes: [{shop.nodes[2]}], job: {{requests: {{cpu: 200m}}}}}}}}
    collect: [iptables]
"""


def whole(run: PatientRun, capture: str) -> dict[str, Archive]:
    """Archives of that capture by node; each intact."""
    found = {a.manifest["node"]: a for a in run.archives() if a.manifest["capture"] == capture}
    for archive in found.values():
        assert verify_archive(archive.path).problems == ()
    return found


@pytest.mark.parametrize("scope", ["node", "pod-netns"])
def test_a_pod_that_is_replaced_on_its_node_before_the_start(
    runs: Runs, shop: Shop, roamer: Roamer, scope: str
) -> None:
    """Its node is planned again: the filter is of the new address, or the view the new pod's."""
    with full(shop.api, shop.namespace, shop.nodes[2]):
        run = runs.start(held(shop, scope))
        run.wait_for("node-check", node=roamer.node, capture="roamers")
        before = roamer.address, roamer.name
        roamer.move()
    run.wait_for("window", capture="roamers")
    shop.send("client", roamer.address, 7000, 200)
    assert run.end() == 0, (run.events, runs.api.state())
    changed = [e for e in run.events if e["event"] in ("node-replanned", "node-joined", "node-left")]
    assert {e["node"] for e in changed} == {roamer.node}
    assert all(before[0] in e["why"] or roamer.address in e["why"] for e in changed)
    archives = whole(run, "roamers")
    assert set(archives) == {roamer.node}
    archive = archives[roamer.node]
    assert sorted(set(payloads(archive))) == list(range(200))
    assert archive.lacking() == {}
    if scope == "pod-netns":
        assert archive.manifest["pod"]["uid"] == roamer.uid
    else:
        (entry,) = archive.manifest["collectors"].values()
        assert roamer.address in entry["options"]["expression"]
        assert before[0] not in entry["options"]["expression"]


def payloads(archive: Archive) -> list[int]:
    """The numbers in datagrams that were captured on `any`: a header of 20 bytes (SLL2), IPv4, UDP."""
    return [int.from_bytes(p[48:52], "big") for _, p in archive.pcap()]


@pytest.mark.parametrize("scope", ["node", "pod-netns"])
def test_a_pod_that_moves_to_another_node_before_the_start(runs: Runs, shop: Shop, roamer: Roamer, scope: str) -> None:
    """The old node leaves, with everything that was made there; the new one joins, and is captured from T0 on."""
    old, new = roamer.node, shop.nodes[1]
    with full(shop.api, shop.namespace, shop.nodes[2]):
        run = runs.start(held(shop, scope))
        run.wait_for("node-check", node=old, capture="roamers")
        roamer.move(new)
    run.wait_for("window", node=new, capture="roamers")
    shop.send("client", roamer.address, 7000, 200)
    runs.api.eventually(
        lambda: not [j for j in runs.api.get("jobs", "-n", shop.namespace)["items"] if pinned(j) == old],
        "its Job is gone",
    )
    assert run.end() == 0, (run.events, runs.api.state())
    (joined,), (left,) = run.all("node-joined"), run.all("node-left")
    assert (joined["node"], left["node"]) == (new, old)
    assert f"pod {shop.namespace}/{roamer.name} ({roamer.address}" in joined["why"]
    archives = whole(run, "roamers")
    assert set(archives) == {new}
    assert sorted(set(payloads(archives[new]))) == list(range(200))
    assert archives[new].lacking() == {}
    assert {n["node"]: n["state"] for n in run.summary()["nodes"] if n["capture"] == "roamers"} == {
        old: "skipped",
        new: "collected",
    }


def pinned(job: dict[str, Any]) -> str:
    """The node that a Job is for."""
    spec = job["spec"]["template"]["spec"]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return str(term["matchFields"][0]["values"][0])


READY_SLOWLY = """
name: moving
duration: 12s
limits: {{ready_timeout: 200s}}
when: {{condition: 'value("Udp.InDatagrams") >= 0', over: 8s}}
captures:
  - nodes: {{kubernetes: {{namespace: {namespace}, pods: {{app: roamer}}}}}}
    collect: [{{tcpdump: {{interfaces: [any], filter: udp port 7000}}}}]
"""


def moved_meanwhile(run: PatientRun, roamer: Roamer) -> None:
    """The roamer moves after an agent has begun and before the runner has looked at pods again, however long it takes."""
    run.wait_for("phase", phase="preparing")
    with standing_still(run.process):
        roamer.move()


def test_a_pod_that_is_replaced_after_its_nodes_agent_has_begun(runs: Runs, shop: Shop, roamer: Roamer) -> None:
    """The agent begins again, by a plan for the new address; T0 waits for it."""
    run = runs.start(READY_SLOWLY.format(namespace=shop.namespace))
    before = roamer.address
    moved_meanwhile(run, roamer)
    run.wait_for("node-replanned")
    run.wait_for("window")
    shop.send("client", roamer.address, 7000, 150)
    assert run.end() == 0, (run.events, runs.api.state())
    archive = run.archive()
    assert verify_archive(archive.path).problems == ()
    assert sorted(set(payloads(archive))) == list(range(150))
    assert archive.lacking() == {}
    assert before not in archive.manifest["collectors"]["tcpdump"]["options"]["expression"]
    (row,) = run.summary()["nodes"]
    assert (row["state"], row["trouble"]) == ("collected", None)
    assert any(f"({before}" in w and "planned again" in w for w in row["warnings"])


def test_pods_that_never_stay_are_told_in_event_manifest_and_verdict(runs: Runs, shop: Shop, roamer: Roamer) -> None:
    """Whoever moves faster than can be followed is captured by a filter that says itself that it is old."""
    run = runs.start(READY_SLOWLY.format(namespace=shop.namespace))
    for _ in range(MOVES_MOST + 1):  # the last time it is only told
        moved_meanwhile(run, roamer)
    run.wait_for("window")
    assert len(run.all("node-replanned")) == MOVES_MOST
    assert run.end() == 0, (run.events, runs.api.state())
    archive = run.archive()
    verdict = archive.verdict(".pcap")
    assert verdict["verdict"] == "partial", (run.events, archive.manifest)
    assert any("its filter is of pods as they were before T0: pod" in r for r in verdict["reasons"])
    assert any("has gone" in w for w in archive.manifest["warnings"])
    assert any("has gone" in e["why"] for e in run.all("warning"))
