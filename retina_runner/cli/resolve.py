"""From the words of the command line to plans and links: what `run`, `plan` and `--list-hosts` share. Touches no node."""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retina_runner import naming, planning, shards
from retina_runner.bundle import AgentBundle, agent_bundle
from retina_runner.cli.hosts import Hosts, limited
from retina_runner.cli.pods import Pods, Reach
from retina_runner.errors import DocumentError, Problem, UsageError
from retina_runner.executors import Link
from retina_runner.executors.entered import CONNECTORS as ENTERED
from retina_runner.executors.entered import EnteredLink
from retina_runner.executors.kubernetes.objects import WORK_DIRECTORY
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.executors.local import LocalLink, default_work_directory
from retina_runner.runbook import Capture, KubernetesNodes, LocalNodes, Runbook
from retina_runner.runbook_reading import load_runbook
from retina_runner.targets import DEFAULT_FORKS

if TYPE_CHECKING:
    from retina_runner.executors.kubernetes.session import Session

Places = dict[str, list[planning.Place]]


FILES, FILES_A_NODE = 200, 2
"""Descriptors that a run may hold open: its own, and of each node one that is listened to and one that is spoken over."""


@dataclass(frozen=True)
class Choices:
    """How nodes were chosen, so that it can be done again: `places` of all captures, before `narrowed` applies `--limit`
    and `--shard` to them."""

    pods: Pods
    places: Places
    narrowed: Callable[[Places], Places]


@dataclass(frozen=True)
class Resolved:
    """A runbook with its nodes and plans. `token` tells this run's directories on nodes from every other's.

    `reach` is by plan id, for the plans whose nodes aren't this machine; `jobs` are manifests by name,
    `job_settings` what they were made from, by capture. `notes` are of nodes that may not do.
    """

    runbook: Runbook
    plans: tuple[planning.NodePlan, ...]
    run: str
    token: str
    agent: AgentBundle
    work_directory: str
    reach: dict[str, Reach]
    forks: int = DEFAULT_FORKS
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    job_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    choices: Choices | None = None


def resolve(chosen: argparse.Namespace) -> Resolved:
    """Everything that can be known without touching a node. Raises DocumentError, UsageError."""
    runbook = load_runbook(chosen.runbook, chosen.extra_vars, on_hosts=bool(chosen.inventory))
    problems: list[Problem] = []
    places: Places = {}
    hosts, pods = Hosts(chosen.inventory), Pods()
    for capture in hosts.captures(runbook.captures):
        try:
            places[capture.name] = _places(runbook, capture, hosts, pods)
        except DocumentError as error:
            problems += [p for p in error.problems if p not in problems]
    problems += planning.compile_filters(runbook)
    if problems:
        raise DocumentError(problems)
    whole, places = places, _narrowed(places, hosts, chosen)
    printed = getattr(chosen, "manifests", False)
    # What `kubectl apply` stores beside an object is bounded, and a printed Job's agent is part of its manifest.
    agent = agent_bundle(compiled=not printed)
    if printed:
        run, token = _of_content(runbook, places, pods, agent, chosen.run_id or "")
    else:
        run, token = naming.run_id(runbook.name, time.time()), secrets.token_hex(3)
    plans = planning.build(runbook, places, run, agent)
    if len({p.id for p in plans}) != len(plans):
        raise UsageError("one node is meant twice in a capture")
    reach: dict[str, Reach] = {
        p.id: hosts.connections[p.capture, p.node] for p in plans if p.executor not in ("local", "kubernetes")
    }
    reach |= pods.reach(plans, token, agent)
    # Whole, as the run's record keeps it: `resume` and `cleanup` may be called from anywhere.
    work = os.path.abspath(chosen.work_dir or default_work_directory())
    return Resolved(
        runbook, plans, run, token, agent, work, reach, chosen.forks or DEFAULT_FORKS, pods.jobs,
        pods.as_record(), (*pods.notes, *open_files(len(reach))), Choices(pods, whole, lambda found: _narrowed(found, hosts, chosen)),
    )  # fmt: skip


def open_files(nodes: int) -> tuple[str, ...]:
    """Have this process may hold the connections of so many nodes open; what there is to say when it may not."""
    needed = FILES + FILES_A_NODE * nodes
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return (f"{nodes} nodes may take {needed} open files, and the limit is {hard}: ulimit -Hn, or --shard",)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return ()


def _narrowed(places: Places, hosts: Hosts, chosen: argparse.Namespace) -> Places:
    """Those that `--limit` and `--shard` leave. Raises UsageError."""
    places = limited(places, hosts.inventories, chosen.limit)
    if chosen.shard is not None:
        shard = shards.parse(chosen.shard)
        places = {c: [p for p in ps if shard.holds(p.node)] for c, ps in places.items()}
    return places


def _of_content(
    runbook: Runbook, places: Mapping[str, Sequence[planning.Place]], pods: Pods, agent: AgentBundle, run_id: str
) -> tuple[str, str]:
    """Run and token of manifests: of what they will hold and nothing else, so that the same is printed again."""
    from retina_runner.executors.kubernetes import standalone

    plans = planning.build(runbook, places, runbook.name, agent)
    pods.reach(plans, "", agent)
    token = standalone.token(run_id, pods.jobs.values(), (p.document for p in plans), host_shelves(runbook))
    return f"{runbook.name}-{token}", token


def host_shelves(runbook: Runbook) -> list[dict[str, Any]]:
    """Where archives are kept on their nodes, as agent.shelf.keep takes it."""
    return [dict(u.options) for u in runbook.uploads if u.kind == "host_path"]


def _places(runbook: Runbook, capture: Capture, hosts: Hosts, pods: Pods) -> list[planning.Place]:
    if isinstance(capture.nodes, LocalNodes):
        return [planning.Place(socket.gethostname(), "local")]
    if isinstance(capture.nodes, KubernetesNodes):
        return pods.places(runbook, capture, capture.nodes)
    return hosts.places(runbook, capture, capture.nodes)


def work_directory_of(resolved: Resolved, plan: planning.NodePlan) -> str:
    """The folder for agents on the plan's node."""
    to = resolved.reach.get(plan.id)
    return _work_directory(to) if to else resolved.work_directory


def _work_directory(to: Reach) -> str:
    if isinstance(to, PodReach):
        return WORK_DIRECTORY
    from retina_runner.executors import ssh

    return to.work_directory or ssh.default_work_directory(to.become_user if to.become else to.user)


def directory_of(resolved: Resolved, plan: planning.NodePlan, number: int) -> str:
    """Where the plan, the run's of that number, works on its node: short, safe, and not another run's."""
    return f"{work_directory_of(resolved, plan)}/{resolved.run}-{resolved.token}-{number}"


class Links:
    """Makes the links of one run; those over SSH share the bastions, and a bound on how many connect at a time.

    Those to pods share a session for each cluster; `jobs` are the manifests, by name, of the Jobs that are to be created.
    """

    def __init__(self, forks: int = DEFAULT_FORKS, jobs: Mapping[str, Mapping[str, Any]] | None = None):
        self._forks = forks
        self._connector: object | None = None
        self._jobs = {} if jobs is None else jobs  # the caller may add to them
        self._sessions: dict[tuple[str, str, str], Session] = {}
        self._lock = threading.Lock()

    def to(self, reach: Reach | None, work_directory: str) -> Link:
        """A link to this machine, to the host, into the container, or to the pod. `work_directory` is the folder for agents there."""
        if reach is None:
            return LocalLink(work_directory)
        if isinstance(reach, PodReach):
            from retina_runner.executors.kubernetes.link import PodLink

            return PodLink(self.session(reach), reach, self._jobs.get(reach.job))
        if reach.connector in ENTERED:
            return EnteredLink(reach, work_directory)
        from retina_runner.executors.ssh import SshLink
        from retina_runner.executors.ssh_connect import Connector

        with self._lock:  # `--check` and `cleanup` ask for links in a thread a node, and all have to share the bastions
            if not isinstance(self._connector, Connector):
                self._connector = Connector(self._forks)
        return SshLink(reach, work_directory, self._connector)

    def session(self, reach: PodReach) -> Session:
        """What the pods of one run share in one cluster. Raises UsageError."""
        from retina_runner.executors.kubernetes.session import Session

        key = (reach.kubeconfig, reach.context, reach.token)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(*key, self._forks)
            return self._sessions[key]

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        if self._connector is not None:
            self._connector.close()  # type: ignore[attr-defined]  # a Connector, which is imported where it is used
