"""The manifest: everything that an archive says of itself. A pure function of what was gathered; schemas/manifest.json."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

from retina_runner.agent.clock import Step
from retina_runner.agent.context import Record, utc, worst
from retina_runner.agent.plan import Plan
from retina_runner.agent.records import asdict, dataclass

MANIFEST_FORMAT = 1
POD_FIELDS = ("namespace", "name", "uid")


@dataclass(frozen=True)
class WindowFacts:
    """`t0` is T0 on the runner's clock (the archive's name), `t0_node` the same instant on this node's; seconds."""

    t0: float
    t0_node: float
    duration_s: float
    late_s: float
    stopped_early: Optional[str]


@dataclass(frozen=True)
class ClockFacts:
    """Node's clock minus runner's, as the runner measured it (None: not measured), and the steps during the window."""

    offset_s: Optional[float]
    offset_error_s: Optional[float]
    steps: Tuple[Step, ...]


@dataclass(frozen=True)
class CostFacts:
    """What the collection cost the node: getrusage(2) of the worker and of the processes that it started."""

    cpu_s: float
    peak_rss_bytes: int
    peak_child_rss_bytes: int
    rehearsal_s: float


def render(*, plan: Plan, record: Record, base: str, host: Mapping[str, Any], files: Iterable[Any], window: WindowFacts,
           clock: ClockFacts, cost: CostFacts, phases: Mapping[str, str], planned_s: Optional[float] = None,
           trigger: Optional[Mapping[str, Any]] = None) -> bytes:  # fmt: skip
    """The manifest's JSON. `files` are archive.MemberInfo. `trigger` is what froze a ring (recorder.Freeze.told), and
    `planned_s` how long that window should have been."""
    entries = []
    for file in files:
        entry: Dict[str, Any] = {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
        if file.path in record.packets:
            entry["packets"] = record.packets[file.path]
        entries.append(entry)
    document: Dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "base": base,
        "run": plan.run,
        "runbook": dict(plan.runbook),
        "capture": plan.capture,
        "node": plan.node,
        "executor": plan.executor,
        **({"pod": {k: plan.document["pod"][k] for k in POD_FIELDS}} if plan.document.get("pod") else {}),
        "verdict": worst([v.verdict for v in record.verdicts]),
        "verdicts": [asdict(v) for v in record.verdicts],
        "window": {
            "t0": utc(window.t0),
            "t0_node": utc(window.t0_node),
            "end": utc(window.t0 + window.duration_s),
            "duration_s": round(window.duration_s, 6),
            "planned_s": plan.duration_s if planned_s is None else planned_s,
            "late_s": round(window.late_s, 6),
            "stopped_early": window.stopped_early,
        },
        **({"trigger": dict(trigger)} if trigger is not None else {}),
        "clock": {
            "offset_s": clock.offset_s,
            "offset_error_s": clock.offset_error_s,
            "steps": [{"step_s": round(s.step_s, 6), "before": utc(s.before)} for s in clock.steps],
        },
        "host": dict(host),
        "agent": plan.document.get("agent", {}),
        "limits": plan.document["limits"],
        "collectors": record.collectors,
        "skipped": record.skipped,
        "capabilities": record.capabilities,
        "programs": record.programs,
        "warnings": record.warnings,
        "commands": record.commands,
        "phases": dict(phases),
        "cost": {
            "cpu_s": round(cost.cpu_s, 3),
            "peak_rss_bytes": cost.peak_rss_bytes,
            "peak_child_rss_bytes": cost.peak_child_rss_bytes,
            "rehearsal_s": round(cost.rehearsal_s, 3),
        },
        "files": entries,
    }
    return (json.dumps(document, indent=1) + "\n").encode()
