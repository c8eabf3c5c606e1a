"""What the measuring itself has to say, as metrics: each plugin's capabilities, each program's cost, what was not counted."""

from __future__ import annotations

from typing import Dict, Iterable, List, Mapping

from retina_runner.agent.metrics.model import Capability, ProgramCost, Sample
from retina_runner.agent.metrics.plugins import COUNTER, GAUGE, Family

FAMILIES: Dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            "retinarun_plugin_info", GAUGE, "", "1 for each hook of each plugin, with what became of it on this node",
            ("plugin", "hook", "status", "why"), series=False,
        ),
        Family(
            "retinarun_bpf_runs_total", COUNTER, "", "How often each BPF program ran during the capture",
            ("program",), series=False,
        ),
        Family(
            "retinarun_bpf_run_seconds_total", COUNTER, "seconds", "CPU time of each BPF program during the capture",
            ("program",), series=False,
        ),
        Family(
            "retinarun_not_counted_total", COUNTER, "", "What the plugins know that they did not count, by kind",
            ("kind",),
        ),
    )
}  # fmt: skip


def samples(capabilities: Iterable[Capability], costs: Iterable[ProgramCost], loss: Mapping[str, int]) -> List[Sample]:
    """The samples of FAMILIES."""
    found = [
        Sample(
            "retinarun_plugin_info", (("plugin", c.plugin), ("hook", c.hook), ("status", c.status), ("why", c.why)), 1
        )
        for c in capabilities
    ]
    for cost in costs:
        label = (("program", cost.program),)
        found.append(Sample("retinarun_bpf_runs_total", label, cost.run_count))
        found.append(Sample("retinarun_bpf_run_seconds_total", label, cost.run_time_ns / 1e9))
    found += [Sample("retinarun_not_counted_total", (("kind", kind),), n) for kind, n in sorted(loss.items())]
    return found
