#!/usr/bin/env python3
"""What the runner asks of an API server about thousands of nodes, beside kubectl doing the same: choosing, starting, seeing pods, removing.

    python benchmarks/cluster.py [--quick] [--nodes 5000] [--pace]

Takes a real cluster: $KUBECONFIG's, or the one of `python -m tests.cluster up`. Without one it says so and ends. The nodes are
objects without a machine (tests/cluster/crowd.py), as large as real ones, the Jobs are suspended, and the pods are held back
from the scheduler: it is the clients that are measured, on one server, one after the other. Everything is removed in the end.

Calls are HTTP requests (the runner counts its own, kubectl's are in its log at -v=6), CPU seconds and peak RSS are of the
whole process, by wait4(2). The runner's own bound on requests a second is off, and kubectl's can't be (50 a second);
--pace leaves it on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # tests/ isn't installed

from retina_runner.bundle import agent_bundle  # noqa: E402
from retina_runner.errors import UsageError  # noqa: E402
from retina_runner.executors import LinkLost  # noqa: E402
from retina_runner.executors.kubernetes import choosing, kubeconfig, objects  # noqa: E402
from retina_runner.executors.kubernetes.api import Api, Denied  # noqa: E402
from retina_runner.executors.kubernetes.session import Session  # noqa: E402
from tests.cluster.cluster import Cluster  # noqa: E402
from tests.cluster.crowd import Crowd, unhurried  # noqa: E402
from tests.executors.conformance import plan_of  # noqa: E402

FORKS = 50
REQUEST = re.compile(r"\b(GET|POST|PATCH|PUT|DELETE)\b.*\b(20[0-2]|404)\b")


@dataclass(frozen=True)
class Cost:
    """Of one process: HTTP requests, seconds, CPU seconds, bytes."""

    calls: int
    wall_s: float
    cpu_s: float
    rss_bytes: int


def measured(argv: list[str], calls: Callable[[Path], int], stdin: Path | None = None) -> Cost:
    """One process to its end. `calls` reads what it said, stdout and stderr in one file."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        with said.open("wb") as out, open(stdin or os.devnull, "rb") as given:
            begun = time.perf_counter()
            process = subprocess.Popen(argv, stdin=given, stdout=out, stderr=out, cwd=REPOSITORY)
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{argv} ended with {process.returncode}: {said.read_text()[-2000:]}")
        return Cost(calls(said), wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def own_calls(said: Path) -> int:
    return int(said.read_text().split()[-1])


def kubectl_calls(said: Path) -> int:
    with said.open(errors="replace") as lines:
        return sum(1 for line in lines if len(line) < 2000 and REQUEST.search(line))


# -- the runner's parts, each in a process of its own


def part(name: str, path: str, context: dict[str, Any]) -> int:
    """Carry one part out; the number of its requests."""
    crowd, namespace, token = context["crowd"], context["namespace"], context["token"]
    agent = agent_bundle()
    if name == "choose":
        api = _api(path, context)
        found = choosing.choose(api, {"node_selector": context["selector"]}, namespace).nodes
        assert [c.node for c in found] == crowd
        return api.requests
    session = Session(path, "", token)
    session.api = _api(path, context)
    jobs = jobs_of(token, namespace, crowd)
    if name == "start":
        with ThreadPoolExecutor(FORKS) as pool:
            list(pool.map(lambda job: session.create(job, agent), jobs))
    elif name == "remove":
        with ThreadPoolExecutor(FORKS) as pool:
            list(pool.map(lambda job: session.delete_job(namespace, str(job["metadata"]["name"])), jobs))
    elif name == "see":
        for job in jobs:
            while (pod := session.pod(namespace, str(job["metadata"]["name"]))) is None:
                session.wait_for_change(namespace, str(job["metadata"]["name"]), pod, 5.0)
    session.close()
    return session.api.requests


def _api(path: str, context: dict[str, Any]) -> Api:
    access = kubeconfig.Access(kubeconfig.find(path, ""))
    return Api(access) if context["pace"] else unhurried(access)


def jobs_of(token: str, namespace: str, nodes: list[str]) -> Iterator[dict[str, Any]]:
    """Jobs as a run has them, but suspended."""
    plan, settings = plan_of("kubernetes", "node").document, objects.JobSettings(namespace, "registry.example/node:1")
    for number, node in enumerate(nodes):
        made = objects.job(token, number, node, agent_bundle().name, plan, settings)
        made["spec"]["suspend"] = True
        yield made


def pods_of(token: str, namespace: str, nodes: list[str]) -> Iterator[dict[str, Any]]:
    """Their pods, which wait for a gate that nobody opens."""
    for job in jobs_of(token, namespace, nodes):
        template = job["spec"]["template"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": job["metadata"]["name"]}
        metadata = {**template["metadata"], "name": job["metadata"]["name"], "labels": labels}
        yield {
            "metadata": metadata,
            "spec": {**template["spec"], "schedulingGates": [{"name": "retina-run-tests/closed"}]},
        }


# -- the whole


def answering() -> tuple[str, str] | None:
    """Kubeconfig and kubectl of a cluster that answers now."""
    own = Cluster()
    given = os.environ.get("KUBECONFIG", "")
    path = given or str(own.kubeconfig)
    if not given and not own.kubeconfig.exists():
        return None
    try:
        unhurried(kubeconfig.Access(kubeconfig.find(path, ""))).call("GET", "/api/v1/namespaces/default")
    except (UsageError, LinkLost, Denied):
        return None
    kubectl = shutil.which("kubectl") if given else own.program()
    return (path, kubectl) if kubectl else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 nodes")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pace", action="store_true", help="with the runner's own bound on requests a second")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        name, path, context = chosen.part
        print(part(name, path, json.loads(Path(context).read_text())))
        return
    found = answering()
    if found is None:
        print("no cluster answers ($KUBECONFIG, or python -m tests.cluster up): nothing was measured")
        return
    measure(*found, 60 if chosen.quick else chosen.nodes, chosen.pace)


def measure(path: str, kubectl: str, count: int, pace: bool) -> None:
    name = f"rrb-{secrets.token_hex(3)}"
    crowd = Crowd(unhurried(kubeconfig.Access(kubeconfig.find(path, ""))), name, count)
    with tempfile.TemporaryDirectory() as folder:
        try:
            begun = time.perf_counter()
            crowd.open()
            namespace = crowd.namespace()
            print(f"{count} nodes without a machine, made in {time.perf_counter() - begun:.0f} s")
            tokens = {"retina-run": secrets.token_hex(3), "kubectl": secrets.token_hex(3)}
            context = Path(folder) / "context.json"
            told = {"crowd": crowd.nodes, "selector": crowd.selector, "namespace": namespace, "pace": pace}
            context.write_text(json.dumps({**told, "token": tokens["retina-run"]}))
            jobs, asks = Path(folder) / "jobs.json", [kubectl, "--kubeconfig", path, "-v=6", "-n", namespace]
            items = list(jobs_of(tokens["kubectl"], namespace, crowd.nodes))
            jobs.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

            def own(name: str) -> Cost:
                return measured([sys.executable, __file__, "--part", name, path, str(context)], own_calls)

            def peer(*words: str, stdin: Path | None = None) -> Cost:
                return measured([*asks, *words], kubectl_calls, stdin)

            compare(
                "choose",
                count,
                own("choose"),
                peer("get", "nodes", "-l", crowd.selector, "-o", "json"),
                "get nodes -o json",
            )
            compare("start", count, own("start"), peer("apply", "-f", "-", stdin=jobs), "apply")
            crowd.post(f"/api/v1/namespaces/{namespace}/pods", pods_of(tokens["retina-run"], namespace, crowd.nodes))
            label = f"{objects.RUN_LABEL}={tokens['retina-run']}"
            compare("see pods", count, own("see"), peer("get", "pods", "-l", label, "-o", "json"), "get pods -o json")
            gone = peer("delete", "--wait=false", "-f", "-", stdin=jobs)
            compare("remove", count, own("remove"), gone, "delete")
        finally:
            crowd.close()


def compare(what: str, count: int, own: Cost, peer: Cost, command: str) -> None:
    for who, cost in (("retina-run", own), (f"kubectl {command}", peer)):
        print(
            f"{what:9s} {who:26s} {cost.calls:6d} calls ({cost.calls / count:5.3f} a node)   wall {cost.wall_s:7.1f} s   "
            f"CPU {cost.cpu_s:6.1f} s   RSS {cost.rss_bytes / 1e6:6.0f} MB",
            flush=True,
        )
    print(
        f"{'':9s} ratio: calls x{own.calls / peer.calls:.2f}, CPU x{own.cpu_s / peer.cpu_s:.2f}, RSS x{own.rss_bytes / peer.rss_bytes:.2f}"
    )


if __name__ == "__main__":
    main()
