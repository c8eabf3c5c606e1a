"""From plugin names to sources: all BPF programs together are one, each plugin that only reads files is one of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

from retina_runner.agent.metrics import plugins
from retina_runner.agent.metrics.model import FAILED, Capability, Scope, Source

READERS = {
    "linuxutil": "LinuxUtil",
    "conntrack": "Conntrack",
    "infiniband": "Infiniband",
    "softirq": "Softirq",
}
"""Plugin to the class of its module in here; each takes (scope, options)."""
BPF_DOOR = ("retina_runner.agent.ebpf.source", "BpfSource")
"""The one class for all plugins of kind bpf: BpfSource(plugins, scope, options, directory).

`options` are the collector's (schemas/collectors/ebpf.json), with `files` as a list of {name, source, description}: the
user's own plugins, the texts themselves. `directory` is private scratch space."""


class Lacking(Source):
    """Stands for plugins that this agent has no code for; says so, and nothing else."""

    def __init__(self, names: Sequence[str], why: str):
        self._rows = [Capability(n, "", FAILED, why) for n in names]

    def prepare(self) -> List[Capability]:
        return list(self._rows)


def open_sources(
    names: Sequence[str], scope: Scope, options: Mapping[str, Any], directory: Path
) -> Tuple[List[Tuple[Tuple[str, ...], Source]], List[plugins.Plugin]]:
    """([(plugins, their source)], every plugin's description). Nothing is loaded or attached before `prepare`."""
    own = [plugins.parse(f["name"], f["description"]) for f in options.get("files", ())]
    found: List[Tuple[Tuple[str, ...], Source]] = []
    described: List[plugins.Plugin] = []
    programs: List[str] = []
    for name in names:
        try:
            plugin = plugins.load(name)
        except KeyError:
            found.append(((name,), Lacking([name], "this agent has no such plugin")))
            continue
        described.append(plugin)
        if plugin.kind == plugins.BPF:
            programs.append(name)
        else:
            module = importlib.import_module(f"retina_runner.agent.metrics.{name}")
            found.append(((name,), getattr(module, READERS[name])(scope, options)))
    programs += [p.name for p in own]
    if programs:
        found.insert(0, (tuple(programs), _bpf(programs, scope, options, directory)))
    return found, described + own


def _bpf(names: Sequence[str], scope: Scope, options: Mapping[str, Any], directory: Path) -> Source:
    try:
        module = importlib.import_module(BPF_DOOR[0])
    except ImportError as error:
        return Lacking(names, f"this agent can't load BPF programs: {error}")
    source: Source = getattr(module, BPF_DOOR[1])(tuple(names), scope, options, directory)
    return source
