"""From the words of the command line to plans and links: what `run`, `plan` and `--list-hosts` share. Touches no node."""

from __future__ import annotations

import argparse
import fnmatch
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from retina_runner import naming, planning
from retina_runner.agent import process
from retina_runner.bundle import AgentBundle, agent_bundle
from retina_runner.errors import DocumentError, Problem, UsageError
from retina_runner.executors import Link
from retina_runner.executors.local import LocalLink, default_work_directory
from retina_runner.runbook import Capture, InventoryNodes, LocalNodes, Runbook, load_runbook


@dataclass(frozen=True)
class Resolved:
    """A runbook with its nodes and plans. `token` tells this run's directories on nodes from every other's."""

    runbook: Runbook
    plans: tuple[planning.NodePlan, ...]
    run: str
    token: str
    agent: AgentBundle
    work_directory: str


def resolve(chosen: argparse.Namespace) -> Resolved:
    """Everything that can be known without touching a node. Raises DocumentError, UsageError."""
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    problems: list[Problem] = []
    places: dict[str, list[planning.Place]] = {}
    for capture in runbook.captures:
        places[capture.name] = _places(runbook, capture, chosen, problems)
    problems += planning.compile_filters(runbook, process.run)
    if problems:
        raise DocumentError(problems)
    places = _limited(places, chosen.limit)
    agent = agent_bundle()
    run = naming.run_id(runbook.name, time.time())
    plans = planning.build(runbook, places, run, agent)
    if len({p.id for p in plans}) != len(plans):
        raise UsageError("one node is meant twice in a capture")
    return Resolved(runbook, plans, run, secrets.token_hex(3), agent, chosen.work_dir or default_work_directory())


def _places(
    runbook: Runbook, capture: Capture, chosen: argparse.Namespace, problems: list[Problem]
) -> list[planning.Place]:
    if isinstance(capture.nodes, LocalNodes):
        if chosen.inventory:
            raise UsageError(
                "-i: nodes of an inventory can't be reached yet; captures with `nodes: local` run on this machine"
            )
        return [planning.Place(socket.gethostname(), "local")]
    kind = "an inventory" if isinstance(capture.nodes, InventoryNodes) else "a Kubernetes cluster"
    problems.append(
        runbook.problem(
            (*capture.path, "nodes"), f"nodes of {kind} can't be reached by this version", "it runs on `local`"
        )
    )
    return []


def _limited(places: Mapping[str, list[planning.Place]], pattern: str | None) -> dict[str, list[planning.Place]]:
    """`--limit`: names and globs, separated by commas or colons, `!` for without. Raises UsageError when none is left."""
    if pattern is None:
        return dict(places)
    wanted = [w for w in pattern.replace(":", ",").split(",") if w]
    chosen = [w for w in wanted if not w.startswith("!")] or ["*"]
    left_out = [w[1:] for w in wanted if w.startswith("!")]

    def match(name: str, patterns: list[str]) -> bool:
        return any(p == "all" or fnmatch.fnmatchcase(name, p) for p in patterns)

    limited = {c: [p for p in ps if match(p.node, chosen) and not match(p.node, left_out)] for c, ps in places.items()}
    if not any(limited.values()):
        from retina_runner.documents import nearest

        known = sorted({p.node for ps in places.values() for p in ps})
        raise UsageError(f"--limit {pattern}: no node of the runbook matches; {nearest(chosen[0], known)}")
    return limited


def directory_of(resolved: Resolved, number: int) -> str:
    """Where the plan of that number works on its node: short, safe, and not another run's."""
    return f"{resolved.work_directory}/{resolved.run}-{resolved.token}-{number}"


def link_of(resolved: Resolved, plan: planning.NodePlan) -> Link:
    """A link to the plan's node."""
    assert plan.executor == "local"
    return LocalLink(resolved.work_directory)
