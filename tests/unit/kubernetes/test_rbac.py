"""deploy/: the rights are those that are asked for, no more and no less, and the file is as new as the code."""

from __future__ import annotations

from pathlib import Path

from retina_runner.documents import parse_document
from retina_runner.executors.kubernetes import rbac
from retina_runner.executors.kubernetes.api import RIGHTS

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


def test_the_file_is_as_new_as_what_it_is_made_from() -> None:
    assert (DEPLOY / "rbac.yaml").read_text() == rbac.text()


def test_both_roles_together_are_what_is_asked_for() -> None:
    granted = {
        (group, resource, verb)
        for made in rbac.manifests() if made["kind"] == "ClusterRole"
        for rule in made["rules"] for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert granted == {(r.group, r.resource, v) for r in RIGHTS for v in r.verbs}
    assert not any(verb in ("*", "escalate", "impersonate", "bind") for _, _, verb in granted)
    assert not any(resource in ("secrets", "*") for _, resource, _ in granted)


def test_what_changes_the_cluster_is_granted_in_one_namespace_only() -> None:
    roles = {m["metadata"]["name"]: m for m in rbac.manifests() if m["kind"] == "ClusterRole"}
    whole = next(m for m in rbac.manifests() if m["kind"] == "ClusterRoleBinding")["roleRef"]["name"]
    assert {v for rule in roles[whole]["rules"] for v in rule["verbs"]} <= {"get", "list"}
    bound = next(m for m in rbac.manifests() if m["kind"] == "RoleBinding")
    assert bound["metadata"]["namespace"] == rbac.NAMESPACE
    assert not {r for rule in roles[bound["roleRef"]["name"]]["rules"] for r in rule["resources"]} & set(
        rbac.OF_THE_CLUSTER
    )


def test_the_documents_are_yaml_and_kustomize_names_them() -> None:
    _, *documents = rbac.text().split("---\n")
    assert [parse_document(d.encode(), "rbac.yaml").value for d in documents] == rbac.manifests()
    assert parse_document((DEPLOY / "kustomization.yaml").read_bytes(), "k").value["resources"] == ["rbac.yaml"]
