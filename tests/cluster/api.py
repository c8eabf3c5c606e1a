"""What tests ask of a cluster, any cluster: through kubectl, so that no test trusts the client that it tests."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.places import call

WAIT_S = 180.0
UNREACHED = re.compile(
    r"(^|: )(error: |Error from server|Unable to connect|The connection to the server)[^\n]*"
    r"(TLS handshake timeout|connection refused|was refused - did you specify)[^\n]*\Z",
    re.MULTILINE,
)
"""kubectl's last words when no connection came about, on a machine that stood still for ten seconds, say: nothing was asked."""


class Api:
    """A cluster that a kubeconfig reaches. `image` is the node image, under the name by which its nodes know it."""

    def __init__(self, kubeconfig: Path, image: str):
        self.kubeconfig = kubeconfig
        self.image = image

    def program(self) -> str:
        """kubectl."""
        return "kubectl"

    def kubectl(self, *argv: str, stdin: str | None = None, limit_s: float = 120) -> str:
        """Its stdout. RuntimeError with all that it said when it fails. Asks once, but until somebody hears it."""
        environment = {"KUBECONFIG": str(self.kubeconfig)}
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return call(self.program(), *argv, env=environment, stdin=stdin, limit_s=limit_s)
            except RuntimeError as error:
                if time.monotonic() > deadline or not UNREACHED.search(str(error).strip()):
                    raise
            time.sleep(1.0)

    def get(self, *argv: str) -> Any:
        """What `kubectl get … -o json` says."""
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def apply(self, *documents: dict[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def ready(self) -> set[str]:
        """The names of the nodes that are ready."""
        return {
            node["metadata"]["name"]
            for node in self.get("nodes")["items"]
            for condition in node["status"]["conditions"]
            if condition["type"] == "Ready" and condition["status"] == "True"
        }

    def eventually(self, condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
        """Wait until it holds, errors counting as not yet; what the cluster says of itself when it never does."""
        deadline = time.monotonic() + seconds
        last: Exception | None = None
        while True:
            try:
                if condition():
                    return
            except (RuntimeError, OSError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
                last = error
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}; last error: {last}\n{self.state()}")
            time.sleep(0.25)

    def state(self) -> str:
        """All that helps to see why something went wrong."""
        parts = []
        for argv in (
            ("get", "nodes,pods,jobs", "-A", "-o", "wide"),
            ("get", "events", "-A", "--sort-by=.lastTimestamp"),
        ):
            try:
                parts.append(f"$ kubectl {shlex.join(argv)}\n{self.kubectl(*argv, limit_s=20)[-6000:]}")
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                parts.append(f"$ kubectl {shlex.join(argv)}: {error}")
        return "\n".join([*parts, self.logs()])

    def logs(self) -> str:
        """The logs of the cluster's own programs, where they can be read."""
        return ""
