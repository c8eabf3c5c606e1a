"""The flight recorder: looks at the node again and again, and has its rings frozen when the trigger's condition holds.

    watching ── condition holds ──► fired ── the runner's order, for all nodes ──► frozen ── window over ──► recorded
       ▲                              └───── none within `patience` ─► frozen alone ┘                           │
       └──────────────────────────────────────── cool-down ◄────────────────────────────────────────────────────┘

Who decides is the runner: the window that it orders is the same instants on every node of the run, each told in its own
clock. A node that fired and hears nothing freezes its own ring, and its archive says that it did so alone. This module
knows neither packets nor archives: `Rings` is what it needs of them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Set, Tuple

from retina_runner.agent import conditions, symptoms
from retina_runner.agent.clock import both
from retina_runner.agent.context import stamp_of, utc
from retina_runner.agent.counters import Snapshot
from retina_runner.agent.records import dataclass, field, replace

STEP_S = 0.1
LINGER_S = 3.0
"""How long a node whose window is over still takes an order: another's event may have happened in its last moment."""
LOOKS_MOST = 30
"""How many looks are remembered over the time before an event, to say which counters moved in a recording's window."""


@dataclass(frozen=True)
class Terms:
    """`trigger` of a plan; seconds. `count` recordings at most, each followed by `cooldown_s` of not looking. A plan
    without a runner has no `patience_s`: its node waits for nobody."""

    condition: conditions.Condition
    every_s: float
    before_s: float
    after_s: float
    count: int
    cooldown_s: float
    patience_s: float

    @staticmethod
    def of(document: Mapping[str, Any]) -> "Terms":
        return Terms(
            conditions.parse(document["condition"]), document["every_s"], document["before_s"], document["after_s"],
            document["count"], document["cooldown_s"], document["patience_s"],
        )  # fmt: skip


@dataclass(frozen=True)
class Freeze:
    """One window that is to be kept. `instant`, `start` and `end` are Unix time on this node's clock, `reference` is the
    instant on the runner's. `stamp` names it. `why_alone` is empty for a window that all nodes share."""

    stamp: str
    node: str
    condition: str
    values: Mapping[str, float]
    instant: float
    reference: float
    start: float
    end: float
    offset_s: Optional[float] = None
    offset_error_s: Optional[float] = None
    last: bool = False
    why_alone: str = ""
    stopped: str = ""

    @staticmethod
    def of(order: Mapping[str, Any]) -> "Freeze":
        """An order, as the `freeze` verb left it."""
        known = Freeze.__annotations__
        return Freeze(**{k: v for k, v in order.items() if k in known})

    def told(self) -> Dict[str, Any]:
        """What events and the manifest say of it."""
        return {
            "stamp": self.stamp, "node": self.node, "condition": self.condition, "values": dict(self.values),
            "instant": utc(self.reference), "instant_node": utc(self.instant), "before_s": round(self.instant - self.start, 6),
            "after_s": round(self.end - self.instant, 6), "alone": self.why_alone,
        }  # fmt: skip


@dataclass
class Rings:
    """What a recorder does to the rings, and `counters`, its look at the node. `protect(True)` keeps everything that they
    hold until `protect(False)`; `record` makes one archive; `offset` is the node's clock minus the runner's (None: not
    measured) and its error."""

    protect: Callable[[bool], None]
    record: Callable[[Freeze, Snapshot, Snapshot], None]
    counters: Callable[[], Snapshot]
    offset: Tuple[Optional[float], Optional[float]] = (None, None)


@dataclass
class _Look:
    at: float
    counters: Snapshot
    rules: Dict[str, int]


@dataclass
class Recorder:
    """Watches one node during its window. `orders` is the folder that the `freeze` verb writes to."""

    terms: Terms
    node: str
    orders: Path
    emit: Callable[..., None]
    rings: Rings
    recorded: int = 0
    done: str = ""
    _own: Optional[Freeze] = None
    _own_end: float = 0.0
    _own_until: float = 0.0
    _pending: List[Tuple[float, Freeze]] = field(default_factory=list)
    _seen: Set[str] = field(default_factory=set)
    _taken: Set[str] = field(default_factory=set)
    _looks: Deque[_Look] = field(default_factory=deque)
    _last: Optional[_Look] = None
    _next_look: float = 0.0
    _quiet_until: float = 0.0
    _warned: str = ""

    def begin(self, counters: Snapshot) -> None:
        """The first look, at T0: what moves from then on may be an event."""
        self._look(time.monotonic(), counters)

    def run(self, until: float, wait: Callable[[float], bool], reason: Callable[[], Optional[str]]) -> None:
        """Until monotonic `until`, or until `wait` says stop, or `count` events are recorded (`done` says so then)."""
        while True:
            now = time.monotonic()
            stopped = reason()
            self._take_orders()
            self._decide_alone(now, stopped)
            self._record_due(now, stopped)
            if stopped or self.done:
                return
            busy = self._own is not None or bool(self._pending)
            if now >= until + LINGER_S and not busy:
                return
            if now < until and not busy and now >= max(self._next_look, self._quiet_until):
                self._look(now, self.rings.counters())
            wait(STEP_S)

    # -- orders ------------------------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        for path in sorted(self.orders.glob("*.json")) if self.orders.is_dir() else ():
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            order = Freeze.of(json.loads(path.read_bytes()))
            if order.stamp in self._taken:
                continue  # the runner was late: this node has done it by itself
            self._taken.add(order.stamp)
            if self._own is not None and self._own.instant <= order.end + self.terms.cooldown_s:
                self._own = None  # the same trouble
            self.rings.protect(True)
            realtime, monotonic = both()  # not `now`: a busy node may have read orders for a while since
            self._pending.append((monotonic + order.end - realtime, order))

    def _decide_alone(self, now: float, stopped: Optional[str]) -> None:
        if self._own is None or (now < self._own_until and not stopped):
            return
        patience_s = self.terms.patience_s
        why = stopped or (f"the runner didn't answer for {patience_s:g} s" if patience_s else "there is no runner")
        self._taken.add(self._own.stamp)
        self._pending.append((self._own_end, replace(self._own, why_alone=why)))
        self._own = None

    def _record_due(self, now: float, stopped: Optional[str]) -> None:
        for due, freeze in sorted(self._pending, key=lambda p: p[0]):
            if now < due and not stopped:
                continue
            self._pending.remove((due, freeze))
            if now < due and stopped:
                freeze = replace(freeze, end=min(freeze.end, max(time.time(), freeze.start)), stopped=stopped)
            after = self.rings.counters()
            before = next((look.counters for look in self._looks), after)
            self.rings.record(freeze, before, after)
            self.recorded += 1
            self._quiet_until = time.monotonic() + self.terms.cooldown_s
            self._last = None  # what moved meanwhile is not this condition's business
            if freeze.last or self.recorded >= self.terms.count:
                self.done = f"{self.recorded} of at most {self.terms.count} events are recorded"
        if not self._pending and self._own is None:
            self.rings.protect(False)

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self, now: float, counters: Snapshot) -> None:
        look = _Look(now, counters, symptoms.rule_packets([self.terms.condition]))
        before, self._last = self._last, look
        self._next_look = now + self.terms.every_s
        self._remember(look)
        if before is None:
            return
        measured = conditions.Measured(before.counters, look.counters, max(look.at - before.at, 0.001),
                                       (before.rules, look.rules))  # fmt: skip
        try:
            met, numbers = conditions.holds(self.terms.condition, measured)
        except conditions.Unknown as unknown:
            if str(unknown) != self._warned:  # once: what is missing here may be there on the node that matters
                self._warned = str(unknown)
                self.emit("warning", why=f"trigger: {unknown}" + (f" ({unknown.hint})" if unknown.hint else ""))
            return
        if met:
            self._fire(numbers)

    def _remember(self, look: _Look) -> None:
        apart = max(self.terms.every_s, self.terms.before_s / LOOKS_MOST)
        if not self._looks or look.at - self._looks[-1].at >= apart * 0.9:
            self._looks.append(look)
        while len(self._looks) > 1 and self._looks[1].at <= look.at - self.terms.before_s:
            self._looks.popleft()

    def _fire(self, numbers: Mapping[str, float]) -> None:
        (instant, monotonic), offset_s = both(), self.rings.offset[0]
        reference = instant - (offset_s or 0.0)
        self.rings.protect(True)
        self._own = Freeze(
            stamp_of(reference), self.node, self.terms.condition.text, dict(numbers), instant, reference,
            instant - self.terms.before_s, instant + self.terms.after_s, *self.rings.offset,
        )  # fmt: skip
        # Not from `now` on: the look that saw it may have taken a while, and its window ends so long after the instant.
        self._own_end = monotonic + self.terms.after_s
        self._own_until = monotonic + max(self.terms.after_s, self.terms.patience_s)
        self.emit("trigger", **self._own.told())
