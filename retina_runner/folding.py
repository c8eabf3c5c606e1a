"""From a run's events to its report, one by one: live, or years later from its directory.

Pure: the same events give the same report. Unknown events and fields are passed over, so that an older retina-run can
read a newer run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retina_runner.agent.context import UNKNOWN, worst
from retina_runner.report import CollectorReport, Cost, Expectation, NodeReport, RunReport, Trouble, UploadReport


@dataclass
class Fold:
    """Takes events one by one."""

    _run: RunReport = field(default_factory=RunReport)
    _nodes: dict[str, NodeReport] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        kind = str(event.get("event", ""))
        identifier = event.get("id")
        if identifier is None:
            self._run = _on_run(self._run, self._nodes, kind, event)
            return
        node = self._nodes.get(identifier) or NodeReport(
            identifier, str(event.get("node", identifier)), str(event.get("capture", "")), ""
        )
        self._nodes[identifier] = _on_node(node, kind, event)

    def node(self, identifier: str) -> NodeReport | None:
        return self._nodes.get(identifier)

    def report(self) -> RunReport:
        return replace(self._run, nodes=tuple(self._nodes.values()))


def fold(events: Iterable[Mapping[str, Any]]) -> RunReport:
    """The report of these events."""
    folding = Fold()
    for event in events:
        folding.add(event)
    return folding.report()


def _on_run(run: RunReport, nodes: dict[str, NodeReport], kind: str, event: Mapping[str, Any]) -> RunReport:
    match kind:
        case "run-start":
            for n in event.get("nodes", ()):
                nodes[n["id"]] = NodeReport(
                    n["id"], n["node"], n["capture"], n["executor"], n.get("directory", ""), n.get("reach")
                )
            return replace(
                run, run=event["run"], runbook=event["runbook"], runbook_sha256=event.get("runbook_sha256", ""),
                version=event.get("version", ""), directory=event.get("directory", ""), pid=event.get("pid", 0),
                started=event.get("time", ""), duration_s=event.get("duration_s", 0.0), fail_on_loss=event.get("fail_on_loss", False),
                terms=event.get("terms"),
            )  # fmt: skip
        case "t0":
            return replace(run, t0=event["t0"])
        case "interrupted":
            return replace(run, interrupted=event["signal"], remains=tuple(event.get("remains", ())))
        case "held-back":
            why = f"{event['failed']} nodes failed, more than max_fail ({event['max_fail']}): nothing new was started"
            return replace(run, held_back=why)
        case "resumed":
            # Whoever adopted the run reads its agents' events from the first on.
            for n in nodes.values():
                if n.id in event["ids"]:
                    nodes[n.id] = NodeReport(n.id, n.node, n.capture, n.executor, n.directory, n.reach)
            return replace(run, pid=event["pid"], exit_code=None, ended="", interrupted="", remains=())
        case "run-end":
            return replace(run, ended=event.get("time", ""), exit_code=event["exit_code"])
    return run


def _on_node(node: NodeReport, kind: str, event: Mapping[str, Any]) -> NodeReport:
    match kind:
        case "node-joined":
            return NodeReport(
                node.id, node.node, node.capture, event["executor"], event["directory"], event.get("reach"),
                warnings=(f"planned only before T0: {event['why']}",),
            )  # fmt: skip
        case "node-replanned":
            again = f"planned again before T0: {event['why']}"
            return replace(node, state="checked", directory=event["directory"], warnings=(*node.warnings, again))
        case "node-left":
            nothing = Trouble("pods", event["why"])
            return replace(node, state="skipped", started=False, removed=True, skipped=(*node.skipped, nothing))
        case "node-check":
            return replace(node, state="checked" if event["ok"] else node.state)
        case "started":
            return replace(node, started=True)
        case "phase":
            return replace(node, state=event["phase"])
        case "ready":
            return replace(node, state="ready", free_bytes=event.get("free_bytes"))
        case "collector":
            return _on_collector(node, event)
        case "skipped":
            gap = Trouble(f"{event['collector']}: {event['what']}", event["why"], event.get("hint", ""))
            return node if gap in node.skipped else replace(node, skipped=(*node.skipped, gap))
        case "window":
            late_s = event.get("late_s", 0.0)
            return replace(node, late_s=late_s, opened_s=event.get("opened_s", late_s), opened=True)
        case "node-clock":
            return replace(node, offset_s=event["offset_s"], offset_error_s=event["error_s"])
        case "clock-drift":
            return _on_drift(node, event)
        case "progress":
            return replace(
                node, elapsed_s=event["elapsed_s"], total_s=event["total_s"], bytes=event["bytes"], packets=event["packets"],
                dropped=event["dropped"], free_bytes=event.get("free_bytes", node.free_bytes),
            )  # fmt: skip
        case "limit":
            return replace(node, warnings=(*node.warnings, f"{event['limit']}: {event['why']}"))
        case "warning":
            return replace(node, warnings=(*node.warnings, event["why"]))
        case "clock":
            return replace(node, warnings=(*node.warnings, f"{event['why']}: by {event['step_s']:+.3f} s"))
        case "lost":
            return replace(node, warnings=(*node.warnings, f"connection lost: {event['why']}"))
        case "archive":
            return replace(
                node, verdict=event["verdict"], reasons=tuple(event["reasons"]), size_bytes=event["size_bytes"],
                sha256=event["sha256"], packets=event.get("packets", node.packets), dropped=event.get("dropped", node.dropped),
                cost=Cost(**event["cost"]) if "cost" in event else node.cost, cut_short=event.get("cut_short", ""),
            )  # fmt: skip
        case "recording":
            return replace(node, state="fetching", trigger=event["trigger"])
        case "expectation":
            told = Expectation(event["expression"], event["ok"], event.get("why", ""))
            return replace(node, expectations=(*node.expectations, told))
        case "end":
            return _on_end(node, event)
        case "fetched":
            return replace(node, archive=event["path"])
        case "verified":
            return _settled(replace(node, verified=event["ok"]))
        case "upload":
            upload = UploadReport(
                event["target"],
                event["state"],
                event.get("location", ""),
                event.get("why", ""),
                event.get("via", "runner"),
                event.get("chosen", ""),
            )
            # A later attempt at the same target takes the place of the one that failed.
            others = tuple(u for u in node.uploads if u.target != upload.target)
            return replace(node, uploads=(*others, upload))
        case "delivered":
            whole = node.state in ("collected", "partial") or not node.failed_collectors
            state = "partial" if node.state == "partial" or not whole else "collected"
            return replace(node, archive=event["location"], state=state)
        case "removed":
            return replace(node, removed=True)
        case "node-failed":
            trouble = Trouble(event["what"], event["why"], event.get("hint", ""))
            state = "partial" if node.archive else "failed"
            return replace(node, state=state, trouble=node.trouble or trouble, remains=event.get("remains", ""))
    return node


def _on_collector(node: NodeReport, event: Mapping[str, Any]) -> NodeReport:
    status = CollectorReport(event["collector"], event["status"], event.get("why", ""), event.get("hint", ""))
    others = [c for c in node.collectors if c.name != status.name]
    before = next((c for c in node.collectors if c.name == status.name), None)
    if before is not None and before.status == "failed" and status.status == "done":
        return node
    position = node.collectors.index(before) if before else len(others)
    return replace(node, collectors=(*others[:position], status, *others[position:]))


def _on_drift(node: NodeReport, event: Mapping[str, Any]) -> NodeReport:
    node = replace(node, drift_s=event["drift_s"], drift_error_s=event["error_s"])
    if not event["stepped"]:
        return node
    unknown_s = event["drift_s"] - event["known_s"]
    why = f"its clock was moved by {unknown_s:+.3f} s in the window, unseen by the node: which time stamps are wrong isn't known"
    return replace(node, verdict=worst((node.verdict or UNKNOWN, UNKNOWN)), reasons=(*node.reasons, why))


def _on_end(node: NodeReport, event: Mapping[str, Any]) -> NodeReport:
    if event["state"] == "collected":
        return replace(node, state="fetching")
    if event["state"] == "skipped":
        return replace(node, state="skipped", skipped=(*node.skipped, Trouble("when", event.get("why", ""))))
    trouble = Trouble(event["state"], event.get("why", ""), event.get("hint", ""))
    return replace(node, state="failed" if event["state"] == "failed" else "abandoned", trouble=node.trouble or trouble)


def _settled(node: NodeReport) -> NodeReport:
    return replace(node, state="collected" if node.verified and not node.failed_collectors else "partial")
