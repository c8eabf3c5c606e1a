"""deploy/rbac.yaml, made from `api.RIGHTS`: what is asked of the API is what is granted.

`python -m retina_runner.executors.kubernetes.rbac > deploy/rbac.yaml` writes it again; a test fails when it is older.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from retina_runner.executors.kubernetes.api import RIGHTS, Right

NAME = "retina-run"
NAMESPACE = "retina-run"
OF_THE_CLUSTER = ("nodes", "namespaces")
"""Resources without a namespace."""
OF_THE_JOBS = ("jobs", "configmaps", "pods/exec", "events")
"""What is only asked for in the namespace where the Jobs are; pods are watched there."""
HEAD = """\
# Made by `python -m retina_runner.executors.kubernetes.rbac` from what retina-run calls; edit that.
#
#   retina-run-choose   read nodes, and pods with what owns them: to choose where
#   retina-run-jobs     Jobs, the agent's ConfigMap, exec: bound in the namespace of the Jobs only
#
# Bound to the service account retina-run of the namespace retina-run. For people, bind the same two roles to them.
# exec into pods of a namespace is as much as owning it: keep the Jobs in a namespace of their own (job: {namespace: …}),
# which also lets Pod Security be `privileged` there and nowhere else.
"""


def manifests() -> list[dict[str, Any]]:
    """Namespace, service account, two ClusterRoles and their bindings."""
    choose = [_reading(r) for r in RIGHTS if r.resource not in OF_THE_JOBS]
    jobs = [r for r in RIGHTS if r.resource in OF_THE_JOBS or r.resource == "pods"]
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    namespace = _object("v1", "Namespace", NAMESPACE, "")
    namespace["metadata"]["labels"] |= {"pod-security.kubernetes.io/enforce": "privileged"}
    return [
        namespace,
        _object("v1", "ServiceAccount", NAME, NAMESPACE),
        {**_object("rbac.authorization.k8s.io/v1", "ClusterRole", f"{NAME}-choose", ""), "rules": _rules(choose)},
        {**_object("rbac.authorization.k8s.io/v1", "ClusterRole", f"{NAME}-jobs", ""), "rules": _rules(jobs)},
        _binding("ClusterRoleBinding", f"{NAME}-choose", "", subjects),
        _binding("RoleBinding", f"{NAME}-jobs", NAMESPACE, subjects),
    ]


def _reading(right: Right) -> Right:
    """The right without `watch`: chosen pods are listed, only the Jobs' own are watched."""
    return Right(right.group, right.resource, tuple(v for v in right.verbs if v != "watch"), right.why)


def _rules(rights: Iterable[Right]) -> list[dict[str, Any]]:
    return [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in rights]


def _binding(kind: str, name: str, namespace: str, subjects: list[dict[str, str]]) -> dict[str, Any]:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    made = _object("rbac.authorization.k8s.io/v1", kind, name, namespace)
    return {**made, "roleRef": role, "subjects": subjects}


def _object(version: str, kind: str, name: str, namespace: str) -> dict[str, Any]:
    where = {"namespace": namespace} if namespace else {}
    labels = {"app.kubernetes.io/name": "retina-run"}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **where, "labels": labels}}


def text() -> str:
    """The file."""
    from retina_runner.translate.yaml_text import lines

    return HEAD + "".join("---\n" + "\n".join(lines(m)) + "\n" for m in manifests())


if __name__ == "__main__":
    sys.stdout.write(text())
