"""A MetricsConfiguration of Retina as a runbook: its metrics name plugins, for the length of a window."""

from __future__ import annotations

import json
from typing import Any

from retina_runner.bundle import data_directory
from retina_runner.documents import Path_
from retina_runner.translate import Draft

PLUGINS = {
    "drop_count": "dropreason", "drop_bytes": "dropreason",
    "forward_count": "packetforward", "forward_bytes": "packetforward",
    "tcp_state": "linuxutil", "tcp_connection_remote": "linuxutil", "tcp_connection_stats": "linuxutil",
    "ip_connection_stats": "linuxutil", "udp_connection_stats": "linuxutil",
    "tcp_flag_gauges": "packetparser", "tcp_retransmission_count": "tcpretrans",
    "dns_request_count": "dns", "dns_response_count": "dns",
}  # fmt: skip
UNSERVED = {
    "node_connectivity_status": "needs an agent on every node that asks the others",
    "node_connectivity_latency_seconds": "needs an agent on every node that asks the others",
    "node_apiserver_latency": "needs the traffic of the API server's clients, all the time",
    "node_apiserver_handshake_latency": "needs the traffic of the API server's clients, all the time",
    "node_apiserver_no_response": "needs the traffic of the API server's clients, all the time",
}


def translate(draft: Draft) -> dict[str, Any]:
    """The runbook's value; `-e duration=5m` sets its length."""
    spec = draft.valid("retina/metricsconfiguration")
    if spec is None:
        return {}
    plugins: dict[str, None] = {}
    for index, option in enumerate(spec["contextOptions"]):
        path: Path_ = ("spec", "contextOptions", index)
        metric = option["metricName"]
        if metric in UNSERVED:
            draft.refuse((*path, "metricName"), f"{metric}: no plugin counts it: it {UNSERVED[metric]}")
            continue
        plugins[PLUGINS[metric]] = None
        _labels(draft, path, option, PLUGINS[metric])
        if "ttl" in option:
            draft.note((*path, "ttl"), "a window has an end of its own")
    for key in spec.get("namespaces") or ():
        draft.note(
            ("spec", "namespaces", key), "programs count for the whole node; totals aren't narrowed to namespaces"
        )
    draft.origins[("captures", 0)] = ("spec", "contextOptions")
    nodes: Any = "local" if draft.on_hosts else {"kubernetes": {"nodes": "all"}}
    name = draft.document.value["metadata"]["name"]
    draft.origins[("name",)] = ("metadata", "name")
    return {
        "name": name,
        "vars": {"duration": "60s"},
        "duration": "${duration}",
        "captures": [{"nodes": nodes, "collect": [{"ebpf": {"plugins": list(plugins)}}]}],
    }


def _labels(draft: Draft, path: Path_, option: dict[str, Any], plugin: str) -> None:
    known = labels_of(plugin)
    for key in ("sourceLabels", "destinationLabels", "additionalLabels"):
        for label in option.get(key) or ():
            if label.lower() not in known:
                draft.note((*path, key), f"{label} isn't a label of the plugin {plugin}")


def labels_of(plugin: str) -> frozenset[str]:
    """Every label of the plugin's metrics, as bpf/<plugin>.json has them."""
    path = data_directory("bpf") / f"{plugin}.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.exists() else []
    return frozenset(label for metric in metrics for label in metric.get("labels") or ())
