"""Runs against a cluster, and what they leave there: for the tests to start, and to see that it is nothing."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.api import Api
from tests.lab import REPOSITORY, RETINA_RUN, Archive, Run

WAIT_S = 240.0
LABEL, NOTE = "retina-run/run", "retina-run/run-name"


class PatientRun(Run):
    """On a loaded machine an image, a kubelet and an API server take longer than a process does."""

    wait_s = WAIT_S


class Runs:
    """Starts runs in a folder, with the test's node image and kubeconfig."""

    def __init__(self, api: Api, folder: Path):
        self.api, self.folder = api, folder
        self._started: list[PatientRun] = []
        self._begun: list[subprocess.Popen[str]] = []

    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.api.kubeconfig), "RETINA_RUN_NODE_IMAGE": self.api.image}

    def start(self, runbook: str, *arguments: str, netns: str = "", **env: str) -> PatientRun:
        """A run of this runbook, in a folder of its own."""
        folder = self.folder / f"run-{len(self._started)}"
        folder.mkdir()
        run = PatientRun(runbook, folder, *arguments, netns=netns, env={**self.environment(), **env})
        self._started.append(run)
        return run

    def command(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`retina-run WORDS` to its end."""
        process = self.begin(*words, **more)
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def begin(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """`retina-run WORDS`, for a test to interrupt."""
        env = {**self.environment(), "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **more}
        process = subprocess.Popen(
            [*RETINA_RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=self.folder
        )
        self._begun.append(process)
        return process

    def left(self) -> list[str]:
        """Everything in the cluster that belongs to these runs."""
        names = {p.name for run in self._started for p in (run.folder / "runs").glob("*")}
        return [
            f"{o['kind']} {o['metadata']['namespace']}/{o['metadata']['name']}"
            for o in self.api.get("jobs,pods,configmaps,secrets", "-A", "-l", LABEL)["items"]
            if o["metadata"].get("annotations", {}).get(NOTE) in names
        ]

    def close(self) -> None:
        """End what still runs."""
        for process in [*(run.process for run in self._started), *self._begun]:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def standing_still(process: subprocess.Popen[str]) -> Iterator[None]:
    """Nothing goes on in a runner while this holds: what a test does meanwhile may take as long as it takes."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def by_node(run: Run) -> dict[str, Archive]:
    """Archives by `capture/node`, as their manifests say."""
    return {f"{a.manifest['capture']}/{a.manifest['node']}": a for a in run.archives()}
