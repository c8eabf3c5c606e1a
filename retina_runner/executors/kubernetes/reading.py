"""A short-lived pod that reads archives where Jobs have kept them: on a node's disk, or on a claim.

It has no capability, no agent, no network of the node, and sees one folder, read-only. The runner removes it; when the
runner dies the cluster does: `activeDeadlineSeconds` ends it, `ttlSecondsAfterFinished` removes it. It carries the label
of the run whose archives it reads, so that `retina-run cleanup` finds it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.api import Denied, Unsuccessful
from retina_runner.executors.kubernetes.objects import RUN_LABEL, RUN_NOTE, JobSettings
from retina_runner.executors.kubernetes.session import Session
from retina_runner.executors.kubernetes.waiting import (
    check_node,
    check_pod,
    permission_hint,
    wait_for_pod,
    wait_until_gone,
)

CONTAINER = "reader"
FOLDER = "/archives"
LIFE_S, LEAST_RATE_BYTES_S = 600, 500_000
"""A reader lives that long, and longer by what its archives take at that rate."""
TTL_S = 60
STALL_S, GONE_S = 60.0, 30.0
WAIT = "import signal, sys; signal.pthread_sigmask(0, [15]); signal.sigtimedwait([15], int(sys.argv[1]))"
"""Process 1 has no default for SIGTERM: it is waited for."""
READ = """
import os, sys
try:
    with open(os.open(sys.argv[1], os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        file.seek(int(sys.argv[2]))
        while chunk := file.read(1 << 18):
            sys.stdout.buffer.write(chunk)
except OSError as error:
    sys.exit(error.strerror)
"""


@dataclass(frozen=True)
class Shelf:
    """Where archives are kept: a folder of a node's disk, or a claim (then any node will do, and `folder` is empty)."""

    node: str
    folder: str
    claim: str = ""

    def describe(self) -> str:
        return f"claim {self.claim}" if self.claim else f"{self.node}: {self.folder}"


def job(token: str, name: str, run: str, shelf: Shelf, settings: JobSettings, life_s: int) -> dict[str, Any]:
    """The Job of a reader. What the runbook says of its Jobs holds, as far as it lets a pod run at all."""
    labels = {**dict(settings.labels), RUN_LABEL: token, "app.kubernetes.io/managed-by": "retina-run"}
    notes = {**dict(settings.annotations), RUN_NOTE: run}
    volume: dict[str, Any] = {"hostPath": {"path": shelf.folder, "type": "Directory"}}
    if shelf.claim:
        volume = {"persistentVolumeClaim": {"claimName": shelf.claim}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "imagePullPolicy": settings.image_pull_policy,
                "command": ["python3", "-I", "-c", WAIT, str(life_s)],
                "securityContext": {
                    "runAsUser": 0,  # archives are their owner's alone
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "seccompProfile": {"type": "RuntimeDefault"},
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": objects.resources(settings),
                "volumeMounts": [{"name": "archives", "mountPath": FOLDER, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "archives", **volume}],
    }
    if not shelf.claim:
        pod["affinity"] = objects.on_node(shelf.node)
    pod |= objects.admission(settings)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels, "annotations": notes},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": life_s,
            "ttlSecondsAfterFinished": TTL_S,
            "template": {"metadata": {"labels": labels, "annotations": notes}, "spec": pod},
        },
    }


class Reader:
    """The pod of one shelf. `open` it, `read` from it, `close` it whatever happened. Used by one thread."""

    def __init__(self, session: Session, shelf: Shelf, settings: JobSettings, run: str, size_bytes: int = 0):
        life_s = LIFE_S + size_bytes // LEAST_RATE_BYTES_S
        self._session, self.shelf = session, shelf
        self._namespace, self._name = settings.namespace, f"retina-run-{session.token}-read-{secrets.token_hex(3)}"
        self._job = job(session.token, self._name, run, shelf, settings, life_s)
        self._asked = False
        self._pod = ""
        self._refusal: LinkRefused | None = None

    def open(self, ready_timeout_s: float, give_up: threading.Event) -> None:
        """Returns when the pod runs. Idempotent. Raises LinkRefused, with the cluster's own reason, and LinkLost."""
        if self._refusal is not None:
            raise self._refusal
        if not self._pod:
            try:
                self._open(ready_timeout_s, give_up)
            except LinkRefused as refusal:
                self._refusal = refusal
                raise

    def _open(self, ready_timeout_s: float, give_up: threading.Event) -> None:
        if not self.shelf.claim:
            check_node(self._session, self.shelf.node)
        try:
            self._asked = True  # a lost answer may have made it
            self._session.create_job(self._job)
        except Denied as denied:
            raise LinkRefused(f"Job {self._name}", str(denied), permission_hint(denied)) from None
        self._pod = wait_for_pod(self._session, self._namespace, self._name, ready_timeout_s, give_up)

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file below the shelf, from there on. Raises LinkRefused, LinkLost."""
        argv = ["python3", "-I", "-c", READ, f"{FOLDER}/{path}", str(offset)]
        try:
            process = self._session.api.exec(self._namespace, self._pod, CONTAINER, argv, stdin=False)
        except Denied as denied:
            self._look()
            raise LinkRefused(f"pod {self._pod}", str(denied), permission_hint(denied)) from None
        except LinkLost:
            self._look()
            raise
        try:
            yield from process.stdout(STALL_S)
        except Unsuccessful as why:
            raise LinkRefused(self.shelf.describe(), f"{path}: {why}") from None
        except LinkLost:
            self._look()
            raise
        finally:
            process.close()

    def _look(self) -> None:
        check_pod(self._session, self._namespace, self._pod)

    def close(self) -> None:
        """Delete the Job; returns when its pod is gone, or GONE_S have passed. Raises LinkRefused, LinkLost."""
        if not self._asked:
            return
        try:
            self._session.delete_job(self._namespace, self._name)
        except Denied as denied:
            raise LinkRefused(f"Job {self._name}", str(denied), permission_hint(denied)) from None
        self._asked = False
        wait_until_gone(self._session, self._namespace, self._name, GONE_S)
