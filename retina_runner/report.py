"""What became of a run, folded from its events. Console, table, JUnit, `run.json` and exit status are all made of this.

Pure: the same events give the same report, live or years later. Unknown events and fields are passed over, so that an
older retina-run can read a newer run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from retina_runner.agent.context import UNKNOWN, worst
from retina_runner.errors import Exit

RUN_FORMAT = 1
ENDED = ("collected", "partial", "failed", "abandoned", "skipped")
"""States of a node that nothing follows. `partial`: an archive came back, but a collector failed or couldn't be verified."""


@dataclass(frozen=True)
class Trouble:
    """What went wrong, why, and the next step."""

    what: str
    why: str
    hint: str = ""


@dataclass(frozen=True)
class CollectorReport:
    """One collector on one node: ready, done, skipped, failed or partial."""

    name: str
    status: str
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class UploadReport:
    """One target of one archive: stored, failed or skipped."""

    target: str
    state: str
    location: str = ""
    why: str = ""
    via: str = "runner"
    chosen: str = ""
    """Why the runner, or the node, was the one to store it."""


@dataclass(frozen=True)
class Expectation:
    """One line of `expect` on one node; `why` has the numbers. One that isn't `ok` is a finding."""

    expression: str
    ok: bool
    why: str = ""


@dataclass(frozen=True)
class Cost:
    """What the collection took of a node, from getrusage(2): CPU seconds of everything that was started, the most memory
    of one process, and how often one gave up the processor to wait."""

    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    waits: int = 0


@dataclass(frozen=True)
class NodeReport:
    """One plan on one node. Bytes, packets and drops are the newest that are known.

    `reach` is what a later runner needs to get there again (inventory.Connection as an object); None for this machine.
    `offset_s` is the node's clock minus the runner's, wrong by `offset_error_s` at most; by `drift_s` it had changed after
    the window (`drift_error_s` is both errors together). Once its window has `opened`:
    `late_s` is how long after T0, in the node's own clock, all its collectors were armed, and `opened_s` how long after T0
    it first looked at them. `cut_short` says why its window was ended before its time, if it was.

    A frozen window of a ring is a row of its own, whose id is the node's with `#` and the event's name; its `trigger` says
    what froze it.
    """

    id: str
    node: str
    capture: str
    executor: str
    directory: str = ""
    reach: Mapping[str, Any] | None = None
    state: str = "pending"
    elapsed_s: float = 0.0
    total_s: float = 0.0
    bytes: int = 0
    packets: int = 0
    dropped: int = 0
    free_bytes: int | None = None
    late_s: float = 0.0
    opened_s: float = 0.0
    cut_short: str = ""
    opened: bool = False
    offset_s: float | None = None
    offset_error_s: float | None = None
    drift_s: float | None = None
    drift_error_s: float | None = None
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    archive: str = ""
    size_bytes: int = 0
    sha256: str = ""
    verified: bool | None = None
    started: bool = False
    removed: bool = False
    collectors: tuple[CollectorReport, ...] = ()
    skipped: tuple[Trouble, ...] = ()
    uploads: tuple[UploadReport, ...] = ()
    warnings: tuple[str, ...] = ()
    trouble: Trouble | None = None
    remains: str = ""
    expectations: tuple[Expectation, ...] = ()
    cost: Cost | None = None
    trigger: Mapping[str, Any] | None = None

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def findings(self) -> tuple[Expectation, ...]:
        return tuple(e for e in self.expectations if not e.ok)

    @property
    def failed_collectors(self) -> tuple[CollectorReport, ...]:
        return tuple(c for c in self.collectors if c.status == "failed")


@dataclass(frozen=True)
class Skew:
    """Seconds between the first and the last window of `nodes` to open, and the most by which that can be wrong: any
    two clocks are known to the sum of their errors. `p50_s` and `p99_s`: within how long after T0 half of them and 99 of
    a hundred had opened (the nearest rank), wrong by the largest error, `after_error_s`."""

    nodes: int
    spread_s: float
    error_s: float
    p50_s: float
    p99_s: float
    after_error_s: float


@dataclass(frozen=True)
class RunReport:
    """A whole run; nodes in the order in which the run named them."""

    run: str = ""
    runbook: str = ""
    runbook_sha256: str = ""
    version: str = ""
    directory: str = ""
    pid: int = 0
    started: str = ""
    t0: str = ""
    ended: str = ""
    duration_s: float = 0.0
    fail_on_loss: bool = False
    terms: Mapping[str, Any] | None = None
    nodes: tuple[NodeReport, ...] = ()
    interrupted: str = ""
    remains: tuple[str, ...] = ()
    held_back: str = ""
    exit_code: int | None = None

    @property
    def state(self) -> str:
        """`running` until the run's own end event; a runner that was killed leaves it so."""
        return "ended" if self.exit_code is not None else "running"

    @property
    def skew(self) -> Skew | None:
        """How far apart the windows of the run opened; None for fewer than two nodes whose clocks were compared."""
        opened = [n for n in self.nodes if n.opened and n.offset_error_s is not None]
        if len(opened) < 2:
            return None
        late = sorted(n.opened_s for n in opened)
        errors = sorted((n.offset_error_s or 0.0 for n in opened), reverse=True)
        p50_s, p99_s = (late[math.ceil(share * len(late)) - 1] for share in (0.5, 0.99))
        return Skew(len(opened), late[-1] - late[0], errors[0] + errors[1], p50_s, p99_s, errors[0])


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


def exit_code(report: RunReport) -> Exit:
    """The exit status that a run's events amount to. The first that holds, in this order:

    interrupted; nothing was started anywhere; no node has an archive; some node or collector failed, or somebody else (who
    drained the node, say) ended its window early; some archive isn't stored where the runbook says; some archive isn't
    complete though the runbook says `fail_on_loss`; something isn't as `expect` says. Nodes whose condition (`when`) wasn't
    met had nothing to do.
    """
    if report.interrupted:
        return Exit.TERMINATED if report.interrupted in ("SIGTERM", "DEADLINE") else Exit.INTERRUPTED
    if not any(n.started for n in report.nodes):
        return Exit.UNTOUCHED
    busy = [n for n in report.nodes if n.state != "skipped"]
    if busy and not any(n.archive for n in busy):
        return Exit.NONE_SUCCEEDED if len(busy) == len(report.nodes) else Exit.SOME_FAILED
    if any(n.state != "collected" or n.cut_short for n in busy):
        return Exit.SOME_FAILED
    if any(u.state == "failed" for n in report.nodes for u in n.uploads):
        return Exit.NOT_UPLOADED
    if report.fail_on_loss and any(n.verdict != "complete" for n in busy):
        return Exit.LOSSY
    if any(n.findings for n in busy):
        return Exit.FINDINGS
    return Exit.OK


def to_json(report: RunReport) -> dict[str, Any]:
    """The content of `run.json` (schemas/run.json)."""
    return {"format": RUN_FORMAT, "state": report.state, "skew": _plain(report.skew), **_plain(report)}


def _plain(value: Any) -> Any:
    """Dataclasses as objects, all the way down. dataclasses.asdict copies everything besides, which takes a fleet's time."""
    if is_dataclass(value):
        return {name: _plain(content) for name, content in vars(value).items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def from_json(document: Mapping[str, Any]) -> RunReport:
    """The inverse of `to_json`."""
    fields = {k: v for k, v in document.items() if k not in ("format", "state", "skew", "nodes")}
    fields["remains"] = tuple(fields.get("remains", ()))
    return RunReport(**fields, nodes=tuple(_node_from(n) for n in document["nodes"]))


def _node_from(given: Mapping[str, Any]) -> NodeReport:
    fields = dict(given)
    for name in ("reasons", "warnings"):
        fields[name] = tuple(fields[name])
    fields["collectors"] = tuple(CollectorReport(**c) for c in fields["collectors"])
    fields["skipped"] = tuple(Trouble(**t) for t in fields["skipped"])
    fields["uploads"] = tuple(UploadReport(**u) for u in fields["uploads"])
    fields["cost"] = Cost(**fields["cost"]) if fields.get("cost") else None
    fields["expectations"] = tuple(Expectation(**e) for e in fields.get("expectations", ()))
    fields["trouble"] = Trouble(**fields["trouble"]) if fields["trouble"] else None
    return NodeReport(**fields)
