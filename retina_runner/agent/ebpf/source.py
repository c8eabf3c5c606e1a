"""All BPF plugins of a plan as one source of metrics: compiled together where that works, each alone where it doesn't."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from retina_runner.agent import facts
from retina_runner.agent.ebpf import kprobes, syscalls
from retina_runner.agent.ebpf.compiling import (
    FUNCTION,
    HINT,
    RAW,
    RETURN,
    SOCKET,
    TAIL,
    Compiler,
    chosen,
    groups,
    without_btf,
)
from retina_runner.agent.ebpf.decode import DECODERS, Decoder, Described, Place
from retina_runner.agent.ebpf.meter import Meter
from retina_runner.agent.ebpf.program import Unit
from retina_runner.agent.ebpf.tables import Sums, Table
from retina_runner.agent.gaps import Gap
from retina_runner.agent.metrics import plugins
from retina_runner.agent.metrics.model import FAILED, OK, SKIPPED, Capability, ProgramCost, Sample, Scope, Source
from retina_runner.agent.metrics.namespaces import Namespace, inode_of


class Part:
    """Plugins that were compiled together, and what there is to say of where. `units` are one for each namespace of its
    sockets, the first for tracepoints as well."""

    def __init__(self, names: Tuple[str, ...], compiled: Mapping[str, Any], origin: str):
        self.names, self.compiled, self.origin = names, compiled, origin
        self.units: List[Tuple[str, Unit]] = []
        self.decoders: List[Decoder] = []


class BpfSource(Source):
    """See `Source`; `directory` is scratch space."""

    def __init__(self, names: Sequence[str], scope: Scope, options: Mapping[str, Any], directory: Path):
        self._plugins = chosen(names, options)
        self._own = {f["name"] for f in options.get("files", ())}
        self._scope, self._options, self._directory = scope, options, directory
        self._parts: List[Part] = []
        self._namespaces: List[Namespace] = []
        self._meter = Meter(self._run_times, syscalls.enable_run_times)
        self._misses: Dict[Tuple[int, str], int] = {}
        self._lost: List[Table] = []

    # -- prepare -----------------------------------------------------------------------------------------------------

    def prepare(self) -> List[Capability]:
        lacking = self._lacking()
        if lacking is not None:
            return [Capability(p.name, "", SKIPPED, *lacking) for p in self._plugins]
        try:
            for name in self._scope.namespaces or ("",):
                self._namespaces.append(Namespace(name))
            inodes = {inode_of(n.name): n.name for n in self._namespaces}
        except Gap as gap:
            return [Capability(p.name, "", FAILED, f"{gap.what}: {gap.why}", gap.hint) for p in self._plugins]
        rows: List[Capability] = []
        for together in self._compiled(rows):
            try:
                self._attach(together, inodes, rows)
            except OSError as error:
                rows += [Capability(n, "", FAILED, str(error.strerror or error)) for n in together.names]
        self._meter.start()
        return rows

    def _lacking(self) -> Optional[Tuple[str, str]]:
        """(why, hint) when no program can be loaded at all."""
        held = set(facts.rights()["capabilities"])
        if "sys_admin" not in held and not {"bpf", "perfmon", "net_raw"} <= held:
            return (
                "no right to load BPF programs (CAP_BPF, CAP_PERFMON and CAP_NET_RAW, or CAP_SYS_ADMIN)",
                "run as root",
            )
        no_btf = without_btf()
        return (no_btf, "a kernel with CONFIG_DEBUG_INFO_BTF=y") if no_btf else None

    def _compiled(self, rows: List[Capability]) -> List[Part]:
        """What can be had together, else plugin by plugin."""
        compiler = Compiler(self._options, self._directory)
        pending = groups(self._plugins, self._options)
        found: List[Part] = []
        while pending:
            group = pending.pop(0)
            names = tuple(p.name for p in group)
            answer, origin = compiler.unit(group)
            if "why" not in answer:
                found.append(Part(names, answer, origin))
            elif len(group) > 1 and answer.get("hint") != HINT:
                pending = [[p] for p in group] + pending
            else:
                rows += [Capability(n, "", FAILED, answer["why"], answer.get("hint", "")) for n in names]
        return found

    def _attach(self, part: Part, inodes: Dict[int, str], rows: List[Capability]) -> None:
        self._parts.append(part)  # before anything is in the kernel, so that `stop` knows of it
        labelled = bool(self._scope.namespaces)
        only = [] if self._scope.whole_node and not labelled else list(inodes)
        names = dict(inodes) if labelled else _names_of_namespaces()
        described = [p for p in self._plugins if p.name in part.names]
        sockets = any(h["kind"] == SOCKET for p in described for h in p.document["hooks"])
        for number, namespace in enumerate(self._namespaces if sockets else self._namespaces[:1]):
            unit = Unit(part.compiled)
            part.units.append((namespace.name, unit))
            unit.only(only)
            place = Place(names, labelled, namespace.name, lambda n=namespace: _interfaces(n))  # type: ignore[misc]
            attached: Dict[Tuple[str, str, str], Capability] = {}
            for plugin in described:
                hooks = [h for h in plugin.document["hooks"] if self._tried(h, number == 0)]
                told: List[Capability] = []
                detail = False
                for hook in hooks:
                    program = hook["detailed"] if detail and "detailed" in hook else hook["program"]
                    told.append(self._hook(plugin.name, {**hook, "program": program}, unit, namespace, part, attached))
                    detail = detail or (hook["kind"] in (FUNCTION, RETURN) and told[-1].status == OK)
                rows += [r for r in told if number == 0 or r.status != OK]
                lacking = [r for h, r in zip(hooks, told) if h["needed"] and r.status != OK]
                if lacking:
                    why = f"{lacking[0].hook}: {lacking[0].why}"
                    rows.append(Capability(plugin.name, "", lacking[0].status, why, lacking[0].hint))
                else:
                    part.decoders.append(self._decoder(plugin, unit, part, place))
            self._lost.append(Table(unit.maps["lost"], "=Q"))

    def _tried(self, hook: Mapping[str, Any], first: bool) -> bool:
        """Whether a hook belongs to a unit: the first has those of the whole kernel; some are for an option only."""
        asked = bool(self._options.get(hook.get("option", ""), True))
        return asked and (first or hook["kind"] in (SOCKET, TAIL))

    def _hook(
        self, plugin: str, hook: Mapping[str, Any], unit: Unit, namespace: Namespace, part: Part,
        attached: Dict[Tuple[str, str, str], Capability],
    ) -> Capability:  # fmt: skip
        shown = f"{hook['kind']}:{hook['target']}"
        key = (hook["kind"], hook["target"], hook["program"])
        if key in attached:  # plugins can share a program
            known = attached[key]
            return Capability(plugin, shown, known.status, known.why, known.hint)
        status, why = OK, part.origin
        try:
            if hook["kind"] == SOCKET:
                unit.attach_socket(namespace, hook["program"])
            elif hook["kind"] == TAIL:
                unit.attach_tail(hook["target"], hook["program"])
            elif hook["kind"] in (FUNCTION, RETURN):
                lacking = kprobes.lacking()
                if lacking:
                    status, why = SKIPPED, lacking
                else:
                    unit.attach_function(hook["target"], hook["kind"] == RETURN, hook["program"])
            elif hook["kind"] != RAW:
                status, why = SKIPPED, f"hooks of kind {hook['kind']} aren't supported"
            elif part.compiled["tracepoints"].get(hook["target"]) is None:
                status, why = SKIPPED, f"this kernel has no tracepoint {hook['target']}"
            else:
                unit.attach_raw_tracepoint(hook["target"], hook["program"])
        except OSError as error:
            status, why = FAILED, str(error.strerror or error)
        attached[key] = Capability(plugin, shown, status, why)
        return attached[key]

    def _decoder(self, plugin: plugins.Plugin, unit: Unit, part: Part, place: Place) -> Decoder:
        if plugin.name in self._own:
            kind: Any = type("Own", (Described,), {"description": plugin.document})
        else:
            kind = DECODERS[plugin.name]
        decoder: Decoder = kind(unit.maps, part.compiled, place)
        return decoder

    # -- while it runs -----------------------------------------------------------------------------------------------

    def zero(self) -> None:
        for part in self._parts:
            for decoder in part.decoders:
                decoder.zero()
        for table in self._lost:
            table.zero()
        self._misses = {key: now[2] for key, now in self._now().items()}
        self._meter.zero()

    def sample(self) -> List[Sample]:
        sums = Sums()
        for part in self._parts:
            for decoder in part.decoders:
                decoder.read(sums)
        return [Sample(metric, labels, value) for (metric, labels), value in sums.found.items()]

    def loss(self) -> Dict[str, int]:
        found = {"tables_full": sum(v[0] for table in self._lost for v in table.since().values())}
        found["recursion_misses"] = sum(now[2] - self._misses.get(key, 0) for key, now in self._now().items())
        for part in self._parts:
            for decoder in part.decoders:
                for kind, number in decoder.loss().items():
                    found[kind] = found.get(kind, 0) + number
        return found

    def cost(self) -> List[ProgramCost]:
        total: Dict[str, Tuple[int, int]] = {}
        times, share = self._meter.so_far()
        for (_, name), (runs, took) in times.items():
            known = total.get(name, (0, 0))
            total[name] = (known[0] + runs, known[1] + took)
        return [ProgramCost(name, runs, took, round(share, 3)) for name, (runs, took) in sorted(total.items())]

    def _run_times(self) -> Dict[Tuple[int, str], Tuple[int, int]]:
        return {key: (runs, took) for key, (took, runs, _) in self._now().items()}

    def _now(self) -> Dict[Tuple[int, str], Tuple[int, int, int]]:
        units = [unit for part in self._parts for _, unit in part.units]
        return {
            (number, name): syscalls.run_times(descriptor)
            for number, unit in enumerate(units)
            for name, descriptor in unit.programs.items()
        }

    def stop(self) -> None:
        self._meter.stop()
        for part in self._parts:
            for _, unit in part.units:
                unit.close()
        for namespace in self._namespaces:
            namespace.close()
        self._parts, self._lost, self._namespaces = [], [], []


def _interfaces(namespace: Namespace) -> Dict[int, str]:
    return dict(namespace.inside(socket.if_nameindex))


def _names_of_namespaces() -> Dict[int, str]:
    """Inode to name of the namespaces that have one here, and of the agent's own, whose name is empty."""
    found = {}
    for folder in ("/run/netns", "/var/run/netns"):
        try:
            for name in os.listdir(folder):
                found[os.stat(f"{folder}/{name}").st_ino] = name
        except OSError:
            continue
    return found
