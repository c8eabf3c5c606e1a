"""Nodes that are objects and nothing else: no machine, no kubelet. For tests and benchmarks of how many the runner can ask about.

They are as large as real ones, images and conditions included, and are ready until the node controller misses their kubelets.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from retina_runner.executors.kubernetes.api import Api, Denied, Pace
from retina_runner.executors.kubernetes.kubeconfig import Access

LABEL = "retina-run-tests/crowd"
ATTEMPTS_AT_ONCE = 16


def unhurried(access: Access) -> Api:
    """An API without the runner's bound on requests a second: what is measured is what comes after."""
    return Api(access, Pace(1e6, 10**6))


class Crowd:
    """`count` nodes labelled `name`. `close` removes them, and the namespace of that name if `namespace` was called."""

    def __init__(self, api: Api, name: str, count: int):
        self.api, self.name = api, name
        self.nodes = [f"{name}-{number:05d}" for number in range(count)]
        self.selector = f"{LABEL}={name}"

    def open(self) -> None:
        self.post("/api/v1/nodes", map(self._node, self.nodes))

    def namespace(self) -> str:
        """A namespace with its service account; returns its name."""
        self.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.name}})
        account = {"metadata": {"name": "default"}}
        self._once(f"/api/v1/namespaces/{self.name}/serviceaccounts", account)
        return self.name

    def post(self, path: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """Create these, many at a time."""
        with ThreadPoolExecutor(ATTEMPTS_AT_ONCE) as pool:
            list(pool.map(lambda made: self._once(path, made), objects))

    def _once(self, path: str, made: Mapping[str, Any]) -> None:
        try:
            self.api.call("POST", path, made)
        except Denied as denied:
            if denied.status != 409:
                raise

    def close(self) -> None:
        self._gone(lambda: self.api.call("DELETE", f"/api/v1/namespaces/{self.name}"))
        self._gone(lambda: self.api.call("DELETE", "/api/v1/nodes", query={"labelSelector": self.selector}))

    def _gone(self, delete: Callable[[], object]) -> None:
        try:
            delete()
        except Denied as denied:
            if denied.status != 404:
                raise

    def _node(self, name: str) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
        conditions = [
            {"type": kind, "status": "True" if kind == "Ready" else "False", "reason": "Fake", "message": "no kubelet is here",
             "lastHeartbeatTime": now, "lastTransitionTime": now}
            for kind in kinds
        ]  # fmt: skip
        images = [
            {"names": [f"registry.example/team-{n}/service-{n}@sha256:{n:064x}", f"registry.example/team-{n}/service-{n}:1.{n}"],
             "sizeBytes": 10_000_000 + n}
            for n in range(50)
        ]  # fmt: skip
        resources = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
        return {
            "metadata": {
                "name": name,
                "labels": {LABEL: self.name, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
            "status": {
                "conditions": conditions,
                "images": images,
                "capacity": resources,
                "allocatable": resources,
                "nodeInfo": {"kubeletVersion": "v1.36.3", "operatingSystem": "linux", "architecture": "amd64"},
            },
        }
