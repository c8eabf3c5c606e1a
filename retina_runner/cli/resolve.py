"""From the words of the command line to plans and links: what `run`, `plan` and `--list-hosts` share. Touches no node."""

from __future__ import annotations

import argparse
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retina_runner import inventory, naming, planning
from retina_runner.agent import process
from retina_runner.bundle import AgentBundle, agent_bundle
from retina_runner.errors import DocumentError, Problem, UsageError
from retina_runner.executors import Link
from retina_runner.executors.local import LocalLink, default_work_directory
from retina_runner.inventory.connection import Connection
from retina_runner.inventory.model import Inventory, Setting
from retina_runner.inventory.patterns import NoMatch, match
from retina_runner.runbook import Capture, InventoryNodes, KubernetesNodes, LocalNodes, Runbook, load_runbook

DEFAULT_FORKS = 50


@dataclass(frozen=True)
class Resolved:
    """A runbook with its nodes and plans. `token` tells this run's directories on nodes from every other's.

    `reach` is by plan id, for the plans whose nodes aren't this machine.
    """

    runbook: Runbook
    plans: tuple[planning.NodePlan, ...]
    run: str
    token: str
    agent: AgentBundle
    work_directory: str
    reach: Mapping[str, Connection]
    forks: int = DEFAULT_FORKS


@dataclass
class _Found:
    """What the captures' nodes came to."""

    places: dict[str, list[planning.Place]] = field(default_factory=dict)
    reach: dict[str, Connection] = field(default_factory=dict)
    inventories: list[Inventory] = field(default_factory=list)


def resolve(chosen: argparse.Namespace) -> Resolved:
    """Everything that can be known without touching a node. Raises DocumentError, UsageError."""
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    problems: list[Problem] = []
    found = _Found()
    for capture in _captures(runbook, chosen.inventory):
        try:
            found.places[capture.name] = _places(runbook, capture, chosen.inventory, found)
        except DocumentError as error:
            problems += [p for p in error.problems if p not in problems]
    problems += planning.compile_filters(runbook, process.run)
    if problems:
        raise DocumentError(problems)
    places = _limited(found, chosen.limit)
    agent = agent_bundle()
    run = naming.run_id(runbook.name, time.time())
    plans = planning.build(runbook, places, run, agent)
    if len({p.id for p in plans}) != len(plans):
        raise UsageError("one node is meant twice in a capture")
    reach = {p.id: found.reach[f"{p.capture}/{p.node}"] for p in plans if p.executor == "ssh"}
    work = chosen.work_dir or default_work_directory()
    return Resolved(runbook, plans, run, secrets.token_hex(3), agent, work, reach, chosen.forks or DEFAULT_FORKS)


def _captures(runbook: Runbook, inventories: Sequence[str]) -> tuple[Capture, ...]:
    """The captures, on the hosts of `-i` where the whole runbook names no nodes but this machine."""
    if not inventories or not all(isinstance(c.nodes, LocalNodes) for c in runbook.captures):
        return runbook.captures
    return tuple(replace(c, nodes=InventoryNodes((), "all")) for c in runbook.captures)


def _places(runbook: Runbook, capture: Capture, inventories: Sequence[str], found: _Found) -> list[planning.Place]:
    here = (*capture.path, "nodes")
    if isinstance(capture.nodes, LocalNodes):
        return [planning.Place(socket.gethostname(), "local")]
    if isinstance(capture.nodes, KubernetesNodes):
        message = "nodes of a Kubernetes cluster can't be reached by this version"
        raise DocumentError([runbook.problem(here, message, "`local` and hosts of an inventory can")])
    sources = capture.nodes.inventories or tuple(inventories)
    if not sources:
        raise DocumentError([runbook.problem(here, "names hosts and no inventory", "inventory: FILE here, or -i FILE")])
    known = inventory.read(sources)
    found.inventories.append(known)
    try:
        hosts = inventory.select(known, capture.nodes.hosts)
    except UsageError as error:
        raise DocumentError([runbook.problem((*here, "hosts"), str(error))]) from None
    places = []
    for connection in inventory.connections(hosts):
        if connection.connector == "local":
            places.append(planning.Place(connection.host, "local"))
        else:
            found.reach[f"{capture.name}/{connection.host}"] = connection
            places.append(planning.Place(connection.host, "ssh"))
    return places


def _limited(found: _Found, pattern: str | None) -> dict[str, list[planning.Place]]:
    """`--limit`, a host pattern (`@FILE`: one a line). Raises UsageError when none is left."""
    if pattern is None:
        return found.places
    if pattern.startswith("@"):
        try:
            pattern = ",".join(Path(pattern[1:]).read_text(encoding="utf-8").split())
        except OSError as error:
            raise UsageError(f"--limit {pattern}: {error.strerror}") from None
    nodes = dict.fromkeys(p.node for ps in found.places.values() for p in ps)
    plain = Inventory(host_settings={n: dict[str, Setting]() for n in nodes})
    wanted, why = set[str](), ""
    for known in (plain, *found.inventories):
        try:
            wanted.update(match(known, pattern))
        except NoMatch as error:
            why = why or str(error)
        except ValueError as error:
            raise UsageError(f"--limit {pattern}: {error}") from None
    limited = {c: [p for p in ps if p.node in wanted] for c, ps in found.places.items()}
    if not any(limited.values()):
        raise UsageError(f"--limit {pattern}: no node of the runbook matches; {why or 'all of them are left out'}")
    return limited


def work_directory_of(resolved: Resolved, plan: planning.NodePlan) -> str:
    """The folder for agents on the plan's node."""
    to = resolved.reach.get(plan.id)
    return _work_directory(to) if to else resolved.work_directory


def _work_directory(to: Connection) -> str:
    from retina_runner.executors import ssh

    return to.work_directory or ssh.default_work_directory(to.become_user if to.become else to.user)


def directory_of(resolved: Resolved, number: int) -> str:
    """Where the plan of that number works on its node: short, safe, and not another run's."""
    return f"{work_directory_of(resolved, resolved.plans[number])}/{resolved.run}-{resolved.token}-{number}"


class Links:
    """Makes the links of one run; those over SSH share the bastions, and a bound on how many connect at a time."""

    def __init__(self, forks: int = DEFAULT_FORKS):
        self._forks = forks
        self._connector: object | None = None

    def to(self, reach: Connection | None, work_directory: str) -> Link:
        """A link to this machine, or to the host. `work_directory` is the folder for agents there."""
        if reach is None:
            return LocalLink(work_directory)
        from retina_runner.executors.ssh import SshLink
        from retina_runner.executors.ssh_connect import Connector

        if not isinstance(self._connector, Connector):
            self._connector = Connector(self._forks)
        return SshLink(reach, work_directory, self._connector)

    def close(self) -> None:
        if self._connector is not None:
            self._connector.close()  # type: ignore[attr-defined]  # a Connector, which is imported where it is used
