"""docs/metrics.md, made from the plugins' own descriptions, bpf/*.json, and the table of what was really run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retina_runner.agent.metrics import plugins

TRIED = (
    (
        "6.18",
        "Debian 12",
        "0.26",
        "3.11",
        "every plugin but infiniband, with exact counts: tests/ebpf, tests/node/test_metrics.py; it has no kprobes",
    ),
)
"""Kernel, distribution, BCC, Python, what ran there. Only what this very code ran on."""
EXACT = (
    "every plugin but infiniband, with exact counts, netfilter's chain and conntrack inserts by kprobe: tests/kernels"
)
MATRIX = (
    ("5.10", "Debian 11", "0.18", "3.9", f"{EXACT}; this kernel names no drop reasons"),
    ("6.1", "Debian 12", "0.26", "3.11", EXACT),
    ("6.12", "Debian 13", "0.31", "3.13", EXACT),
)
"""The same of what tests/kernels boots; those tests compare it with what the guests say of themselves."""
LAST_RUN = (
    "tests/kernels last ran on 2026-11-28: 39 of 39 tests on its three kernels, in 9 min 31 s, and 14 of 14, one of them new, "
    "on 6.1 alone."
)
NOT_TRIED = (
    "other kernels from 5.5 on",
    "Ubuntu 22.04 and 24.04, RHEL 8 and 9",
    "arm64",
    "other versions of BCC",
)


def page(made: str) -> str:
    """The page's text; `made` is the line that says how."""
    lines = [made.replace("the schemas", "bpf/*.json"), "", *INTRODUCTION.strip().splitlines(), ""]
    lines += ["| plugin | counts | with | default |", "| --- | --- | --- | --- |"]
    for name in plugins.names():
        plugin = plugins.load(name)
        kind = "BPF" if plugin.kind == plugins.BPF else "/proc, sysfs"
        lines.append(f"| [{name}](#{name}) | {plugin.summary} | {kind} | {'yes' if plugin.default else ''} |")
    lines += [
        "",
        "## Where it was run",
        "",
        "| kernel | distribution | BCC | Python | what |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in sorted((*TRIED, *MATRIX), key=_version)]
    lines += ["", LAST_RUN, "", f"Not tried: {'; '.join(NOT_TRIED)}.", ""]
    for name in plugins.names():
        lines += _plugin(plugins.load(name))
    return "\n".join(lines).rstrip() + "\n"


def _version(row: tuple[str, ...]) -> list[int]:
    return [int(number) for number in row[0].split(".")]


def _plugin(plugin: plugins.Plugin) -> Iterator[str]:
    document = plugin.document
    yield from (f"## {plugin.name}", "", f"{plugin.summary}.", "")
    yield from ("| metric | type | unit | labels | meaning |", "| --- | --- | --- | --- | --- |")
    for metric in document["metrics"]:
        labels = "; ".join(f"`{name}`: {values}" for name, values in metric.get("labels", {}).items())
        total = "" if metric.get("series", True) else " (totals only)"
        yield f"| `{metric['name']}` | {metric['type']} | {metric['unit']} | {labels} | {metric['help']}{total} |"
    yield ""
    for hook in document["hooks"]:
        need = "" if hook["needed"] else " (if it can be had)"
        need += f" (with `{hook['option']}: true`)" if "option" in hook else ""
        yield f"- {hook['kind']} `{hook['target']}`{need}: {hook.get('adds', '')}"
    for entry in document["maps"]:
        yield f"- map `{entry['name']}`, {entry['type']}, {entry['entries']} entries: {entry['holds']}"
    rights = ", ".join(f"CAP_{r.upper()}" for r in document["rights"]) or "none"
    yield f"- kernel {document['minimum_kernel']} or newer; rights: {rights}; cost: {_cost(document['cost'])}"
    for limit in document.get("limits", ()):
        yield f"- Not told: {limit[0].lower() + limit[1:] if limit[1:2].islower() else limit}"
    yield ""


def _cost(cost: dict[str, Any]) -> str:
    if cost["ns"] is None:
        return "not measured"
    return f"{cost['ns']} ns of CPU per {cost['per']} ({cost['measured']})"


INTRODUCTION = """
# Metric plugins

`ebpf: {plugins: [dropreason, dns], interval: 1s}` loads these plugins on the node for the length of the window. They
count from T0 to its end; what they counted belongs to the archive:

| file | what |
| --- | --- |
| `metrics/metrics.json` | totals of the window with type, unit and help; capabilities, losses, each program's cost |
| `metrics/metrics.prom` | the same totals as Prometheus text 0.0.4, for a textfile collector or a Pushgateway |
| `metrics/series.jsonl` | one JSON object at each `interval`: the samples that changed since the line before, cumulative |

Names beginning with `networkobservability_` are those of Microsoft Retina, with its labels where the meaning is the same;
`retinarun_` are ours. What only grows is a counter (Retina exports most of it as gauges). In OpenMetrics text a counter's
name must end in `_total`; Retina's names don't, and are written there with the type `unknown` rather than renamed.

BPF programs are attached to raw tracepoints and packet sockets, and for more detail, where a kernel has kprobes (x86_64 so
far), to some of its functions: the kernel takes all of them away when the agent's process ends, however it ends. BCC
(`apt-get install python3-bpfcc`, or `dnf install python3-bcc`) compiles them on the node, in a
child process; no kernel headers are needed, but the kernel's own type information, /sys/kernel/btf/vmlinux. A plugin that
can't be had on a node is left out with its reason; everything else is still collected. Every hook is a row of
`capabilities` in the manifest. Whether functions can be probed on this machine, `doctor` and `plan` try beforehand; of other
nodes it is unknown until they have tried. What a plugin knows that it missed (a full table, a program run that the kernel skipped, a
counter that was reset, a CPU that went or came) makes the verdict of the totals `lossy`, with the number. A run is
skipped where an interrupt brings the next event while the same program is busy with one, on the same CPU; the kernel counts
these (`recursion_misses`) for the whole machine, so that with `netns` or a scope they may have been of others.

Every program's cost is a row of `programs` in the manifest, by the kernel's own account. That account takes as long as a
small program: it is kept for the first ten seconds, and for a tenth of a second of every two from then on; `measured_share`
says in how much of the time the numbers were measured, and they are multiplied to the whole.

CPU time with the default plugins, as a ratio to none (`python benchmarks/ebpf.py` on 6.18, 2 vCPU, a busy machine; medians of
turns of the least of 30 short samples each, in several runs): x1.21 to x1.25 for a packet of 22 B that is forwarded between
three namespaces and dropped where it arrives (x1.28 to x1.30 with `packetparser`; x1.30 to x1.37 while the account is kept),
x1.01 to x1.04 for bulk TCP with GSO (x1.04 to x1.06; x1.05 to x1.06). The loader takes 0.09 s of CPU and 15 MB from compiled
programs, 0.6 s with BCC, whose child has 135 MB.

What a node has compiled goes back with the run, and the runner keeps it in `~/.cache/retina-run/bytecode` (`$XDG_CACHE_HOME`
counts); nothing of it stays on the node. Later plans take it along: a node of the same kernel needs neither BCC nor the time
to compile, and `why` in its capabilities says "bytecode that the runner brought". `resume` and `retina-run exporter` use and
fill the same cache. Jobs that `plan --manifests` prints don't, though a kernel's programs, some 15 kB, would fit the ConfigMap of their
plan: manifests are the same wherever and whenever they are printed, and named for what they hold, so that what a runner happened to
have met would make other Jobs, and another capture, of the same runbook. The image that they run has BCC. The same kernel
means the same release, build, machine and BTF, and the same programs, ports and table sizes; everything else is refused. So
is what is damaged, and every program that calls more of the kernel than counting takes: a node that was taken over can't
have the runner carry a harmful program to the others. A kernel that no run has met yet needs BCC on one of its nodes, once.

`netns: [blue, "pid:4711"]` counts in those network namespaces alone, each with a label of its own. Without it, tracepoints
see the whole node and packet sockets the agent's own namespace; `scope: netns` confines both to the agent's.

Plugins of your own: [own-plugins.md](own-plugins.md).
"""
