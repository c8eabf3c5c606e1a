"""What is created in a cluster: pure functions from settings to manifests.

The pod gets the node's network, and only the capabilities that its plan needs; its root is read-only; it has no service
account token. What it writes is in an emptyDir, so that the kubelet removes it with the pod, whatever happened.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

RUN_LABEL = "retina-run/run"
RUN_NOTE = "retina-run/run-name"
CONTAINER = "agent"
AGENT_DIRECTORY = "/retina-run"
VOLUME = "/var/lib/retina-run"
WORK_DIRECTORY = f"{VOLUME}/work"
GRACE_S = 300
"""A drained pod has that long to end its window, to archive, and to be fetched."""
TTL_S = 600
"""How long the cluster keeps a Job that has ended without its runner."""
CAPABILITIES = {
    "tcpdump": ("NET_ADMIN", "NET_RAW", "SETGID", "SETUID"),
    "iptables": ("NET_ADMIN", "NET_RAW"),
    "network-state": ("NET_ADMIN", "NET_RAW", "SYSLOG"),
    "ebpf": ("BPF", "NET_ADMIN", "NET_RAW", "PERFMON"),
}
"""By collector. tcpdump sets its user even to the same one (`-Z root`), and dmesg(1) asks for SYSLOG. `BPF` and `PERFMON`
exist since Linux 5.8; where they don't suffice, `capabilities: [SYS_ADMIN]` is asked for."""


@dataclass(frozen=True)
class JobSettings:
    """See `job` of schemas/runbook.json; mappings are sorted pairs, so that it is a value."""

    namespace: str
    image: str
    image_pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    annotations: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    priority_class: str = ""
    requests: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()
    capabilities: tuple[str, ...] = ()
    privileged: bool = False
    shelves: tuple[str, ...] = ()
    """Directories of the node that are mounted at the same path: where archives are kept."""
    claim: str = ""
    """A PersistentVolumeClaim that is mounted there instead."""


def settings_of(given: Mapping[str, Any]) -> JobSettings:
    """The inverse of dataclasses.asdict, also after JSON. Unknown fields are passed over."""
    known = {f.name for f in fields(JobSettings)}
    return JobSettings(**{k: _value(v) for k, v in given.items() if k in known})


def _value(given: Any) -> Any:
    """JSON's lists as tuples, all the way down."""
    return tuple(map(_value, given)) if isinstance(given, (list, tuple)) else given


def capabilities(plan: Mapping[str, Any], settings: JobSettings) -> tuple[str, ...]:
    """What the plan's collectors need, sorted; besides what is asked for. Other network namespaces take SYS_ADMIN, and a
    pod's is found through its processes, which takes SYS_PTRACE; the kernel log isn't part of it."""
    needed = set(settings.capabilities)
    if plan.get("pod"):
        needed.update(("SYS_ADMIN", "SYS_PTRACE"))
    for collector in plan["collectors"]:
        needed.update(c for c in CAPABILITIES.get(collector["name"], ()) if not (plan.get("pod") and c == "SYSLOG"))
        if collector["options"].get("netns"):
            needed.add("SYS_ADMIN")
    return tuple(sorted(needed))


def job_name(token: str, number: int) -> str:
    """A DNS label: it names the pod too."""
    return f"retina-run-{token}-{number}"


def config_map_name(token: str) -> str:
    return f"retina-run-{token}-agent"


def config_map(token: str, namespace: str, run: str, agent_name: str, agent: bytes) -> dict[str, Any]:
    """The agent, once for all Jobs of the run in that namespace."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(token),
            "namespace": namespace,
            "labels": {RUN_LABEL: token, "app.kubernetes.io/managed-by": "retina-run"},
            "annotations": {RUN_NOTE: run},
        },
        "immutable": True,
        "binaryData": {agent_name: base64.b64encode(agent).decode()},
    }


def owner(job: Mapping[str, Any]) -> dict[str, Any]:
    """The reference that makes an object go with the Job."""
    metadata = job["metadata"]
    return {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}


def job(
    token: str, number: int, node: str, agent_name: str, plan: Mapping[str, Any], settings: JobSettings
) -> dict[str, Any]:
    """The Job of one plan; `plan` as schemas/plan.json."""
    labels = {**dict(settings.labels), RUN_LABEL: token, "app.kubernetes.io/managed-by": "retina-run"}
    notes = {**dict(settings.annotations), RUN_NOTE: str(plan["run"])}
    patience_s = int(2 * plan["ready_timeout_s"]) + 60
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(token, number),
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": notes,
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": patience_s + int(plan["duration_s"] + plan["expiry_s"]) + 600,
            "ttlSecondsAfterFinished": TTL_S,
            "template": {
                "metadata": {"labels": labels, "annotations": notes},
                "spec": _pod(token, node, agent_name, patience_s, plan, settings),
            },
        },
    }


def _pod(
    token: str, node: str, agent_name: str, patience_s: int, plan: Mapping[str, Any], settings: JobSettings
) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        # Not `nodeName`: the scheduler's word on why a pod doesn't fit is worth having.
        "affinity": on_node(node),
        "tolerations": [{"operator": "Exists"}],
        "containers": [_container(agent_name, patience_s, plan, settings)],
        "volumes": [
            {"name": "agent", "configMap": {"name": config_map_name(token)}},
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if plan.get("pod"):
        pod["hostPID"] = True  # /proc/PID/ns/net of the pod that is meant
    for number, path in enumerate(settings.shelves):
        source: dict[str, Any] = {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
        if settings.claim:
            source = {"persistentVolumeClaim": {"claimName": settings.claim}}
        pod["volumes"].append({"name": f"shelf-{number}", **source})
    return {**pod, **admission(settings)}


def on_node(node: str) -> dict[str, Any]:
    """The affinity that pins a pod to a node."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def admission(settings: JobSettings) -> dict[str, Any]:
    """What lets any pod of the settings be made and pull its image."""
    pod: dict[str, Any] = {}
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    return pod


def resources(settings: JobSettings) -> dict[str, dict[str, str]]:
    """Requests and limits of a container."""
    return {kind: dict(p) for kind, p in (("requests", settings.requests), ("limits", settings.limits)) if p}


def _container(agent_name: str, patience_s: int, plan: Mapping[str, Any], settings: JobSettings) -> dict[str, Any]:
    security: dict[str, Any] = {
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"], "add": list(capabilities(plan, settings))},
    }
    if settings.privileged:
        security = {"privileged": True, "runAsUser": 0}
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [*agent_argv(agent_name), "hold", WORK_DIRECTORY, "--limit", str(patience_s)],
        "securityContext": security,
        "resources": resources(settings),
        "volumeMounts": [
            {"name": "agent", "mountPath": AGENT_DIRECTORY, "readOnly": True},
            {"name": "work", "mountPath": VOLUME},
            {"name": "tmp", "mountPath": "/tmp"},
            *({"name": f"shelf-{number}", "mountPath": path} for number, path in enumerate(settings.shelves)),
        ],
    }


def agent_argv(agent_name: str) -> list[str]:
    """How the agent is called in the container."""
    return ["python3", "-I", f"{AGENT_DIRECTORY}/{agent_name}"]


def pairs(given: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """A mapping as a value."""
    return tuple(sorted((str(k), str(v)) for k, v in (given or {}).items()))


def names(given: Iterable[Any] | None) -> tuple[str, ...]:
    return tuple(map(str, given or ()))
