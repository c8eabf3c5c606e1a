"""A schedule as Kubernetes objects: a CronJob that runs the runner in the cluster, with an identity that may do just that.

Rights are by namespace where they can be: Jobs, ConfigMaps and exec only where the Jobs are; pods and their owners are
read where the runbook chooses pods; nodes (and namespaces, for a selector of them) are the cluster's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retina_runner.schedule import Schedule

WORK = "/work"
RUNBOOK = "/etc/retina-run"
JOB_RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("batch", ("jobs",), ("create", "get", "list", "delete")),
    ("", ("configmaps",), ("create", "patch", "delete")),
    ("", ("pods",), ("get", "list", "watch")),
    ("", ("pods/exec",), ("create", "get")),
    ("", ("events",), ("list",)),
)
"""What the Kubernetes executor calls in the namespace of its Jobs."""
POD_RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (("", ("pods",), ("get", "list")),)
OWNER_RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("apps", ("deployments", "replicasets", "statefulsets", "daemonsets"), ("get", "list")),
    ("", ("services",), ("get", "list")),
)


def cron_job(
    schedule: Schedule, text: str, selections: Sequence[Mapping[str, Any]], namespace: str, image: str, claim: str,
    variables: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The objects, in the order in which they are made. `text` is the runbook's own, `selections` its `kubernetes` nodes.

    `claim` is a PersistentVolumeClaim for the run directories; without one they go with the pod. `variables` are of the
    runner's environment.
    """
    unit = schedule.unit
    labels = {"app.kubernetes.io/name": "retina-run", "app.kubernetes.io/instance": unit}
    return [
        _object("v1", "ServiceAccount", unit, namespace, labels),
        *_rights(unit, namespace, labels, selections),
        {**_object("v1", "ConfigMap", unit, namespace, labels), "data": {"runbook.yaml": text}},
        cron_object(schedule, unit, namespace, labels, runner_pod(schedule, unit, image, claim, variables or {})),
    ]


def cron_object(
    schedule: Schedule,
    unit: str,
    namespace: str,
    labels: Mapping[str, str],
    pod: Mapping[str, Any],
    suspend: bool = False,
) -> dict[str, Any]:
    """The CronJob alone; `suspend`: it waits to be asked (kubectl create job --from=cronjob/…)."""
    return {
        **_object("batch/v1", "CronJob", unit, namespace, labels),
        "spec": {
            "schedule": schedule.cron.text,
            "timeZone": "Etc/UTC" if schedule.timezone == "UTC" else schedule.timezone,
            **({"suspend": True} if suspend else {}),
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 300,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 5,
            "jobTemplate": {
                "metadata": {"labels": labels},
                "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
            },
        },
    }


def runner_pod(schedule: Schedule, unit: str, image: str, claim: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """The runner's pod. `unit` is the name of its service account, of the ConfigMap that holds `runbook.yaml`, and of the
    Secret that holds the variables which the runbook names. Where that isn't there the run says which one it misses; a pod that
    waited for it would hold up all later ones.
    """
    volume = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    return {
        "serviceAccountName": unit,
        "restartPolicy": "Never",
        # A drained or deleted pod has that long to end the windows and to fetch.
        "terminationGracePeriodSeconds": 300,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "runner",
                "image": image,
                "command": list(schedule.command(jitter=True)),
                "workingDir": WORK,
                "env": [
                    *({"name": k, "value": v} for k, v in {"HOME": WORK, **variables}.items()),
                    *({"name": s, "valueFrom": {"secretKeyRef": {"name": unit, "key": s, "optional": True}}} for s in schedule.secrets),
                ],
                "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                    "capabilities": {"drop": ["ALL"]}},
                "resources": {
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                    "limits": {"cpu": f"{schedule.cpu_percent * 10}m", "memory": str(schedule.memory_bytes)},
                },
                "volumeMounts": [
                    {"name": "work", "mountPath": WORK},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "runbook", "mountPath": RUNBOOK, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "work", **volume},
            {"name": "tmp", "emptyDir": {}},
            {"name": "runbook", "configMap": {"name": unit}},
        ],
    }  # fmt: skip


def _rights(
    unit: str, namespace: str, labels: Mapping[str, str], selections: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    rules: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = {}
    cluster: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [("", ("nodes",), ("get", "list"))]
    for selection in selections:
        own = str(selection.get("namespace") or namespace)
        jobs = str((selection.get("job") or {}).get("namespace") or own)
        rules.setdefault(jobs, []).extend(JOB_RULES)
        wanted = [*POD_RULES, *(OWNER_RULES if selection.get("owner") or selection.get("service") else ())]
        if selection.get("namespaces"):
            cluster += [("", ("namespaces",), ("get", "list")), *wanted]
        elif any(selection.get(k) for k in ("pods", "pod_names", "owner", "service")):
            rules.setdefault(own, []).extend(wanted)
    subjects = [{"kind": "ServiceAccount", "name": unit, "namespace": namespace}]
    for place, found in rules.items():
        yield {**_object("rbac.authorization.k8s.io/v1", "Role", unit, place, labels), "rules": _merged(found)}
        yield {**_object("rbac.authorization.k8s.io/v1", "RoleBinding", unit, place, labels), "subjects": subjects,
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": unit}}  # fmt: skip
    whole = f"{unit}-{namespace}"  # the cluster's names are everybody's
    yield {**_object("rbac.authorization.k8s.io/v1", "ClusterRole", whole, "", labels), "rules": _merged(cluster)}
    yield {**_object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", whole, "", labels), "subjects": subjects,
           "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": whole}}  # fmt: skip


def _merged(rules: Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> list[dict[str, Any]]:
    verbs: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for group, resources, more in rules:
        verbs.setdefault((group, resources), {}).update(dict.fromkeys(more))
    return [{"apiGroups": [g], "resources": list(r), "verbs": list(v)} for (g, r), v in verbs.items()]


def _object(version: str, kind: str, name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    where = {"namespace": namespace} if namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **where, "labels": dict(labels)}}
