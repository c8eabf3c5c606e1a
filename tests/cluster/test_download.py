"""`retina-run download` from nodes' disks and claims: by a short-lived pod, whole, and nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.archive import digest_of
from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.filling import full
from tests.cluster.runs import LABEL, PatientRun, Runs

pytestmark = pytest.mark.cluster

BASE = "/var/lib/retina-run/archives"
LARGE = 210_000_000


def kept(
    runs: Runs, nodes: list[str], namespace: str, folder: str, job: str = "", size: int = 100_000, limits: str = ""
) -> PatientRun:
    """A run whose archives, of at least that size, are on the nodes and nowhere else."""
    run = runs.start(f"""
name: shelf
duration: 1s
keep: never
limits: {{memory: 2GiB, {limits}}}
captures:
  - nodes: {{kubernetes: {{nodes: {json.dumps(nodes)}, job: {{namespace: {namespace}, {job}}}}}}}
    collect: [{{command: {{argv: [head, -c, "{size}", /dev/urandom], output_limit: 250MB, limit: 120s, when: [after]}}}}]
upload: [{{host_path: {{path: {folder}}}}}]
""")
    assert run.end() == 0, (run.events, runs.api.state())
    assert run.archives() == []
    return run


def rows(run: PatientRun) -> dict[str, dict[str, Any]]:
    """The run's record of each node."""
    return {n["node"]: n for n in run.summary()["nodes"]}


def same(run: PatientRun, node: str, folder: Path) -> None:
    """The node's archive came to the folder, as it was when it was packed."""
    row = rows(run)[node]
    path = folder / Path(row["uploads"][0]["location"]).name
    assert digest_of(path) == (row["size_bytes"], row["sha256"])
    assert verify_archive(path).problems == ()


def readers(api: Api, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("jobs", "-n", namespace, "-l", LABEL)["items"]
    return found


@pytest.fixture
def folder(own_cluster: Cluster, namespace: str) -> Iterator[str]:
    """A folder below BASE that is gone from the nodes afterwards."""
    yield namespace
    for number in own_cluster.nodes:
        own_cluster.node_run(number, "rm", "-rf", f"{BASE}/{namespace}")


def test_from_the_disks_of_two_nodes_or_of_one(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    nodes = sorted(own_cluster.ready())[:2]
    run = kept(runs, nodes, namespace, folder)
    one = runs.command("download", str(run.directory), "--node", nodes[1], "--output", str(tmp_path / "one"))
    assert one.returncode == 0, (one.stdout, one.stderr, own_cluster.state())
    assert len(list((tmp_path / "one").iterdir())) == 1  # nothing but the archive
    same(run, nodes[1], tmp_path / "one")
    both = runs.command("download", str(run.directory), "--output", str(tmp_path / "both"))
    assert both.returncode == 0, (both.stdout, both.stderr)
    assert both.stdout.count(": ok\n") == 2
    for node in nodes:
        same(run, node, tmp_path / "both")
    assert readers(own_cluster, namespace) == []
    none = runs.command("download", str(run.directory), "--node", nodes[1] + "x", "--output", str(tmp_path / "none"))
    assert none.returncode == 2
    assert f"did you mean {nodes[1]}" in none.stderr


def test_from_a_claim_wherever_it_can_be_mounted(
    own_cluster: Cluster, runs: Runs, namespace: str, tmp_path: Path
) -> None:
    """The claim's volume is one node's; nobody tells the download which."""
    node, place = own_cluster.nodes[2], f"/var/lib/retina-run/claims/{namespace}"
    own_cluster.node_run(2, "mkdir", "-p", place)
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}]}]
    sizes = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = {
        **sizes, "capacity": {"storage": "1Gi"}, "local": {"path": place}, "persistentVolumeReclaimPolicy": "Delete",
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
    }  # fmt: skip
    claim = {**sizes, "volumeName": namespace, "resources": {"requests": {"storage": "1Gi"}}}
    own_cluster.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "captures", "namespace": namespace},
         "spec": claim},
    )  # fmt: skip
    try:
        run = kept(runs, [node.name], namespace, "incidents", job="claim: captures")
        assert own_cluster.node_run(2, "ls", f"{place}/incidents").strip().endswith(".tar.gz")
        back = runs.command("download", str(run.directory), "--output", str(tmp_path / "back"))
        assert back.returncode == 0, (back.stdout, back.stderr, own_cluster.state())
        same(run, node.name, tmp_path / "back")
        own_cluster.kubectl("delete", "pvc", "-n", namespace, "captures")
        gone = runs.command("download", str(run.directory), "--output", str(tmp_path / "gone"))
        assert gone.returncode == 4
        assert 'persistentvolumeclaim "captures" not found' in gone.stdout
    finally:
        own_cluster.kubectl("delete", "pv", namespace, "--wait=false", "--ignore-not-found")
        own_cluster.node_run(2, "rm", "-rf", place)


def test_what_is_wrong_is_told_apart(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    """Another content, a file that is gone, a folder that is gone; each without waiting for the pod's time to be over."""
    node = own_cluster.nodes[1].name
    run = kept(runs, [node], namespace, folder, limits="ready_timeout: 150s")
    archive = rows(run)[node]["uploads"][0]["location"]

    def said(status: int = 4) -> str:
        back = runs.command("download", str(run.directory), "--output", str(tmp_path / "back"))
        assert back.returncode == status, (back.stdout, back.stderr)
        assert list((tmp_path / "back").iterdir()) == []
        assert readers(own_cluster, namespace) == []
        return back.stdout

    own_cluster.node_run(1, "dd", "if=/dev/urandom", f"of={archive}", "bs=1", "count=9", "seek=500", "conv=notrunc")
    assert "another sha256 than the node's" in said()
    own_cluster.node_run(1, "rm", archive)
    assert "No such file or directory" in said()
    own_cluster.node_run(1, "rmdir", f"{BASE}/{folder}")
    assert f"hostPath type check failed: {BASE}/{folder} is not a directory" in said()


def test_a_node_without_room_and_a_node_that_is_gone(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    """In the scheduler's words, and in the API server's."""
    node = own_cluster.nodes[3].name
    run = kept(runs, [node], namespace, folder, job="requests: {cpu: 200m}", limits="ready_timeout: 30s")
    words = ("download", str(run.directory), "--output", str(tmp_path / "back"))
    with full(own_cluster, namespace, node):
        back = runs.command(*words)
        assert back.returncode == 4
        assert "Insufficient cpu" in back.stdout
    own_cluster.stop("node-3", "kubelet")
    try:
        own_cluster.kubectl("delete", "node", node)
        back = runs.command(*words)
        assert back.returncode == 4
        assert f'nodes "{node}" not found' in back.stdout
    finally:
        own_cluster.start("node-3", "kubelet")
        own_cluster.eventually(lambda: node in own_cluster.ready(), "the node is back")
    assert runs.command(*words).returncode == 0
    same(run, node, tmp_path / "back")


def arrived(folder: Path) -> int:
    size = 0
    for part in folder.glob(".retina-run-download/*.part"):
        with contextlib.suppress(FileNotFoundError):  # it is whole, and has its name, since it was listed
            size += part.stat().st_size
    return size


def begun(runs: Runs, run: PatientRun, folder: Path) -> subprocess.Popen[str]:
    """A download of which some has come, and at least a half hasn't: it stands still until SIGCONT. One that a crowded machine
    let come further meanwhile is begun again, from nothing. Its rate leaves time to stop it: all would come within two seconds."""
    while True:
        before = arrived(folder)
        process = runs.begin("download", str(run.directory), "--output", str(folder), "--fetch-rate", "10MB/s")
        while process.poll() is None and arrived(folder) <= before + 5_000_000:
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        if process.poll() is None and before + 5_000_000 < arrived(folder) < LARGE // 2:
            return process
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (out, err)
        for whole in folder.glob("*.tar.gz"):
            whole.unlink()


def test_two_hundred_megabytes_whatever_happens(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    """The API server restarts; the user presses Ctrl-C; the runner is terminated, or killed: nothing is lost, nothing stays."""
    node = own_cluster.nodes[1].name
    run = kept(runs, [node], namespace, folder, size=LARGE)

    restarted = begun(runs, run, tmp_path / "restarted")
    own_cluster.stop("control-plane", "kube-apiserver")
    at = arrived(tmp_path / "restarted")
    own_cluster.start("control-plane", "kube-apiserver")
    restarted.send_signal(signal.SIGCONT)
    out, err = restarted.communicate(timeout=240)
    assert restarted.returncode == 0, (out, err, own_cluster.state())
    assert 0 < at < LARGE
    same(run, node, tmp_path / "restarted")

    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        interrupted = begun(runs, run, tmp_path / "interrupted")
        interrupted.send_signal(number)
        interrupted.send_signal(signal.SIGCONT)
        out, err = interrupted.communicate(timeout=120)
        assert interrupted.returncode == status, (out, err)
        assert "Traceback" not in err
        assert readers(own_cluster, namespace) == []
    there = arrived(tmp_path / "interrupted")
    assert 5_000_000 < there < LARGE

    killed = begun(runs, run, tmp_path / "interrupted")
    killed.kill()
    killed.wait()
    (job,) = readers(own_cluster, namespace)
    token = job["metadata"]["labels"][LABEL]
    assert token == rows(run)[node]["reach"]["token"]
    assert job["spec"]["activeDeadlineSeconds"] < 1800
    cleaned = runs.command("cleanup", str(run.directory))
    assert cleaned.returncode == 0, cleaned
    assert f"Job {namespace}/{job['metadata']['name']}: removed" in cleaned.stdout
    assert readers(own_cluster, namespace) == []

    done = runs.command("download", str(run.directory), "--output", str(tmp_path / "interrupted"))
    assert done.returncode == 0, (done.stdout, done.stderr)
    same(run, node, tmp_path / "interrupted")


def test_a_dead_runner_s_reader_is_ended_and_removed_by_the_cluster(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    """By its own limits, which the test makes short: what is proved is that they hold."""
    node = own_cluster.nodes[1].name
    run = kept(runs, [node], namespace, folder, size=LARGE)
    killed = begun(runs, run, tmp_path / "back")
    killed.kill()
    killed.wait()
    (job,) = readers(own_cluster, namespace)
    assert job["spec"]["ttlSecondsAfterFinished"] <= 60
    limits = json.dumps({"spec": {"activeDeadlineSeconds": 1, "ttlSecondsAfterFinished": 0}})
    own_cluster.kubectl("patch", "job", "-n", namespace, job["metadata"]["name"], "-p", limits)
    own_cluster.eventually(lambda: not runs.left(), "the Job and its pod are gone")


def test_the_reader_may_do_nothing_but_read(
    own_cluster: Cluster, runs: Runs, namespace: str, folder: str, tmp_path: Path
) -> None:
    """Seen from inside: no capability, no network of the node, no token, and the folder can't be written."""
    node = own_cluster.nodes[1].name
    run = kept(runs, [node], namespace, folder, size=LARGE)
    process = begun(runs, run, tmp_path / "back")
    try:
        (pod,) = own_cluster.get("pods", "-n", namespace, "-l", LABEL)["items"]
        look = (
            "import os, json\n"
            "tried = []\n"
            "for path in ('/archives/x', '/x', '/tmp/x'):\n"
            "    try:\n"
            "        open(path, 'w'); tried.append(path)\n"
            "    except OSError: pass\n"
            "caps = [l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapBnd', 'CapPrm'))]\n"
            "print(json.dumps([tried, caps, os.path.exists('/var/run/secrets/kubernetes.io'), os.listdir('/archives'),"
            " os.listdir('/sys/class/net')]))"
        )
        told = own_cluster.kubectl("exec", "-n", namespace, pod["metadata"]["name"], "--", "python3", "-c", look)
    finally:
        process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    written, capabilities, token, files, links = json.loads(told)
    assert written == []
    assert set(capabilities) == {"0" * 16}
    assert token is False
    assert len(files) == 1
    assert not pod["spec"].get("hostNetwork")
    assert "cni0" not in links
