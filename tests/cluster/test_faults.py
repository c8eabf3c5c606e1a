"""What goes wrong in clusters: each is told apart, costs as little as it can, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.runs import PatientRun, Runs, by_node
from tests.cluster.shop import Shop

pytestmark = pytest.mark.cluster


def runbook(
    namespace: str, nodes: list[str], duration: str = "4s", job: str = "", limits: str = "", more: str = ""
) -> str:
    return f"""
name: fault
duration: {duration}
limits: {{{limits}}}
captures:
  - nodes: {{kubernetes: {{nodes: {json.dumps(nodes)}, {more} job: {{namespace: {namespace}, {job}}}}}}}
    collect: [{{tcpdump: {{interfaces: [any]}}}}]
"""


def failures(run: PatientRun) -> dict[str, str]:
    """Why, by node."""
    return {e["node"]: f"{e['what']}: {e['why']} ({e.get('hint', '')})" for e in run.all("node-failed")}


@pytest.mark.parametrize(
    ("more", "job", "reason"),
    [
        ("image: localhost/no-such-image:1,", "image_pull_policy: Never", "ErrImageNeverPull"),
        ("image: 127.0.0.1:1/no-such-image:1,", "", "ImagePullBackOff"),
        ("image: 'No Such Image',", "", "InvalidImageName"),
    ],
)
def test_an_image_that_does_not_exist(
    runs: Runs, cluster: Api, namespace: str, more: str, job: str, reason: str
) -> None:
    """Told in the kubelet's own words, without waiting for ready_timeout."""
    node = sorted(cluster.ready())[0]
    run = runs.start(runbook(namespace, [node], job=job, more=more, limits="ready_timeout: 200s"))
    assert run.end() in (2, 4), (run.events, cluster.state())
    assert reason in failures(run)[node]
    assert "images/node/Containerfile" in failures(run)[node]


def test_pod_security_refuses(runs: Runs, cluster: Api, namespace: str) -> None:
    """The admission's own sentence, and what to do; none of the refused Jobs stays."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    node = sorted(cluster.ready())[0]
    run = runs.start(runbook(namespace, [node], limits="ready_timeout: 200s"))
    assert run.end() in (2, 4), (run.events, cluster.state())
    said = failures(run)[node]
    assert 'violates PodSecurity "restricted' in said
    assert "hostNetwork" in said or "host namespaces" in said
    assert "pod-security.kubernetes.io/enforce=privileged" in said


def test_a_pod_that_fits_nowhere_is_told_by_the_scheduler(runs: Runs, cluster: Api, namespace: str) -> None:
    nodes = sorted(cluster.ready())[:1]
    run = runs.start(runbook(namespace, nodes, job='requests: {cpu: "4000"}', limits="ready_timeout: 20s"))
    assert run.end() in (2, 4), (run.events, cluster.state())
    assert "Insufficient cpu" in failures(run)[nodes[0]]


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("{nodes: [%s-typo]}", "did you mean"),
        ("{namespace: %s, pods: {app: no-such}}", "no pod of namespace"),
        ("{namespace: no-such-namespace, pods: {app: x}}", "no namespace no-such-namespace"),
        ("{namespace: %s, owner: deployment/servr}", "did you mean server?"),
        ("{node_selector: 'no-such-label=1'}", "no node has labels"),
        ("{context: no-such-context, nodes: all}", "has no context no-such-context"),
    ],
)
def test_no_match_is_an_error_with_its_place(runs: Runs, shop: Shop, selection: str, says: str) -> None:
    word = shop.nodes[0] if "typo" in selection else shop.namespace
    where = selection % word if "%s" in selection else selection
    run = runs.start(f"name: none\nduration: 1s\ncaptures:\n  - nodes: {{kubernetes: {where}}}\n")
    assert run.end() == 2
    said = run.stderr
    assert says in said
    assert "runbook.yaml:4:" in said


@pytest.fixture
def drained(cluster: Api) -> Iterator[str]:
    """A node that a test may drain; it takes pods again afterwards."""
    node = sorted(cluster.ready())[1]
    yield node
    cluster.kubectl("uncordon", node)


def test_a_node_drained_in_the_window_gives_what_it_has(runs: Runs, cluster: Api, namespace: str, drained: str) -> None:
    """The window ends there at once, the archive is fetched while the pod may still live, and the others go on."""
    other = sorted(cluster.ready())[0]
    run = runs.start(runbook(namespace, [other, drained], duration="25s"))
    for _ in range(2):
        run.wait_for("window")
    drain = subprocess.Popen(
        [cluster.program(), "--kubeconfig", str(cluster.kubeconfig), "drain", drained, "--ignore-daemonsets", "--force",
         "--delete-emptydir-data", "--pod-selector=batch.kubernetes.io/job-name", "--timeout=200s"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert run.end() == 3, (run.events, cluster.state())
    finally:
        said, _ = drain.communicate(timeout=240)
    assert drain.returncode == 0, said
    archives = by_node(run)
    assert set(archives) == {f"fault/{other}", f"fault/{drained}"}
    assert archives[f"fault/{other}"].lacking() == {}
    assert archives[f"fault/{drained}"].manifest["verdict"] == "partial"
    for archive in archives.values():
        assert verify_archive(archive.path).problems == ()


@pytest.mark.parametrize(("machine", "service"), [("node-2", "kubelet"), ("control-plane", "kube-apiserver")])
def test_a_part_of_the_cluster_that_restarts_in_the_window_costs_nothing(
    own_cluster: Cluster, runs: Runs, namespace: str, machine: str, service: str
) -> None:
    nodes = [own_cluster.nodes[1].name, own_cluster.nodes[2].name]
    run = runs.start(runbook(namespace, nodes, duration="12s"))
    for _ in range(2):
        run.wait_for("window")
    own_cluster.stop(machine, service)
    try:
        run.wait_for("lost")
    finally:
        own_cluster.start(machine, service)
    assert run.end() == 0, (run.events, own_cluster.state())
    assert run.all("reattached")
    archives = by_node(run)
    assert set(archives) == {f"fault/{n}" for n in nodes}
    for archive in archives.values():
        assert archive.lacking() == {}
    own_cluster.eventually(
        lambda: own_cluster.ready() == {n.name for n in own_cluster.nodes.values()}, "all nodes ready"
    )


def test_a_killed_runner_is_resumed_by_another(runs: Runs, cluster: Api, namespace: str) -> None:
    nodes = sorted(cluster.ready())[:2]
    run = runs.start(runbook(namespace, nodes, duration="8s"))
    for _ in range(2):
        run.wait_for("window")
    run.signal(signal.SIGKILL)
    run.process.wait()
    done = runs.command("resume", str(run.directory))
    assert done.returncode == 0, (done.stdout, done.stderr, cluster.state())
    archives = by_node(run)
    assert set(archives) == {f"fault/{n}" for n in nodes}
    for archive in archives.values():
        assert archive.lacking() == {}
        assert verify_archive(archive.path).problems == ()


def test_a_killed_runner_s_jobs_go_by_cleanup(runs: Runs, cluster: Api, namespace: str) -> None:
    nodes = sorted(cluster.ready())[:2]
    run = runs.start(runbook(namespace, nodes, duration="120s"))
    run.wait_for("window")
    run.signal(signal.SIGKILL)
    run.process.wait()
    assert runs.left()
    done = runs.command("cleanup", str(run.directory))
    assert done.returncode == 0, (done.stdout, done.stderr)


def test_what_is_kept_for_a_look_is_named_and_goes_by_cleanup(runs: Runs, cluster: Api, namespace: str) -> None:
    nodes = sorted(cluster.ready())[:2]
    run = runs.start(runbook(namespace, nodes, duration="2s"), "--keep")
    assert run.end() == 0, (run.events, cluster.state())
    assert len(by_node(run)) == 2
    assert runs.left()
    assert run.stderr.count(f"Job {namespace}/") == 2, run.stderr
    assert run.stderr.count("kept for a look: ") == 2
    done = runs.command("cleanup", str(run.directory))
    assert done.returncode == 0, (done.stdout, done.stderr)
    cluster.eventually(lambda: not runs.left(), "nothing is left")


def test_ctrl_c_in_the_window_keeps_what_is_there(runs: Runs, cluster: Api, namespace: str) -> None:
    nodes = sorted(cluster.ready())[:2]
    run = runs.start(runbook(namespace, nodes, duration="300s"))
    for _ in range(2):
        run.wait_for("window")
    run.signal(signal.SIGINT)
    assert run.end() == 130, (run.events, cluster.state())
    archives = by_node(run)
    assert set(archives) == {f"fault/{n}" for n in nodes}
    for archive in archives.values():
        assert verify_archive(archive.path).problems == ()


def test_an_archive_that_is_cut_off_on_its_way_is_resumed(own_cluster: Cluster, runs: Runs, namespace: str) -> None:
    """The API server dies in the middle of 210 MB: the rest is asked for at its offset, and the whole is right."""
    book = f"""
name: cut
duration: 1s
limits: {{memory: 2GiB}}
captures:
  - nodes: {{kubernetes: {{nodes: [{own_cluster.nodes[1].name}], job: {{namespace: {namespace}}}}}}}
    collect: [{{command: {{argv: [head, -c, "210000000", /dev/urandom], output_limit: 250MB, limit: 120s}}}}]
"""
    run = runs.start(book, "--fetch-rate", "15MB/s")  # else all of it may be here before anybody has looked
    run.wait_for("archive")

    def arrived() -> int:
        return sum(p.stat().st_size for p in run.directory.glob("archives/*.part"))

    own_cluster.eventually(lambda: arrived() > 5_000_000 or run.process.poll() is not None, "some of it has come")
    own_cluster.stop("control-plane", "kube-apiserver")
    at = arrived()
    own_cluster.start("control-plane", "kube-apiserver")
    assert run.end() == 0, (run.events, own_cluster.state())
    assert 0 < at < 210_000_000
    assert run.all("reattached")
    assert run.archive().path.stat().st_size > 210_000_000
    assert verify_archive(run.archive().path).problems == ()


@pytest.fixture
def cordoned(cluster: Api) -> Iterator[str]:
    """A node that takes no ordinary pods until the test is over."""
    node = sorted(cluster.ready())[0]
    cluster.kubectl("cordon", node)
    yield node
    cluster.kubectl("uncordon", node)


def test_a_cordoned_node_and_one_that_is_not_ready_are_named_and_asked(
    own_cluster: Cluster, runs: Runs, namespace: str, cordoned: str
) -> None:
    """`all` means all: the cordoned one is captured, the dead one fails by itself and at once, the third isn't concerned."""
    dead, well = own_cluster.nodes[3].name, own_cluster.nodes[2].name
    own_cluster.stop("node-3", "kubelet")
    try:
        own_cluster.eventually(lambda: dead not in own_cluster.ready(), "the node is not ready any more")
        run = runs.start(f"""
name: sick
duration: 2s
captures:
  - nodes: {{kubernetes: {{nodes: all, job: {{namespace: {namespace}}}}}}}
    collect: [network-state]
""")
        assert run.end() == 3, (run.events, own_cluster.state())
    finally:
        own_cluster.start("node-3", "kubelet")
        own_cluster.eventually(lambda: dead in own_cluster.ready(), "the node is ready again")
    assert set(by_node(run)) == {f"sick/{cordoned}", f"sick/{well}"}
    for archive in by_node(run).values():
        assert archive.lacking() == {}
    assert failures(run) == {
        dead: f"node {dead}: not ready: NodeStatusUnknown: Kubelet stopped posting node status. "
        f"(kubectl describe node {dead})"
    }
    said = run.stderr
    assert f"node {cordoned}: cordoned; it is asked nevertheless" in said
    assert f"node {dead}: " in said
    assert "not ready (NodeStatusUnknown)" in said
