"""What became of a run. Console, table, JUnit, `run.json` and exit status are all made of this; it is folded from events
(folding.py). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

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
