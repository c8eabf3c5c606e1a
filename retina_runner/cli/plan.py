"""`retina-run plan`: what would run where, what it may cost, which rights it takes; nothing is touched."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from retina_runner import bytecode, planning
from retina_runner.agent import facts, process
from retina_runner.agent.collectors import ebpf
from retina_runner.cli.resolve import Resolved, host_shelves, resolve, work_directory_of
from retina_runner.delivery import open_places
from retina_runner.errors import Exit, UsageError
from retina_runner.executors.kubernetes import standalone
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.units import format_size


def main(chosen: argparse.Namespace) -> int:
    if chosen.run_id is not None:
        if not chosen.manifests:
            raise UsageError("--run-id: it names the objects of --manifests; a run's own name is made of its time")
        if not standalone.RUN_ID.fullmatch(chosen.run_id):
            raise UsageError(
                f"--run-id {chosen.run_id!r}: at most 30 of a-z, 0-9 and -, not - first or last; it is a part of names"
            )
    resolved = resolve(chosen)
    if chosen.json:
        print(json.dumps([dict(p.document) for p in resolved.plans], indent=1))
        return Exit.OK
    if chosen.manifests:
        return _manifests(resolved)
    for note in (*resolved.runbook.notes, *resolved.notes):
        print(note)
    print("\n".join(planning.describe(resolved.plans, resolved.runbook)))
    for place in open_places([{"kind": u.kind, "options": u.options} for u in resolved.runbook.uploads]):
        print(f"  archives to {place.plan()}")
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
        for line in (*_unloadable(plan), *_probes(plan)):
            print(f"  {line}")
        if plan.executor == "local":
            missing = [c[0] for c in told["commands"] if process.find(c[0]) is None]
            if missing:
                print(f"  missing here: {', '.join(sorted(set(missing)))}; retina-run doctor says how to get it")
    return Exit.OK


def _unloadable(plan: planning.NodePlan) -> Iterator[str]:
    """Which plugins of `ebpf` can't be had on this machine, and what would help; a line a reason."""
    store = bytecode.Store(bytecode.default_directory())
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in plan.document["collectors"] if plan.executor == "local" else ():
        if entry["name"] == "ebpf":
            for gap in ebpf.problems(store.supplied(entry["options"]))[1]:
                reasons.setdefault((gap.why, gap.hint), []).append(gap.what.removeprefix("plugin "))
    for (why, hint), names in reasons.items():
        yield f"ebpf without {', '.join(dict.fromkeys(names))}: {why}" + (f" ({hint})" if hint else "")


def _probes(plan: planning.NodePlan) -> Iterator[str]:
    """What becomes of the hooks at functions of the kernel, which only add detail: tried here, unknown elsewhere."""
    wanted: dict[tuple[str, bool], list[str]] = {}
    for entry in plan.document["collectors"]:
        if entry["name"] == "ebpf":
            wanted |= ebpf.probed(entry["options"]["plugins"], entry["options"])
    if not wanted:
        return
    names = ", ".join(sorted({name for names in wanted.values() for name in names}))
    if plan.executor != "local":
        yield f"kprobes, for more of {names}: unknown until the node has tried; see the capabilities in its manifest"
        return
    refused = ebpf.unprobed(wanted)
    said = "; ".join(f"not at {', '.join(of)}: {why}" for why, of in refused.items())
    yield f"kprobes, for more of {names}: {said or 'present'}"


def _job(job: Mapping[str, Any]) -> str:
    """One line on what is created, and what its container may."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    context = container["securityContext"]
    rights = (
        "privileged"
        if context.get("privileged")
        else "capabilities: " + (", ".join(context["capabilities"]["add"]) or "none")
    )
    if job["spec"]["template"]["spec"].get("hostPID"):
        rights += "; sees the node's processes"
    return f"Job {job['metadata']['namespace']}/{job['metadata']['name']}, image {container['image']}; {rights}"


def _manifests(resolved: Resolved) -> int:
    if not resolved.jobs:
        raise UsageError("--manifests: the runbook has no nodes of a cluster")
    plans = {
        to.job: plan.document for plan in resolved.plans if isinstance(to := resolved.reach.get(plan.id), PodReach)
    }
    made = standalone.manifests(
        resolved.token, resolved.agent.name, resolved.agent.content, resolved.jobs.values(), plans,
        host_shelves(resolved.runbook),
    )  # fmt: skip
    for note in _not_without_a_runner(resolved):
        print(f"retina-run: {note}", file=sys.stderr)
    print(standalone.text(made), end="")
    return Exit.OK


def _not_without_a_runner(resolved: Resolved) -> Iterator[str]:
    """What the runbook asks for and these manifests can't do."""
    runbook = resolved.runbook
    if runbook.trigger:
        yield (
            "trigger: without a runner each node records its own events, and its archives say so; one window on all nodes "
            "takes a runner"
        )
    others = sorted({u.kind for u in runbook.uploads if u.kind != "host_path"})
    if others:
        yield f"upload: {', '.join(others)} takes a runner, which holds the credentials; host_path doesn't"
    left = sum(p.executor != "kubernetes" for p in resolved.plans)
    if left:
        yield f"{left} of {len(resolved.plans)} nodes aren't the cluster's and are left out"
