"""Are the counters that a runbook's conditions ask for known? As far as that can be said without a node.

A metric is one of the plugins that the runbook loads, or of none: that is known. So are counters whose names the agent
itself makes (`softnet.…`, `interface.…`, `qdisc.…`). The kernel's own (`Udp.…`, `TcpExt.…`) are as its version has them:
one that this machine's kernel doesn't know is worth a note, no more.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retina_runner.agent import counters, symptoms
from retina_runner.agent.conditions import Condition
from retina_runner.agent.metrics import account, plugins, text
from retina_runner.documents import Path_
from retina_runner.errors import Problem

if TYPE_CHECKING:
    from retina_runner.runbook import Capture, Runbook

ASKING = ("value", "delta", "rate")


@dataclass(frozen=True)
class Asked:
    """One call of a condition: `delta("Udp.InErrors", …)`. `column` counts from 1 in the condition's own text."""

    name: str
    labels: tuple[str, ...]
    column: int


@dataclass(frozen=True)
class Place:
    """One condition of a runbook. `everywhere`: a node without the counter is in trouble, whatever the others have."""

    path: Path_
    condition: Condition
    everywhere: bool


def asked(condition: Condition) -> Iterator[Asked]:
    """What it asks of counters, in the order of its text."""
    found = []
    for node in ast.walk(condition.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                labels = tuple(k.arg for k in node.keywords if k.arg)
                found.append(Asked(str(argument.value), labels, argument.col_offset + 1))
    yield from sorted(found, key=lambda a: a.column)


def problems(runbook: Runbook, places: Sequence[Place]) -> Iterator[Problem]:
    """Names that no node can have."""
    for place in places:
        for call in asked(place.condition):
            metric = call.name in place.condition.metrics
            said = _metric(call, runbook.captures, place.everywhere) if metric else _counter(call)
            if said is not None:
                yield runbook.problem(place.path, f"at character {call.column}: {said[0]}", said[1])


def notes(places: Sequence[Place]) -> Iterator[str]:
    """What this machine's kernel doesn't count; the nodes' may."""
    here = sorted({name for name, _ in symptoms.counters()}) if places else []
    for place in places:
        for call in asked(place.condition):
            known = call.name in place.condition.metrics or call.name in here or call.name.partition(".")[0] in _made()
            near = difflib.get_close_matches(call.name, here, 1)
            if not known and near and call.name != "conntrack.use":
                yield f"{_dotted(place.path)}: this machine's kernel has no counter {call.name}; the nearest is {near[0]}"


# -- metrics of plugins ------------------------------------------------------------------------------------------------


def _metric(call: Asked, captures: Sequence[Capture], everywhere: bool) -> tuple[str, str] | None:
    lacking = [capture for capture in captures if not _has(call.name, _families(capture))]
    if lacking and (everywhere or len(lacking) == len(captures)):
        where = f"capture {lacking[0].name}" if len(captures) > 1 and everywhere else "this runbook"
        return f"no plugin of {where} has a metric {call.name}", _offer(call.name, lacking[0])
    families = next(f for f in map(_families, captures) if _has(call.name, f))
    allowed = text.family_of(call.name, families).labels
    for label in call.labels:
        if label not in (*allowed, "le"):
            known = f"it has {', '.join(allowed)}" if allowed else "it has none"
            return f"{call.name} has no label {label}", _nearest(label, allowed) or known
    return None


def _families(capture: Capture) -> dict[str, plugins.Family]:
    loaded = []
    for entry in capture.collect:
        if entry.name == "ebpf":
            loaded += [plugins.load(name) for name in entry.options["plugins"]]
            loaded += [plugins.parse(f["name"], f["description"]) for f in entry.options["files"]]
    return {**plugins.families(loaded), **account.FAMILIES} if loaded else {}


def _has(name: str, families: dict[str, plugins.Family]) -> bool:
    return name in families or text.family_of(name, families).name != name


def _offer(name: str, capture: Capture) -> str:
    """The next step: the plugin that has it, or the nearest name that there is."""
    for plugin in plugins.names():
        if _has(name, plugins.families([plugins.load(plugin)])):
            return f"collect ebpf: {{plugins: [{plugin}]}}, which has it"
    here = sorted(_families(capture))
    shipped = sorted({f for p in plugins.names() for f in plugins.families([plugins.load(p)])})
    return (
        _nearest(name, here)
        or _nearest(name, shipped)
        or "retina-run schema plugin, and docs/metrics.md, have the names"
    )


# -- counters that the agent names ---------------------------------------------------------------------------------------


def _counter(call: Asked) -> tuple[str, str] | None:
    group, dot, rest = call.name.partition(".")
    known = _made().get(group)
    if known is None or not dot or rest in known:
        return None
    return f"there is no counter {call.name}", _nearest(call.name, [f"{group}.{name}" for name in known])


def _made() -> dict[str, tuple[str, ...]]:
    """Groups of counters whose names are the agent's: what a node has of each, it has under these."""
    return {
        "softnet": tuple(counters.SOFTNET.values()),
        "interface": counters.DEV_COLUMNS,
        "softirq": counters.SOFTIRQS,
        "qdisc": counters.QDISC,
    }


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 3)
    return f"the nearest: {', '.join(near)}" if near else ""


def _dotted(path: Path_) -> str:
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f"{'.' if shown else ''}{part}"
    return shown
