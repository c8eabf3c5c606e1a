"""The harness itself: what the other tests here take for granted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster


def job(name: str, api: Api, node: str, *argv: str, **pod: Any) -> dict[str, Any]:
    container = {"name": "main", "image": api.image, "imagePullPolicy": "IfNotPresent", "command": list(argv)}
    spec = {"restartPolicy": "Never", "nodeName": node, "containers": [container], **pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def test_the_node_image_has_what_collectors_call(cluster: Api, namespace: str) -> None:
    tools = ["tcpdump", "ip", "ss", "tc", "nstat", "iptables-save", "nft", "ipset", "conntrack", "ethtool", "sysctl"]
    program = f"import shutil, json, bcc; print(json.dumps([t for t in {tools} if shutil.which(t) is None]))"
    node = sorted(cluster.ready())[0]
    document = json.dumps(job("tools", cluster, node, "python3", "-c", program))
    cluster.kubectl("create", "-n", namespace, "-f", "-", stdin=document)
    cluster.kubectl("wait", "-n", namespace, "--for=condition=complete", "job/tools", "--timeout=170s", limit_s=180)
    assert json.loads(cluster.kubectl("logs", "-n", namespace, "job/tools")) == []


def test_a_service_that_is_stopped_stays_so_until_started(own_cluster: Cluster) -> None:
    def runs() -> list[int]:
        return own_cluster._service_pids("node-3", "kube-proxy")

    own_cluster.eventually(lambda: len(runs()) == 1, "kube-proxy runs")
    before = runs()
    own_cluster.stop("node-3", "kube-proxy")
    assert runs() == []
    own_cluster.start("node-3", "kube-proxy")
    own_cluster.eventually(lambda: len(runs()) == 1 and runs() != before, "kube-proxy runs again")
