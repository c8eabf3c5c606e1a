"""`retina-run plan`: what would run where, what it may cost, which rights it takes; nothing is touched."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from typing import Any

from retina_runner import planning
from retina_runner.agent import facts, process
from retina_runner.cli.resolve import Resolved, resolve, work_directory_of
from retina_runner.errors import Exit, UsageError
from retina_runner.executors.kubernetes import standalone
from retina_runner.executors.kubernetes.link import PodReach
from retina_runner.units import format_size


def main(chosen: argparse.Namespace) -> int:
    resolved = resolve(chosen)
    if chosen.json:
        print(json.dumps([dict(p.document) for p in resolved.plans], indent=1))
        return Exit.OK
    if chosen.manifests:
        return _manifests(resolved)
    for note in resolved.notes:
        print(note)
    print("\n".join(planning.describe(resolved.plans, resolved.runbook)))
    here = facts.rights()
    for plan in resolved.plans:
        told = planning.detail(plan)
        print(f"\n{told['id']} ({told['executor']})")
        for command in told["commands"]:
            print(f"  {shlex.join(command)}")
        print(
            f"  at most {format_size(told['worst_case_bytes'])} on the node's disk, in {work_directory_of(resolved, plan)}"
        )
        to = resolved.reach.get(plan.id)
        if isinstance(to, PodReach):
            print(f"  {_job(resolved.jobs[to.job])}")
        elif told["needs"]:
            lacking = sorted(set(told["needs"]) - set(here["capabilities"])) if plan.executor == "local" else []
            have = (
                f"; missing here: {', '.join(lacking)} (run as root)"
                if lacking
                else "; present"
                if plan.executor == "local"
                else ""
            )
            print(f"  rights: {', '.join(told['needs'])}{have}")
        if plan.executor == "local":
            missing = [c[0] for c in told["commands"] if process.find(c[0]) is None]
            if missing:
                print(f"  missing here: {', '.join(sorted(set(missing)))}; retina-run doctor says how to get it")
    return Exit.OK


def _job(job: Mapping[str, Any]) -> str:
    """One line on what is created, and what its container may."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    context = container["securityContext"]
    rights = (
        "privileged"
        if context.get("privileged")
        else "capabilities: " + (", ".join(context["capabilities"]["add"]) or "none")
    )
    return f"Job {job['metadata']['namespace']}/{job['metadata']['name']}, image {container['image']}; {rights}"


def _manifests(resolved: Resolved) -> int:
    if not resolved.jobs:
        raise UsageError("--manifests: the runbook has no nodes of a cluster")
    plans = {
        to.job: plan.document for plan in resolved.plans if isinstance(to := resolved.reach.get(plan.id), PodReach)
    }
    shelves = [dict(u.options) for u in resolved.runbook.uploads if u.kind == "host_path"]
    made = standalone.manifests(
        resolved.token, resolved.agent.name, resolved.agent.content, resolved.jobs.values(), plans, shelves
    )
    print(standalone.text(made), end="")
    return Exit.OK
