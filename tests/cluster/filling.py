"""A pod that takes what is left of a node, so that nothing else fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.api import Api

RUNNING = "status.phase!=Succeeded,status.phase!=Failed"


@contextmanager
def full(api: Api, namespace: str, node: str) -> Iterator[None]:
    """While this holds, the node has less than a tenth of a processor to give."""
    capacity = api.get("node", node)["status"]["allocatable"]["cpu"]
    millis = int(capacity[:-1]) if capacity.endswith("m") else int(capacity) * 1000
    taken = sum(
        int(request[:-1]) if request.endswith("m") else int(request) * 1000
        for pod in api.get("pods", "-A", f"--field-selector=spec.nodeName={node},{RUNNING}")["items"]
        if "deletionTimestamp" not in pod["metadata"]  # it would leave room later; until it has gone the filler waits
        for container in pod["spec"]["containers"]
        for request in [container.get("resources", {}).get("requests", {}).get("cpu", "0m")]
    )
    container = {
        "name": "main",
        "image": api.image,
        "command": ["sleep", "infinity"],
        "resources": {"requests": {"cpu": f"{millis - taken - 50}m"}},
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": [{"operator": "Exists"}],
    }
    api.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler", "namespace": namespace}, "spec": spec})
    try:
        api.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/filler", "--timeout=170s", limit_s=180)
        yield
    finally:
        api.kubectl("delete", "pod", "-n", namespace, "filler", "--wait=true")
