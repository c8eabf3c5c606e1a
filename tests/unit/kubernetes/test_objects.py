"""What would be created in a cluster, as golden files: `UPDATE_GOLDEN=1 pytest` writes them anew, for a look at the difference."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.documents import parse_document
from retina_runner.executors.kubernetes import objects, reading, standalone
from retina_runner.executors.kubernetes.api import Pace
from retina_runner.executors.kubernetes.session import OWNERS, Shared
from retina_runner.translate.yaml_text import lines

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = objects.JobSettings(namespace="shop", image="registry.example/node-tools:1")
EVERYTHING = objects.JobSettings(
    namespace="diagnostics", image="registry.example/node-tools:1", image_pull_policy="Always", pull_secrets=("registry",),
    service_account="retina-run", annotations=(("sidecar.istio.io/inject", "false"),), labels=(("team", "network"),),
    priority_class="system-node-critical", requests=(("cpu", "100m"), ("memory", "128Mi")), limits=(("memory", "512Mi"),),
    capabilities=("SYS_ADMIN",), shelves=("/var/lib/retina-run/archives",),
)  # fmt: skip


def plan(*collectors: str, **options: Any) -> dict[str, Any]:
    return {
        "run": "checkout-20260102030405UTC", "duration_s": 60.0, "ready_timeout_s": 60.0, "expiry_s": 21600.0,
        "collectors": [{"id": c, "name": c, "options": options} for c in collectors],
    }  # fmt: skip


def same_as_golden(name: str, manifests: list[Mapping[str, Any]]) -> None:
    text = "---\n".join("\n".join(lines(m)) + "\n" for m in manifests)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    for part, manifest in zip(text.split("---\n"), manifests, strict=True):
        assert parse_document(part.encode(), name).value == manifest


def test_a_job_for_packets() -> None:
    same_as_golden(
        "packets", [objects.job("abc123", 0, "node-1", "agent-0.pyz", plan("tcpdump", "iptables"), SETTINGS)]
    )


def test_everything_that_can_be_said_of_a_job() -> None:
    same_as_golden(
        "everything", [objects.job("abc123", 7, "node-1", "agent-0.pyz", plan("tcpdump", "ebpf"), EVERYTHING)]
    )


SHELF = {"base": "/var/lib/retina-run/archives", "path": "incidents"}


def test_a_job_without_a_runner() -> None:
    """Under the names that its content gives it; a trigger's patience would be with a runner that isn't there."""
    given = {**plan("tcpdump"), "trigger": {"condition": "packets() > 0", "patience_s": 30.0}}
    nameless = objects.job("", 0, "node-1", "agent-0.pyz", given, EVERYTHING)
    token = standalone.token("incident-42", [nameless], [given], [SHELF])
    job = objects.job(token, 0, "node-1", "agent-0.pyz", given, EVERYTHING)
    made = standalone.manifests(token, "agent-0.pyz", b"agent", [job], {job["metadata"]["name"]: given}, [SHELF])
    same_as_golden("standalone", list(made))
    assert standalone.text(made).count("---\n") == 3
    assert given["trigger"]["patience_s"] == 30.0


def test_whatever_is_different_has_other_names_and_every_name_is_a_label() -> None:
    def token(run_id: str = "", settings: objects.JobSettings = SETTINGS, *collectors: str, **shelf: str) -> str:
        given = plan(*(collectors or ("tcpdump",)))
        nameless = objects.job("", 0, "node-1", "agent-0.pyz", given, settings)
        return standalone.token(run_id, [nameless], [given], [{**SHELF, **shelf}])

    different = [
        token(), token("again"), token("again2"), token("", EVERYTHING), token("", SETTINGS, "iptables"),
        token(path="elsewhere"), token("x" * 30),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert token("again") == different[1]
    for made in different:
        assert len(objects.job_name(made, 4999) + "-plan") <= 63
    assert standalone.RUN_ID.fullmatch("x" * 30)
    for bad in ("x" * 31, "", "-a", "a-", "A", "a.b", "a\n"):
        assert not standalone.RUN_ID.fullmatch(bad)


def test_kubectl_can_apply_the_agent_that_travels_in_a_manifest() -> None:
    agent = agent_bundle(compiled=False)
    made = objects.config_map("abc123", "default", "x" * 63, agent.name, agent.content)
    # kubectl apply keeps the object in an annotation, and all annotations together may have 256 KiB.
    assert len(json.dumps(made)) < 256 * 1024 - 4096
    assert len(agent_bundle().content) > len(agent.content)


@pytest.mark.parametrize(
    ("collectors", "expected"),
    [
        (("command",), ()),
        (("files",), ()),
        (("tcpdump",), ("NET_ADMIN", "NET_RAW", "SETGID", "SETUID")),
        (("ebpf",), ("BPF", "NET_ADMIN", "NET_RAW", "PERFMON")),
        (("tcpdump", "ebpf"), ("BPF", "NET_ADMIN", "NET_RAW", "PERFMON", "SETGID", "SETUID")),
    ],
)
def test_only_the_capabilities_that_the_plan_needs(collectors: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert objects.capabilities(plan(*collectors), SETTINGS) == expected


def test_other_namespaces_and_the_runbook_may_add_capabilities() -> None:
    assert "SYS_ADMIN" in objects.capabilities(plan("tcpdump", netns="blue"), SETTINGS)
    assert "SYS_ADMIN" in objects.capabilities(plan("command"), EVERYTHING)


def test_privileged_only_when_asked() -> None:
    def context(settings: objects.JobSettings) -> Any:
        job = objects.job("abc123", 0, "node-1", "agent-0.pyz", plan("tcpdump"), settings)
        return job["spec"]["template"]["spec"]["containers"][0]["securityContext"]

    assert "privileged" not in context(EVERYTHING)
    assert context(EVERYTHING)["readOnlyRootFilesystem"] is True
    asked = objects.JobSettings(namespace="shop", image="i", privileged=True)
    assert context(asked)["privileged"] is True


def test_a_claim_stands_in_for_the_disk_of_the_node() -> None:
    settings = objects.JobSettings(namespace="shop", image="i", shelves=("/archives",), claim="captures")
    pod = objects.job("abc123", 0, "node-1", "a.pyz", plan("tcpdump"), settings)["spec"]["template"]["spec"]
    assert {"name": "shelf-0", "persistentVolumeClaim": {"claimName": "captures"}} in pod["volumes"]
    assert {"name": "shelf-0", "mountPath": "/archives"} in pod["containers"][0]["volumeMounts"]


def test_a_few_jobs_own_what_all_share_and_one_of_them_as_long_as_there_are_any() -> None:
    """In any order in which Jobs come and go, also when an order to delete is given twice."""
    chance = random.Random(7)
    for count in (1, OWNERS, OWNERS + 1, 300):
        shared, there, owners, changes = Shared(), set[str](), set[str](), 0
        for name in [str(n) for n in range(count)]:
            joined = shared.joined({"name": name})
            owners |= {str(o["name"]) for o in joined}
            changes += bool(joined)
            there.add(name)
        assert owners == {str(n) for n in range(min(count, OWNERS))}
        for name in [*chance.sample(sorted(there), count), "0"]:
            heirs = shared.heirs(name)
            owners |= {str(h["name"]) for h in heirs}
            changes += bool(heirs)
            shared.leaving(name, heirs)
            there.discard(name)
            assert not there or owners & there, "the ConfigMap would go while somebody needs it"
            assert shared.left(name) is (not there)
        assert changes <= OWNERS + count / OWNERS + 1


def test_no_more_requests_a_second_than_the_pace() -> None:
    now, slept = [100.0], [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        now[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "retina_runner.executors.kubernetes.api.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
        )
        pace = Pace(per_s=10, burst=20)
        for _ in range(20):
            pace.wait()
        assert slept[0] == 0
        for _ in range(50):
            pace.wait()
        assert slept[0] == pytest.approx(5.0)
        now[0] += 1000
        for _ in range(20):
            pace.wait()
        assert slept[0] == pytest.approx(5.0), "after a quiet time again, and no more than those"
        pace.wait()
        assert slept[0] == pytest.approx(5.1)


def test_the_cluster_ends_what_a_dead_runner_left() -> None:
    spec = objects.job("abc123", 0, "node-1", "a.pyz", plan("tcpdump"), SETTINGS)["spec"]
    assert spec["activeDeadlineSeconds"] > 60 + 21600
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] == 0


def test_what_a_run_records_of_its_jobs_makes_the_same_jobs() -> None:
    assert objects.settings_of(json.loads(json.dumps(asdict(EVERYTHING)))) == EVERYTHING
    assert objects.settings_of({**asdict(SETTINGS), "of_a_newer_version": 1}) == SETTINGS


def test_a_reader_of_a_disk_and_one_of_a_claim() -> None:
    """The least: one folder, read-only; no capability, no network of the node, no token, a bounded life."""
    disk, claim = reading.Shelf("node-1", "/var/lib/retina-run/archives/incidents"), reading.Shelf("", "", "captures")
    run = "checkout-20260102030405UTC"
    same_as_golden(
        "reading",
        [
            reading.job("abc123", "retina-run-abc123-read-0", run, disk, EVERYTHING, 640),
            reading.job("abc123", "retina-run-abc123-read-1", run, claim, replace(SETTINGS, claim="captures"), 600),
        ],
    )


def test_a_reader_is_never_privileged() -> None:
    shelf = reading.Shelf("node-1", "/archives")
    made = reading.job("abc123", "r", "run", shelf, replace(EVERYTHING, privileged=True), 600)
    context = made["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context
