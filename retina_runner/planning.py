"""From a runbook and its nodes to plans: everything that one node will do, frozen. Pure: time and ids are arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from retina_runner import endpoints, filter_compiling, filters, naming
from retina_runner.agent import PLAN_FORMAT, process
from retina_runner.agent.metrics import plugins
from retina_runner.agent.packets import command
from retina_runner.agent.state_items import NODE_WIDE
from retina_runner.bundle import AgentBundle
from retina_runner.errors import DocumentError, Problem
from retina_runner.rings import ring_of
from retina_runner.runbook import Capture, CollectorEntry, Runbook
from retina_runner.units import format_duration, format_size

COMPILE_LIMIT_S = 60.0
FILTER_OPTIONS = ("filter", "include", "exclude", "source", "destination")


@dataclass(frozen=True)
class Place:
    """A node that a capture runs on, and the executor that reaches it. `scope` is AND-ed to every filter there.

    With `pod` (see schemas/plan.json) the capture looks inside that pod's network namespace, and is named for it.
    """

    node: str
    executor: str
    scope: filters.Expression | None = None
    pod: Mapping[str, str] | None = None

    @property
    def id(self) -> str:
        """Tells the places of a capture apart."""
        return f"{self.node}/{self.pod['namespace']}/{self.pod['name']}" if self.pod else self.node

    @property
    def name(self) -> str:
        """What the archive is named for. Kubernetes' names have no `_`, so that no two pods share one."""
        return f"{self.pod['namespace']}_{self.pod['name']}" if self.pod else self.node


@dataclass(frozen=True)
class NodePlan:
    """One plan. `id` is unique in the run; `document` is what the agent reads (schemas/plan.json)."""

    id: str
    node: str
    capture: str
    executor: str
    document: Mapping[str, Any]

    @cached_property
    def text(self) -> bytes:
        return (json.dumps(self.document, indent=1) + "\n").encode()


def build(
    runbook: Runbook, places: Mapping[str, Sequence[Place]], run: str, agent: AgentBundle
) -> tuple[NodePlan, ...]:
    """A plan for each node of each capture; `places` is by capture name. Raises DocumentError for filters that won't do."""
    problems: list[Problem] = []
    plans: list[NodePlan] = []
    several = len(runbook.captures) > 1
    for capture in runbook.captures:
        for place in places[capture.name]:
            collectors = []
            for entry in capture.collect:
                options = inside(entry) if place.pod else dict(entry.options)
                if entry.name == "tcpdump":
                    found = expression(runbook, entry, place.scope)
                    if isinstance(found, Problem):
                        if found not in problems:
                            problems.append(found)
                        continue
                    options["expression"] = found
                    if runbook.trigger:
                        options |= ring_of(options, runbook.trigger)
                collectors.append({"id": entry.id, "name": entry.name, "options": options})
            plans.append(_plan(runbook, capture, place, run, agent, collectors, several))
    if problems:
        raise DocumentError(problems)
    return tuple(plans)


def plan_id(capture: str, place: str, several: bool) -> str:
    """What tells plans of a run apart; `several`: the runbook has more than one capture."""
    return f"{capture}/{place}" if several else place


def _plan(runbook: Runbook, capture: Capture, place: Place, run: str, agent: AgentBundle,
          collectors: list[dict[str, Any]], several: bool) -> NodePlan:  # fmt: skip
    limits = runbook.limits
    prefix = naming.capture_prefix(runbook.name, capture.name, several)
    return NodePlan(
        id=plan_id(capture.name, place.id, several),
        node=place.node,
        capture=capture.name,
        executor=place.executor,
        document={
            "format": PLAN_FORMAT,
            "run": run,
            "runbook": {"name": runbook.name, "sha256": runbook.sha256},
            "capture": capture.name or runbook.name,
            "node": place.node,
            "executor": place.executor,
            **({"pod": dict(place.pod)} if place.pod else {}),
            "prefix": f"{prefix}-{naming.safe_node(place.name)}",
            "agent": {"name": agent.name, "sha256": agent.sha256},
            "duration_s": runbook.duration_s,
            "t0": None,
            "ready_timeout_s": limits.ready_timeout_s,
            "expiry_s": limits.expiry_s,
            "compression": runbook.compression,
            "limits": {
                "node_bytes": limits.node_bytes,
                "disk_free_percent": limits.disk_free_percent,
                "disk_free_bytes": limits.disk_free_bytes,
                "nice": limits.nice,
                "memory": limits.memory_bytes,
            },
            "collectors": collectors,
            **({"when": {"condition": runbook.when.condition, "over_s": runbook.when.over_s}} if runbook.when else {}),
            **({"trigger": asdict(runbook.trigger)} if runbook.trigger else {}),
            **({"expect": list(runbook.expect)} if runbook.expect else {}),
        },
    )


def inside(entry: CollectorEntry) -> dict[str, Any]:
    """An entry's options for a pod's network namespace, which the agent has entered: nothing of the node's besides."""
    options = dict(entry.options)
    if entry.name == "ebpf":
        options["scope"] = "netns"
    if entry.name == "network-state":
        options["exclude"] = [*options["exclude"], *NODE_WIDE]
    return options


def expression(runbook: Runbook, entry: CollectorEntry, scope: filters.Expression | None = None) -> str | Problem:
    """The pcap filter of a tcpdump entry: scope, include, exclude, source, destination and the user's text, AND-ed."""
    options = entry.options
    wrong = next(_no_endpoints(runbook, entry), None)
    if wrong is not None:
        return wrong
    try:
        built = filters.build(
            filter=str(options.get("filter") or ""),
            include=[str(t) for t in options.get("include") or ()],
            exclude=[str(t) for t in options.get("exclude") or ()],
            source=[str(t) for t in options.get("source") or ()],
            destination=[str(t) for t in options.get("destination") or ()],
            scope=scope,
        )
    except ValueError as error:
        return runbook.problem((*entry.path, "filter"), str(error))
    return filters.render(built)


def _no_endpoints(runbook: Runbook, entry: CollectorEntry) -> Iterator[Problem]:
    """Every address, network or port of a tcpdump entry that is none."""
    for name in FILTER_OPTIONS[1:]:
        read = endpoints.parse_endpoint if name in ("include", "exclude") else endpoints.parse_address
        for index, text in enumerate(entry.options.get(name) or ()):
            try:
                read(str(text))
            except ValueError as error:
                yield runbook.problem((*entry.path, name, index), str(error))


def compile_here(argv: Sequence[str]) -> process.Outcome:
    """Run libpcap's compiler on this machine. Long filters take seconds on a busy one; an unanswered name takes for ever."""
    return process.run(argv, limit_s=COMPILE_LIMIT_S)


def compile_filters(
    runbook: Runbook, run: Callable[[Sequence[str]], process.Outcome] = compile_here
) -> tuple[Problem, ...]:
    """What is wrong with every filter of the runbook, by what libpcap itself says of it where this machine has tcpdump."""
    here = process.find("tcpdump") is not None
    problems: list[Problem] = []
    for capture in runbook.captures:
        for entry in capture.collect:
            if entry.name != "tcpdump":
                continue
            text = expression(runbook, entry)
            if isinstance(text, Problem):
                problems += list(_no_endpoints(runbook, entry)) or [text]
                continue
            why = filter_compiling.compile_check(text, run=run) if text and here else None
            if why:
                problems.append(runbook.problem((*entry.path, "filter"), f"tcpdump can't compile it: {why}"))
    return tuple(problems)


def describe(plans: Sequence[NodePlan], runbook: Runbook) -> tuple[str, ...]:
    """The plan in a few lines, before a run: what, how long, where, and what it may cost at most."""
    limits = runbook.limits
    nodes = sorted({p.node for p in plans})
    shown = ", ".join(nodes[:6]) + (f" and {len(nodes) - 6} more" if len(nodes) > 6 else "")
    lines = [
        f"{runbook.name}: {runbook.summary}" if runbook.summary else runbook.name,
        f"  {format_duration(runbook.duration_s)} on {len(nodes)} node{'s' if len(nodes) != 1 else ''}: {shown}",
    ]
    views = [f"{p.document['pod']['namespace']}/{p.document['pod']['name']}" for p in plans if p.document.get("pod")]
    if views:
        more = f" and {len(views) - 6} more" if len(views) > 6 else ""
        lines.append(f"  inside {len(views)} pod{'s' if len(views) != 1 else ''}: {', '.join(views[:6])}{more}")
    if runbook.trigger:
        to = runbook.trigger
        lines.append(
            f"  rings, of which {format_duration(to.before_s)} before and {format_duration(to.after_s)} after are kept on all "
            f"nodes when one shows {to.condition}; {to.count} times at most"
        )
    for capture in runbook.captures:
        parts = ", ".join(_entry_line(entry) for entry in capture.collect)
        lines.append(f"  {capture.name + ': ' if len(runbook.captures) > 1 else ''}{parts}")
    lines.append(
        f"  bounds on each node: {format_size(limits.node_bytes)} on disk, {limits.disk_free_percent} % and "
        f"{format_size(limits.disk_free_bytes)} stay free, {format_size(limits.memory_bytes)} memory a process, nice {limits.nice}, "
        f"gone after {format_duration(limits.expiry_s)} at the latest"
    )
    return tuple(lines)


def _entry_line(entry: CollectorEntry) -> str:
    if entry.name != "tcpdump":
        return entry.id
    options = entry.options
    ring = options.get("ring")
    bound = (
        f"ring of {ring['files']} x {format_size(ring['file_size'])}"
        if ring
        else f"up to {format_size(options['max_size'])}"
    )
    return f"{entry.id} on {', '.join(options['interfaces'])} ({format_size(options['snaplen'])} a packet, {bound})"


def detail(plan: NodePlan) -> dict[str, Any]:
    """What exactly will run on a node: argv, the most bytes it can hold there, and the rights that it takes."""
    commands: list[list[str]] = []
    worst_bytes, needs = 0, set()
    for entry in plan.document["collectors"]:
        options = entry["options"]
        if entry["name"] == "tcpdump":
            for interface in options["interfaces"]:
                commands.append(command.argv(options, interface, f"raw/{entry['id']}/tap.pcap"))
            worst_bytes += command.worst_case_bytes(options, len(options["interfaces"]))
            needs |= {"net_raw", "net_admin"}
        elif entry["name"] == "command":
            commands.append(list(options["argv"]))
        elif entry["name"] in ("iptables", "network-state"):
            needs.add("net_admin")
        elif entry["name"] == "ebpf":
            for name in options["plugins"]:
                needs |= set(plugins.load(name).rights) if name in plugins.names() else set()
            needs |= {"bpf", "perfmon", "net_raw"} if options["files"] else set()
    bound = int(plan.document["limits"]["node_bytes"])
    return {
        "id": plan.id,
        "node": plan.node,
        "executor": plan.executor,
        "collectors": [e["id"] for e in plan.document["collectors"]],
        "commands": commands,
        "worst_case_bytes": min(worst_bytes, bound) if worst_bytes else bound,
        "needs": sorted(needs),
    }
