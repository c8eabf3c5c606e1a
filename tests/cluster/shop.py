"""A small application in a namespace of its own: client, server and a bystander, each a deployment pinned to its own node.

Traffic between them is of known size: numbered datagrams, as in tests/lab.py.
"""

from __future__ import annotations

from typing import Any

from tests.cluster.api import Api
from tests.lab import RECEIVER, SENDER

PARTS = ("client", "server", "bystander")


class Shop:
    """`node` and `addresses` (v4, v6) tell where each part's only pod is."""

    def __init__(self, api: Api, namespace: str):
        self.api, self.namespace = api, namespace
        self.nodes: list[str] = []
        self.node: dict[str, str] = {}
        self.addresses: dict[str, tuple[str, str]] = {}
        self.pods: dict[str, str] = {}

    def open(self) -> None:
        """Create the deployments; returns when every pod runs, and the server's receiver is ready."""
        self.api.eventually(self._nodes_are_there, "there are three ready nodes")
        self.api.apply(*(self._deployment(part) for part in PARTS))
        self.api.eventually(self._all_run, "the shop's pods run")
        log = ("logs", "-n", self.namespace, self.pods["server"])
        self.api.eventually(lambda: self.api.kubectl(*log) == "ready\n", "the server's receiver is ready")
        # Whoever sends first resolves neighbours on the way: not among the packets that a test counts.
        for family in (0, 1):
            self.send("client", self.addresses["server"][family], 7999, 1)
            self.send("bystander", self.addresses["server"][family], 7999, 1)

    def send(self, part: str, address: str, port: int, count: int, size: int = 100) -> None:
        """Send that many datagrams of that payload size from a part's pod; returns when all are sent."""
        argv = ["python3", "-c", SENDER, address, str(port), str(count), str(size), "40000"]
        self.api.kubectl("exec", "-n", self.namespace, self.pods[part], "--", *argv)

    def _nodes_are_there(self) -> bool:
        self.nodes = sorted(self.api.ready())[: len(PARTS)]
        self.node = dict(zip(PARTS, self.nodes, strict=False))
        return len(self.node) == len(PARTS)

    def _all_run(self) -> bool:
        for pod in self.api.get("pods", "-n", self.namespace, "-l", "shop=open")["items"]:
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
            if ready and "deletionTimestamp" not in pod["metadata"]:
                part = pod["metadata"]["labels"]["app"]
                v4, v6 = sorted((p["ip"] for p in pod["status"]["podIPs"]), key=lambda a: ":" in a)
                self.pods[part], self.addresses[part] = pod["metadata"]["name"], (v4, v6)
        return set(self.pods) == set(PARTS)

    def _deployment(self, part: str) -> dict[str, Any]:
        labels = {"app": part, "shop": "open"}
        receive = ["python3", "-c", RECEIVER, "::", "7000"]
        container = {
            "name": "main",
            "image": self.api.image,
            "imagePullPolicy": "IfNotPresent",
            "command": receive if part == "server" else ["sleep", "infinity"],
        }
        pod = {"nodeName": self.node[part], "terminationGracePeriodSeconds": 0, "containers": [container]}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": part, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
