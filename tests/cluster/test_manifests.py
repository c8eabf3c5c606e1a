"""Manifests on a real API server: valid to the letter, carried out by themselves; kustomize and the kubectl plug-in work."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retina_runner import __version__
from retina_runner.documents import parse_document
from retina_runner.executors.kubernetes import krew
from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.runs import LABEL, Runs
from tests.cluster.shop import Shop
from tests.lab import REPOSITORY

pytestmark = pytest.mark.cluster

RUNBOOK = """
name: alone
duration: 2s
captures:
  - nodes: {{kubernetes: {{nodes: all, namespace: {namespace}, job: {{
      requests: {{cpu: 10m, memory: 64Mi}}, limits: {{memory: 1Gi}}, annotations: {{"example.com/note": "yes"}}, labels: {{team: network}},
      service_account: default, pull_secrets: [none]}}}}}}
    collect: [tcpdump, iptables, network-state, ebpf]
"""


def test_the_api_server_finds_nothing_wrong_and_the_jobs_need_no_runner(
    runs: Runs, cluster: Api, namespace: str, tmp_path: Path
) -> None:
    runbook = tmp_path / "alone.yaml"
    runbook.write_text(RUNBOOK.format(namespace=namespace))
    printed = runs.command("plan", "--manifests", str(runbook))
    assert printed.returncode == 0, printed.stderr
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=printed.stdout)
    cluster.kubectl("apply", "-f", "-", stdin=printed.stdout)
    _, *documents = printed.stdout.split("---\n")
    label = parse_document(documents[0].encode(), "first").value["metadata"]["labels"][LABEL]

    def pods() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.get("pods", "-n", namespace, "-l", f"{LABEL}={label}")["items"]
        return found

    def said() -> list[str]:
        return [
            cluster.kubectl("logs", "-n", namespace, p["metadata"]["name"])
            for p in pods()
            if p["status"]["phase"] == "Running"
        ]

    cluster.eventually(
        lambda: sum('"archive"' in text for text in said()) == len(documents) // 2, "every Job has its archive", 300
    )
    for pod in pods():
        name = pod["metadata"]["name"]
        archive = json.loads(cluster.kubectl("logs", "-n", namespace, name).splitlines()[0])
        here = tmp_path / Path(archive["path"]).name
        cluster.kubectl("cp", f"{namespace}/{name}:{archive['path']}", str(here))
        checked = verify_archive(here)
        assert checked.problems == ()
        assert pod["spec"]["nodeName"] in here.name
    cluster.kubectl("delete", "job,configmap", "-n", namespace, "-l", f"{LABEL}={label}")
    cluster.eventually(lambda: not pods(), "the pods are gone", 300)


def test_the_plan_says_which_jobs_with_which_capabilities(runs: Runs, namespace: str, tmp_path: Path) -> None:
    runbook = tmp_path / "alone.yaml"
    runbook.write_text(RUNBOOK.format(namespace=namespace))
    told = runs.command("plan", str(runbook))
    assert told.returncode == 0, told.stderr
    capabilities = "BPF, NET_ADMIN, NET_RAW, PERFMON, SETGID, SETUID, SYSLOG"
    assert told.stdout.count(f"; capabilities: {capabilities}\n") >= 3
    assert f"Job {namespace}/retina-run-" in told.stdout


def test_a_capture_of_retina_as_it_stands(runs: Runs, cluster: Api, shop: Shop, tmp_path: Path) -> None:
    """Retina's own manifest: the pod's node, its packets, its folder on the node's disk."""
    manifest = tmp_path / "capture.yaml"
    manifest.write_text(f"""
apiVersion: retina.sh/v1alpha1
kind: Capture
metadata: {{name: capture-shop, namespace: {shop.namespace}}}
spec:
  captureConfiguration:
    captureTarget: {{podSelector: {{matchLabels: {{app: server}}}}}}
    captureOption: {{duration: 2s, packetSize: 96, noResolveDNS: true}}
  outputConfiguration: {{hostPath: tests}}
""")
    ended = runs.command("run", "--output", str(tmp_path / "runs"), str(manifest))
    assert ended.returncode == 0, ended.stderr + ended.stdout
    (archive,) = (tmp_path / "runs").glob("*/archives/*.tar.gz")
    assert archive.name.startswith(f"capture-shop-{shop.node['server']}-")
    assert verify_archive(archive).problems == ()
    assert "noResolveDNS: changes what tcpdump prints" in ended.stderr
    run = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert f"/var/log/retina/captures/tests/{archive.name}" in json.dumps(run)


RIGHTS = [
    ("create", "jobs.batch", "retina-run"),
    ("create", "pods --subresource=exec", "retina-run"),
    ("list", "pods", "default"),
    ("list", "nodes", "default"),
]


def test_kustomize_grants_what_the_runner_needs(cluster: Api) -> None:
    folder = str(REPOSITORY / "deploy")
    user = "--as=system:serviceaccount:retina-run:retina-run"
    cluster.kubectl("apply", "--validate=strict", "-k", folder)
    try:
        for verb, resource, namespace in RIGHTS:
            words = (verb, *resource.split(), user, "-n", namespace)
            cluster.eventually(partial(may, cluster, *words), f"{verb} {resource} is granted")
        assert not may(cluster, "create", "pods", "--subresource=exec", user, "-n", "default")
        assert not may(cluster, "get", "secrets", user, "-n", "retina-run")
    finally:
        cluster.kubectl("delete", "-k", folder, "--wait=false")


@pytest.mark.parametrize("from_krew", [False, True])
def test_kubectl_finds_the_plug_in(cluster: Api, tmp_path: Path, from_krew: bool) -> None:
    """That of pip, and the one in krew's archive, which starts the retina-run of the machine or says that there is none."""
    installed = Path(sys.executable).parent
    folders = [str(tmp_path), str(installed)] if from_krew else [str(installed)]
    if from_krew:
        with zipfile.ZipFile(io.BytesIO(krew.archive())) as archive:
            archive.extract(krew.PLUGIN, tmp_path)
        (tmp_path / krew.PLUGIN).chmod(0o755)
    else:
        assert (installed / krew.PLUGIN).exists(), "pip install -e . makes it"

    def kubectl(*path: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": ":".join([*path, "/usr/bin", "/bin"])}
        return subprocess.run(
            [cluster.program(), "retina-run", "--version"],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    told = kubectl(*folders)
    assert (told.returncode, told.stdout) == (0, f"retina-run {__version__}\n"), told
    if from_krew:
        told = kubectl(str(tmp_path))
        assert told.returncode == 127, told
        assert "pipx install retina-run" in told.stderr


def may(cluster: Api, *words: str) -> bool:
    """`kubectl auth can-i`, whose no is an exit status, as trouble is."""
    try:
        return cluster.kubectl("auth", "can-i", *words).strip() == "yes"
    except RuntimeError as error:
        if "ended with 1: no" not in str(error):
            raise
        return False
