"""The cluster that tests run on: the one that KUBECONFIG names, or the harness's own.

Tests here carry the marker `cluster` and run only when `-m` asks for it. On a cluster of yours the image of
`images/node/Containerfile` must be on every node, under the name that RETINA_RUN_NODE_IMAGE says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.image import NODE_IMAGE
from tests.cluster.runner_image import RUNNER_IMAGE, runner_archive
from tests.cluster.runs import Runs
from tests.cluster.shop import Shop

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a limit that a bring-up fits in."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Api]:
    """A cluster with at least three ready nodes."""
    given = os.environ.get("KUBECONFIG")
    if given:
        yield Api(Path(given), os.environ.get("RETINA_RUN_NODE_IMAGE") or NODE_IMAGE)
        return
    own = Cluster()
    was_up = own.alive("control-plane")
    try:
        own.up()
        yield own
    finally:
        if not was_up:
            own.down()


@pytest.fixture(scope="session")
def own_cluster(cluster: Api) -> Cluster:
    """The harness's own cluster: for tests that stop kubelets and API servers."""
    if not isinstance(cluster, Cluster):
        pytest.skip("stops parts of the cluster, which KUBECONFIG's owner may not like: unset KUBECONFIG")
    return cluster


@pytest.fixture(scope="session")
def runner_image(cluster: Api) -> str:
    """The image of `images/runner/Containerfile`, by the name under which the nodes have it."""
    if isinstance(cluster, Cluster):
        cluster.load(runner_archive())
        return RUNNER_IMAGE
    given = os.environ.get("RETINA_RUN_RUNNER_IMAGE")
    if not given:
        pytest.skip("RETINA_RUN_RUNNER_IMAGE names the image of images/runner/Containerfile on KUBECONFIG's cluster")
    return given


@pytest.fixture
def namespace(cluster: Api, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"t-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**8}"
    cluster.kubectl("create", "namespace", name)
    try:
        cluster.eventually(
            lambda: cluster.get("serviceaccount", "default", "-n", name), f"{name} has its service account"
        )
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def shop(cluster: Api, namespace: str) -> Shop:
    """Client, server and bystander, running on three nodes."""
    opened = Shop(cluster, namespace)
    opened.open()
    return opened


@pytest.fixture
def runs(cluster: Api, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Starts runs; in the end nothing of them is left in the cluster."""
    if "namespace" in request.fixturenames:
        request.getfixturevalue("namespace")  # goes later than this, or it would take along what the runs have left
    started = Runs(cluster, tmp_path)
    try:
        yield started
        cluster.eventually(lambda: not started.left(), "nothing of the runs is left")
    finally:
        started.close()
