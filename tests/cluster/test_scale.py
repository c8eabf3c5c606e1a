"""More nodes than any test has machines for: what the runner asks of a real API server about them, counted."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.executors.kubernetes import choosing, kubeconfig, objects
from retina_runner.executors.kubernetes.api import PAGE, Api
from retina_runner.executors.kubernetes.session import OWNERS, Session
from retina_runner.verification import verify_archive
from tests.cluster.api import Api as Kubectl
from tests.cluster.crowd import Crowd, unhurried
from tests.cluster.runs import Runs
from tests.executors.conformance import plan_of

pytestmark = pytest.mark.cluster

MANY = PAGE + 20


@pytest.fixture
def access(cluster: Kubectl) -> kubeconfig.Access:
    return kubeconfig.Access(kubeconfig.find(str(cluster.kubeconfig), ""))


@pytest.fixture
def crowd(access: kubeconfig.Access) -> Iterator[Crowd]:
    made = Crowd(unhurried(access), f"crowd-{secrets.token_hex(3)}", MANY)
    try:
        made.open()
        yield made
    finally:
        made.close()


def test_nodes_are_listed_in_pages_and_each_that_cannot_is_told_by_itself(
    cluster: Kubectl, runs: Runs, crowd: Crowd, access: kubeconfig.Access, namespace: str
) -> None:
    """Nobody's kubelet answers, but one node's: the others are refused one by one, and cost that one nothing."""
    api = Api(access)
    chosen = choosing.choose(api, {"node_selector": crowd.selector}, "default").nodes
    assert [c.node for c in chosen] == crowd.nodes
    assert api.requests == 2, "a page, and the rest"
    cluster.eventually(
        lambda: (
            "Ready" not in cluster.kubectl("get", "nodes", "-l", crowd.selector, "--no-headers").replace("NotReady", "")
        ),
        "the node controller has missed their kubelets",
        400,
    )
    real = sorted(cluster.ready())[0]
    # Quietly: a line of notes for each node is more than a pipe holds that nobody reads before the end.
    run = runs.start(
        f"""
name: crowd
duration: 2s
limits: {{ready_timeout: 200s}}
captures:
  - nodes: {{kubernetes: {{nodes: [{", ".join([real, *crowd.nodes])}], job: {{namespace: {namespace}}}}}}}
    collect: [network-state]
""",
        "--quiet",
    )
    assert run.end() == 3, (run.events[-5:], run.stderr)
    failed = {e["node"]: e["why"] for e in run.all("node-failed")}
    assert set(failed) == set(crowd.nodes)
    assert all(why.startswith("not ready: ") for why in failed.values())
    assert run.archive().manifest["node"] == real
    assert verify_archive(run.archive().path).problems == ()


def test_a_job_is_one_request_and_a_few_of_them_own_the_agent(cluster: Kubectl, namespace: str) -> None:
    """Created by many threads, as a run does, and removed in another order; nothing is left."""
    count, token, agent = 100, secrets.token_hex(3), agent_bundle()
    plan = plan_of("kubernetes", "nobody").document
    settings = objects.JobSettings(namespace, cluster.image)
    jobs = [objects.job(token, number, f"nobody-{number}", agent.name, plan, settings) for number in range(count)]
    for made in jobs:
        made["spec"]["suspend"] = True  # no pods: it is about the runner's own requests
    session = Session(str(cluster.kubeconfig), "", token)
    try:
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda job: session.create(job, agent), jobs))
        assert session.api.requests == 1 + count + OWNERS
        name = objects.config_map_name(token)
        owners = cluster.get("configmap", name, "-n", namespace)["metadata"]["ownerReferences"]
        there = {j["metadata"]["name"] for j in cluster.get("jobs", "-n", namespace)["items"]}
        assert len(there) == count
        assert len(owners) == OWNERS
        assert {o["name"] for o in owners} <= there
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda job: session.delete(namespace, str(job["metadata"]["name"])), reversed(jobs)))
        assert session.api.requests <= 2 * (1 + count + OWNERS) + count // OWNERS
        cluster.eventually(
            lambda: not cluster.get("jobs,configmaps", "-n", namespace, "-l", f"{objects.RUN_LABEL}={token}")["items"],
            "nothing of it is left",
        )
    finally:
        session.close()
