"""As whom the runner comes: exec plugins, token files, a pod's own service account; each with deploy/rbac.yaml's rights only.

And what it says when that isn't good enough: before anything is touched where it can be known, and in time otherwise.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from retina_runner.executors.kubernetes import rbac
from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.filling import full
from tests.cluster.places import REPOSITORY, cache, digest
from tests.cluster.runs import PatientRun, Runs
from tests.storage.servers import Tinyproxy

pytestmark = pytest.mark.cluster

NAMESPACE = rbac.NAMESPACE
PLUGIN = """#!/usr/bin/env python3
# An ExecCredential: the n-th time that it is called it prints what the n-th line of `answers` says, at last the last one.
import datetime, json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
asked = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert asked["kind"] == "ExecCredential" and os.environ["TENANT"] == "tests" and sys.argv[1:] == ["get-token"]
with open(f"{here}/calls", "a") as calls:
    calls.write("x")
    calls.flush()
    number = os.fstat(calls.fileno()).st_size
answers = open(f"{here}/answers").read().splitlines()
answer = json.loads(answers[min(number, len(answers)) - 1])
if "fail" in answer:
    sys.exit(answer["fail"])
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=answer.get("for_s", 3600))
given = {k: v for k, v in answer.items() if k in ("token", "clientCertificateData", "clientKeyData")}
status = {**given, "expirationTimestamp": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
print(json.dumps({"apiVersion": asked["apiVersion"], "kind": "ExecCredential", "status": status}))
"""


@pytest.fixture(scope="module")
def granted(cluster: Api) -> Iterator[Api]:
    """A cluster with deploy/ applied: the service account `retina-run` of the namespace `retina-run`."""
    cluster.kubectl("apply", "-k", str(REPOSITORY / "deploy"))
    try:
        cluster.eventually(lambda: cluster.get("serviceaccount", "default", "-n", NAMESPACE), "the namespace is there")
        yield cluster
    finally:
        cluster.kubectl("delete", "-k", str(REPOSITORY / "deploy"), "--wait=true", limit_s=300)


@pytest.fixture
def token(granted: Api) -> str:
    """A token of that service account."""
    return granted.kubectl("create", "token", "retina-run", "-n", NAMESPACE, "--duration=1h").strip()


class Identity:
    """A kubeconfig in a folder of its own, whose user is what a test says."""

    def __init__(self, cluster: Api, folder: Path, user: dict[str, Any]):
        self.folder = folder
        folder.mkdir()
        whole = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        whole["users"] = [{"name": "somebody", "user": user}]
        whole["contexts"][0]["context"]["user"] = "somebody"
        self.context = whole["contexts"][0]["name"]
        self.kubeconfig = folder / "config"
        self.kubeconfig.write_text(json.dumps(whole))

    @classmethod
    def of_a_plugin(cls, cluster: Api, folder: Path, *answers: dict[str, Any], version: str = "v1") -> Identity:
        """The user of an exec plugin, named by a path relative to the kubeconfig."""
        plugin = {
            "apiVersion": f"client.authentication.k8s.io/{version}", "command": "./plugin", "args": ["get-token"],
            "env": [{"name": "TENANT", "value": "tests"}], "interactiveMode": "Never",
        }  # fmt: skip
        made = cls(cluster, folder, {"exec": plugin})
        (folder / "plugin").write_text(PLUGIN)
        (folder / "plugin").chmod(0o700)
        made.answer(*answers)
        return made

    def answer(self, *answers: dict[str, Any]) -> None:
        """What the plugin says from now on: never half of it."""
        new = self.folder / "answers.new"
        new.write_text("".join(json.dumps(a) + "\n" for a in answers))
        new.rename(self.folder / "answers")

    @property
    def calls(self) -> int:
        return (self.folder / "calls").stat().st_size


def start(runs: Runs, identity: Identity, duration: str = "2s", reconnect: str = "600s") -> PatientRun:
    node = sorted(runs.api.ready())[0]
    return runs.start(
        f"""
name: identity
duration: {duration}
limits: {{reconnect_timeout: {reconnect}}}
captures:
  - nodes: {{kubernetes: {{nodes: [{node}], job: {{namespace: {NAMESPACE}}}}}}}
    collect: [network-state]
""",
        KUBECONFIG=str(identity.kubeconfig),
    )


def nowhere(run: PatientRun, *secrets: str) -> None:
    """None of these is in anything that the run said or wrote."""
    said = (run.stderr + json.dumps(run.events)).encode()
    for path in (run.folder / "runs").rglob("*"):
        said += path.read_bytes() if path.is_file() else b""
    for secret in secrets:
        assert secret.encode() not in said
        assert base64.b64encode(secret.encode()) not in said


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_an_exec_plugin(runs: Runs, granted: Api, token: str, tmp_path: Path, version: str) -> None:
    """Asked once for a whole run, while its credential is good."""
    identity = Identity.of_a_plugin(granted, tmp_path / "who", {"token": token}, version=version)
    run = start(runs, identity)
    assert run.end() == 0, (run.events, run.stderr)
    assert verify_archive(run.archive().path).problems == ()
    assert identity.calls <= 2  # what chooses nodes, and what speaks to their pods
    nowhere(run, token)


def test_by_an_http_proxy(runs: Runs, granted: Api, token: str, tmp_path: Path) -> None:
    """All that the run says to the cluster, exec sessions and watches too."""
    identity = Identity(granted, tmp_path / "who", {"token": token})
    whole = json.loads(identity.kubeconfig.read_text())
    cluster = whole["clusters"][0]["cluster"]
    proxy = Tinyproxy(tmp_path / "proxy", [urlsplit(cluster["server"]).port or 443])
    cluster["proxy-url"] = proxy.url()
    identity.kubeconfig.write_text(json.dumps(whole))
    try:
        proxy.start()
        run = start(runs, identity)
        assert run.end() == 0, (run.events, run.stderr)
    finally:
        proxy.kill()
    assert verify_archive(run.archive().path).problems == ()
    assert (tmp_path / "proxy" / "requests.log").read_text().count("CONNECT ") > 10
    nowhere(run, token, proxy.password)


def test_an_exec_plugin_that_gives_a_certificate(runs: Runs, granted: Api, tmp_path: Path) -> None:
    """The administrator's own, which the kubeconfig of the tests holds."""
    view = ("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
    (user,) = (u["user"] for u in json.loads(granted.kubectl(*view))["users"])
    if "client-key-data" not in user:
        pytest.skip("the cluster's own user has no client certificate")
    certificate, key = (base64.b64decode(user[f"client-{n}-data"]).decode() for n in ("certificate", "key"))
    answer = {"clientCertificateData": certificate, "clientKeyData": key}
    run = start(runs, Identity.of_a_plugin(granted, tmp_path / "who", answer))
    assert run.end() == 0, (run.events, run.stderr)
    nowhere(run, key, key.splitlines()[1])


def test_a_plugin_is_asked_again_when_its_credential_expires(
    runs: Runs, granted: Api, token: str, tmp_path: Path
) -> None:
    identity = Identity.of_a_plugin(granted, tmp_path / "who", {"token": token, "for_s": 33})
    run = start(runs, identity, duration="10s")
    assert run.end() == 0, (run.events, run.stderr)
    assert identity.calls > 2


def test_a_plugin_is_asked_again_when_its_credential_is_refused(
    runs: Runs, granted: Api, token: str, tmp_path: Path
) -> None:
    """Revoked before its time: the server's 401 is the news."""
    identity = Identity.of_a_plugin(granted, tmp_path / "who", {"token": "revoked-" + "x" * 40}, {"token": token})
    run = start(runs, identity)
    assert run.end() == 0, (run.events, run.stderr)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"fail": "the login has expired: run cloud-login"}, "the login has expired: run cloud-login"),
        ({"token": "canary-refused-0123456789"}, "doesn't accept the credential of exec plugin ./plugin"),
    ],
)
def test_a_plugin_that_gives_nothing_good(
    runs: Runs, granted: Api, tmp_path: Path, answer: dict[str, Any], says: str
) -> None:
    """Told before anything is touched, at its place in the runbook; what it gave isn't."""
    identity = Identity.of_a_plugin(granted, tmp_path / "who", answer)
    run = start(runs, identity)
    assert run.end() == 2, run.events
    said = run.stderr
    assert says in said
    assert f"context {identity.context}" in said
    assert "runbook.yaml:6:" in said
    assert "Traceback" not in said
    assert "canary-refused" not in said


def test_a_login_that_ends_in_the_window_and_comes_back(runs: Runs, granted: Api, token: str, tmp_path: Path) -> None:
    """The node is out of reach meanwhile, and nothing is lost."""
    # A credential is renewed 30 s before it expires: this one is asked for again every few seconds.
    identity = Identity.of_a_plugin(granted, tmp_path / "who", {"token": token, "for_s": 33})
    run = start(runs, identity, duration="15s")
    run.wait_for("window")
    identity.answer({"fail": "the login has expired: run cloud-login"})
    lost = run.wait_for("lost")
    assert "the login has expired: run cloud-login" in lost["why"]
    identity.answer({"token": token})
    assert run.end() == 0, (run.events, run.stderr)
    assert run.all("reattached")


def test_a_token_file(runs: Runs, granted: Api, token: str, tmp_path: Path) -> None:
    """Relative to its kubeconfig; read again each time, so that whoever renews it need say nothing."""
    identity = Identity(granted, tmp_path / "who", {"tokenFile": "token"})
    missing = start(runs, identity)
    assert missing.end() == 2
    assert f"{identity.folder}/token: No such file or directory" in missing.stderr
    (identity.folder / "token").write_text("canary-of-nobody-0123456789\n")
    refused = start(runs, identity)
    assert refused.end() == 2
    said = refused.stderr
    assert f"doesn't accept the credential of token file {identity.folder}/token" in said
    assert "canary-of-nobody" not in said
    (identity.folder / "token").write_text(token + "\n")
    run = start(runs, identity)
    assert run.end() == 0, (run.events, run.stderr)
    nowhere(run, token)


def test_our_role_suffices_for_what_comes_after_a_run(
    own_cluster: Cluster, runs: Runs, granted: Api, token: str, tmp_path: Path
) -> None:
    """download, retry and cleanup with the rights of deploy/rbac.yaml and no others."""
    identity = Identity(granted, tmp_path / "who", {"token": token})
    node, folder = own_cluster.nodes[1].name, f"rbac-{tmp_path.name}"
    me = {"KUBECONFIG": str(identity.kubeconfig)}
    with full(own_cluster, NAMESPACE, node):
        run = runs.start(
            f"""
name: after
duration: 1s
keep: never
limits: {{ready_timeout: 25s}}
captures:
  - nodes: {{kubernetes: {{nodes: [{node}], job: {{namespace: {NAMESPACE}, requests: {{cpu: 200m}}}}}}}}
    collect: [network-state]
upload: [{{host_path: {{path: {folder}}}}}]
""",
            **me,
        )
        assert run.end() in (2, 4), run.events
    try:
        again = runs.command("retry", str(run.directory), "--failed", "--output", str(tmp_path / "again"), **me)
        assert again.returncode == 0, again
        (second,) = (tmp_path / "again").iterdir()
        back = runs.command("download", str(second), "--output", str(tmp_path / "back"), **me)
        assert back.returncode == 0, back
        (path,) = (tmp_path / "back").iterdir()
        assert verify_archive(path).problems == ()
        for directory in (run.directory, second):
            cleaned = runs.command("cleanup", str(directory), **me)
            assert cleaned.returncode == 0, cleaned
    finally:
        own_cluster.node_run(1, "rm", "-rf", f"/var/lib/retina-run/archives/{folder}")


def packages(version: str) -> Path:
    """What the runner imports, for a pod's Python of that version: kept in the cache."""
    wanted = [r.partition(";")[0].strip() for r in requires("retina-run") or () if "extra ==" not in r]
    folder = cache() / f"python-{version}-{digest((), *wanted)}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", str(part), "--python-version", version,
             "--only-binary=:all:", *wanted],
            check=True,
        )  # fmt: skip
        part.rename(folder)
    return folder


def test_in_a_pod_as_its_service_account(own_cluster: Cluster, granted: Api) -> None:
    """The runner in a pod without a kubeconfig: the API by the cluster's own service, with the pod's own token and namespace.

    (Nodes of the harness see this machine's files, so that the runner needs no image of its own.)
    """
    node, runner = (own_cluster.nodes[n].name for n in (1, 2))
    # It says so when it is listened to: what a process has said before kubectl is attached to it isn't heard.
    version = own_cluster.kubectl(
        "run", "version", "-n", NAMESPACE, "--rm", "-i", "--quiet", "--restart=Never", f"--image={own_cluster.image}",
        "--image-pull-policy=IfNotPresent", "--", "python3", "-c",
        "import sys; sys.stdin.read(); print('%d.%d' % sys.version_info[:2])", stdin="",
    ).strip()  # fmt: skip
    runbook = f"""
name: inside
duration: 2s
captures:
  - nodes: {{kubernetes: {{nodes: [{node}]}}}}
    collect: [network-state]
"""
    script = (
        "python3 -m retina_runner run /runbook/runbook.yaml --output /tmp/runs --json && "
        "python3 -m retina_runner verify /tmp/runs/*/archives/*"
    )
    mounts = {"source": str(REPOSITORY), "packages": str(packages(version)), "runbook": "", "tmp": ""}
    volumes: list[dict[str, Any]] = [
        {"name": name, "hostPath": {"path": path, "type": "Directory"}} for name, path in mounts.items() if path
    ]
    volumes += [{"name": "runbook", "configMap": {"name": "inside"}}, {"name": "tmp", "emptyDir": {}}]
    container = {
        "name": "runner", "image": own_cluster.image, "command": ["sh", "-c", script],
        "env": [{"name": "PYTHONPATH", "value": "/source:/packages"}, {"name": "HOME", "value": "/tmp"},
                {"name": "RETINA_RUN_NODE_IMAGE", "value": own_cluster.image}],
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": n, "mountPath": f"/{n}", "readOnly": n != "tmp"} for n in mounts],
    }  # fmt: skip
    spec = {
        "serviceAccountName": "retina-run", "restartPolicy": "Never", "containers": [container], "volumes": volumes,
        "nodeSelector": {"kubernetes.io/hostname": runner},
    }  # fmt: skip
    own_cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inside", "namespace": NAMESPACE},
         "data": {"runbook.yaml": runbook}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inside", "namespace": NAMESPACE}, "spec": spec},
    )  # fmt: skip
    own_cluster.eventually(
        lambda: own_cluster.get("pod", "inside", "-n", NAMESPACE)["status"]["phase"] in ("Succeeded", "Failed"),
        "the runner has ended", 240,
    )  # fmt: skip
    said = own_cluster.kubectl("logs", "-n", NAMESPACE, "inside")
    assert own_cluster.get("pod", "inside", "-n", NAMESPACE)["status"]["phase"] == "Succeeded", said
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert events[-1]["event"] == "run-end"
    (reach,) = (n["reach"] for n in events[0]["nodes"])
    assert (reach["context"], reach["namespace"]) == ("in-cluster", NAMESPACE)
    assert said.count(": ok, ") == 1, said[-1000:]
    assert not own_cluster.get("jobs", "-n", NAMESPACE)["items"]
