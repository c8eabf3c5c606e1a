"""The runner inside of the cluster: what `schedule` prints for it is applied, and runs, as an identity of its own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retina_runner.documents import parse_document
from retina_runner.verification import verify_archive
from tests.cluster.runs import LABEL, Runs
from tests.cluster.shop import Shop
from tests.cluster.test_manifests import may
from tests.lab import REPOSITORY

# The runner image is built by the first test that needs it.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

CLAIM, ARCHIVES = "/claim", "/archives"


def parsed(text: str) -> list[Any]:
    return [parse_document(part.encode(), "printed").value for part in text.split("---\n")[1:]]


@pytest.fixture
def keeper(shop: Shop) -> Iterator[str]:
    """A pod that sees a claim `runs`, which the user of the runner's pod may write to, and the archives of the server's node."""
    api, name, node = shop.api, f"retina-run-{shop.namespace}", shop.node["server"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "hostPath": {"path": f"/var/tmp/{name}", "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "runs", "namespace": shop.namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    container = {
        "name": "main",
        "image": api.image,
        "command": ["sleep", "infinity"],
        "volumeMounts": [{"name": "runs", "mountPath": CLAIM}, {"name": "archives", "mountPath": ARCHIVES}],
    }
    archives = {"path": "/var/lib/retina-run/archives", "type": "DirectoryOrCreate"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "keeper", "namespace": shop.namespace},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
                {"name": "archives", "hostPath": archives},
            ],
        },
    }
    api.apply(volume, claim, pod)
    try:
        api.kubectl("wait", "-n", shop.namespace, "--for=condition=Ready", "pod/keeper", "--timeout=170s", limit_s=180)
        api.kubectl("exec", "-n", shop.namespace, "keeper", "--", "chmod", "777", CLAIM)
        yield "keeper"
        api.kubectl("exec", "-n", shop.namespace, "keeper", "--", "sh", "-c",
                    f"rm -rf {CLAIM}/* {ARCHIVES}/{shop.namespace}")  # fmt: skip
    finally:
        api.kubectl("delete", "pod/keeper", "pvc/runs", "-n", shop.namespace, "--wait=false")
        api.kubectl("delete", "pv", name, "--wait=false")


def test_a_cron_job_carries_a_runbook_out_as_an_identity_that_may_do_just_that(
    runs: Runs, shop: Shop, keeper: str, runner_image: str, tmp_path: Path
) -> None:
    api, namespace = shop.api, shop.namespace
    runbook = tmp_path / "nightly.yaml"
    runbook.write_text(f"""
name: nightly
duration: 3s
captures:
  - nodes: {{kubernetes: {{pods: {{app: server}}, job: {{requests: {{cpu: 10m, memory: 64Mi}}}}}}}}
    collect: [tcpdump, network-state]
upload: [{{host_path: {{path: {namespace}}}}}]
""")
    printed = runs.command(
        "schedule", str(runbook), "--on", "* * * * *", "--as", "cronjob", "--image", runner_image,
        "--namespace", namespace, "--claim", "runs",
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    made = parsed(printed.stdout)
    try:
        api.kubectl("apply", "--validate=strict", "-f", "-", stdin=printed.stdout)
        identity = f"--as=system:serviceaccount:{namespace}:retina-run-nightly"
        api.eventually(lambda: may(api, "create", "jobs.batch", identity, "-n", namespace), "the role holds")
        for words in ("get secrets", "create pods", "delete pods", "create cronjobs.batch", "create rolebindings"):
            assert not may(api, *words.split(), identity, "-n", namespace), words
        for words in ("list pods", "create jobs.batch", "create pods --subresource=exec"):
            assert not may(api, *words.split(), identity, "-n", "default"), words

        def runners() -> list[dict[str, Any]]:
            found = api.get("jobs", "-n", namespace, "-l", "app.kubernetes.io/instance=retina-run-nightly")["items"]
            return sorted(found, key=lambda j: str(j["metadata"]["creationTimestamp"]))

        api.eventually(runners, "the CronJob has made its first Job")
        api.kubectl("patch", "cronjob", "retina-run-nightly", "-n", namespace, "-p", '{"spec": {"suspend": true}}')
        first = runners()[0]["metadata"]["name"]

        def over() -> bool:
            status = runners()[0]["status"]
            return bool(status.get("succeeded") or status.get("failed"))

        api.eventually(over, "it has ended", 400)
        log = api.kubectl("logs", "-n", namespace, f"job/{first}")
        assert runners()[0]["status"].get("succeeded") == 1, (log, api.state())
        assert log == "", "all is well: nothing that is worth a mail"

        def inside(command: str) -> str:
            return api.kubectl("exec", "-n", namespace, keeper, "--", "sh", "-c", command)

        summary = json.loads(inside(f"cat $(ls -d {CLAIM}/runs/nightly-* | head -1)/run.json"))
        (row,) = summary["nodes"]
        assert (row["node"], row["state"], row["verdict"]) == (shop.node["server"], "collected", "complete")
        (kept,) = re.findall(rf"/var/lib/retina-run/archives/{namespace}/[^\"]+", json.dumps(row))
        digests = inside(
            f"sha256sum $(ls {CLAIM}/runs/nightly-*/archives/*.tar.gz | head -1) {ARCHIVES}/{namespace}/{Path(kept).name}"
        )
        assert len({line.split()[0] for line in digests.splitlines()}) == 1, digests
        here = tmp_path / Path(kept).name
        api.kubectl("cp", f"{namespace}/{keeper}:{ARCHIVES}/{namespace}/{here.name}", str(here))
        assert verify_archive(here).problems == ()
        api.eventually(
            lambda: not api.get("jobs,pods,configmaps", "-n", namespace, "-l", LABEL)["items"],
            "nothing of the run is left",
        )
    finally:
        api.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=printed.stdout)
    kinds = [document["kind"] for document in made]
    assert kinds.count("ServiceAccount") == kinds.count("CronJob") == kinds.count("Role") == 1


GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode())"


def test_a_daemon_set_serves_the_counters_of_every_node(
    runs: Runs, shop: Shop, runner_image: str, tmp_path: Path
) -> None:
    api, namespace = shop.api, shop.namespace
    runbook = tmp_path / "watch.yaml"
    runbook.write_text(
        "name: watch\nduration: 5s\ncaptures: [{collect: [{ebpf: {plugins: [packetforward, linuxutil]}}]}]\n"
    )
    printed = runs.command(
        "schedule", str(runbook), "--as", "daemonset", "--image", runner_image, "--namespace", namespace
    )
    assert printed.returncode == 0, printed.stderr
    api.kubectl("apply", "--validate=strict", "-f", "-", stdin=printed.stdout)
    selector = "app.kubernetes.io/name=retina-run-exporter"
    try:
        wanted = len(api.ready())

        def ready() -> bool:
            status = api.get("daemonset", "-n", namespace, "-l", selector)["items"][0]["status"]
            return int(status.get("numberReady", 0)) >= wanted

        api.eventually(ready, "an exporter is ready on every node", 400)
        for pod in api.get("pods", "-n", namespace, "-l", selector)["items"]:
            security = pod["spec"]["containers"][0]["securityContext"]
            assert "privileged" not in security
            assert security["readOnlyRootFilesystem"] is True

        def page(part: str, path: str) -> str:
            addresses = api.get("node", shop.node[part])["status"]["addresses"]
            (address,) = [a["address"] for a in addresses if a["type"] == "InternalIP" and ":" not in a["address"]]
            url = f"http://{address}:10093{path}"
            return api.kubectl("exec", "-n", namespace, shop.pods["client"], "--", "python3", "-c", GET, url)

        def received(part: str, what: str = "packets") -> float:
            name = f'retinarun_forward_{what}_total{{interface="eth0",direction="ingress"'
            return sum(float(line.split()[-1]) for line in page(part, "/metrics").splitlines() if line.startswith(name))

        # Large ones: what a node says to others meanwhile is much less than that, even if it takes a minute.
        before, others = received("server"), received("bystander", "bytes")
        shop.send("client", shop.addresses["server"][0], 7000, 1000, size=1300)
        api.eventually(partial(grown, received, "server", before + 1000), "the server's node has counted them")
        assert received("bystander", "bytes") < others + 1000 * 1300
        for part in shop.node:
            assert page(part, "/healthz").strip() == "ok"
            assert "networkobservability_" in page(part, "/metrics")
    finally:
        api.kubectl("delete", "-f", "-", stdin=printed.stdout, limit_s=200)
    api.eventually(lambda: not api.get("pods", "-n", namespace, "-l", selector)["items"], "the exporters are gone")


def grown(read: Any, part: str, least: float) -> bool:
    return bool(read(part) >= least)


OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../repository/deploy, ../repository/deploy/runner]
configMapGenerator:
  - {name: retina-run, namespace: retina-run, behavior: replace, files: [runbook.yaml]}
images:
  - {name: registry.example/retina-run, newName: %s, newTag: %s}
"""


def test_kustomize_makes_a_runner_that_runs_when_it_is_asked(shop: Shop, runner_image: str, tmp_path: Path) -> None:
    """As a base of somebody's overlay, with another image and another runbook; its Jobs are in its own namespace."""
    api = shop.api
    (tmp_path / "repository").mkdir()
    (tmp_path / "overlay").mkdir()
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "repository" / "deploy")
    (tmp_path / "overlay" / "kustomization.yaml").write_text(OVERLAY % tuple(runner_image.rsplit(":", 1)))
    (tmp_path / "overlay" / "runbook.yaml").write_text(f"""
name: asked
duration: 2s
captures:
  - nodes: {{kubernetes: {{namespace: {shop.namespace}, pods: {{app: server}}, image: "{api.image}",
      job: {{namespace: retina-run}}}}}}
    collect: [network-state]
""")
    folder = str(tmp_path / "overlay")
    api.kubectl("apply", "--validate=strict", "-k", folder)
    try:
        api.kubectl("create", "job", "-n", "retina-run", "--from=cronjob/retina-run", "now")

        def over() -> bool:
            status = api.get("job", "now", "-n", "retina-run")["status"]
            return bool(status.get("succeeded") or status.get("failed"))

        api.eventually(over, "the runner has ended", 400)
        log = api.kubectl("logs", "-n", "retina-run", "job/now")
        assert api.get("job", "now", "-n", "retina-run")["status"].get("succeeded") == 1, (log, api.state())
        assert not api.get("jobs,configmaps", "-n", "retina-run", "-l", LABEL)["items"]
    finally:
        api.kubectl("delete", "-k", folder, limit_s=300)
