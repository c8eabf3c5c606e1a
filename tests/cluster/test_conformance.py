"""The conformance suite of executors over Kubernetes: a Job on a real cluster."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.link import PodLink
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.executors.kubernetes.session import Session
from tests.cluster.api import Api
from tests.executors.conformance import Bench, Conformance, plan_of

pytestmark = pytest.mark.cluster


class TestKubernetes(Conformance):
    @pytest.fixture
    def bench(self, cluster: Api, namespace: str) -> Iterator[Bench]:
        token, node = secrets.token_hex(3), sorted(cluster.ready())[0]
        settings = objects.JobSettings(namespace, cluster.image)
        plan = plan_of("kubernetes", node)
        job = objects.job(token, 0, node, agent_bundle().name, plan.document, settings)
        to = PodReach(str(cluster.kubeconfig), "", namespace, objects.job_name(token, 0), node, token, 200.0)
        sessions = [Session(to.kubeconfig, to.context, token) for _ in range(2)]
        yield Bench(
            "kubernetes",
            objects.WORK_DIRECTORY,
            lambda: PodLink(sessions[0], to, job),
            lambda: PodLink(sessions[1], to, None),
        )
        for session in sessions:
            session.close()
        cluster.eventually(
            lambda: (
                not cluster.get("jobs,pods,configmaps", "-n", namespace, "-l", f"{objects.RUN_LABEL}={token}")["items"]
            ),
            "nothing of it is left",
        )
