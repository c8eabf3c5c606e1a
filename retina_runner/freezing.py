"""Events freeze rings: which event of which node does, decided once for the whole run, and told to every node.

A node's `trigger` event becomes an order unless another event's window or cool-down covers it. Each node's thread tells
its node the order, in that node's clock as measured at that moment; brings home what the node froze, while the rings
go on; and breaks that off when the next order is due. Instants are Unix time on the runner's clock.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from retina_runner.agent.recorder import Freeze
from retina_runner.executors import Clock


class Postponed(Exception):
    """An order is due; what was being brought home is brought later."""


@dataclass(frozen=True)
class Order:
    """Freeze this window. `id` is the target that fired; `last`: after this one the run is over."""

    number: int
    stamp: str
    id: str
    node: str
    condition: str
    values: Mapping[str, float]
    instant: float
    start: float
    end: float
    last: bool

    def document(self, clock: Clock) -> bytes:
        """For a node with that clock; see agent/recorder.py's Freeze."""
        return json.dumps(
            {
                "stamp": self.stamp, "node": self.node, "condition": self.condition, "values": dict(self.values),
                "instant": self.instant + clock.offset_s, "reference": self.instant, "start": self.start + clock.offset_s,
                "end": self.end + clock.offset_s, "offset_s": clock.offset_s, "offset_error_s": clock.error_s,
                "last": self.last,
            }
        ).encode()  # fmt: skip


@dataclass
class Freezes:
    """All orders of a run, in the order in which they were given. Used by many threads."""

    before_s: float
    after_s: float
    count: int
    cooldown_s: float
    orders: tuple[Order, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(plan: bytes) -> Freezes | None:
        """What a plan says; None for one without a trigger."""
        given = json.loads(plan).get("trigger")
        if given is None:
            return None
        return Freezes(given["before_s"], given["after_s"], given["count"], given["cooldown_s"])

    def fired(self, identifier: str, node: str, event: Mapping[str, Any], instant: float) -> Order | None:
        """The order that this event gives; None when it gives none: another one covers it, or there were enough."""
        with self._lock:
            for order in self.orders:
                if order.instant - self.cooldown_s <= instant <= order.end + self.cooldown_s:
                    return None
            number = len(self.orders) + 1
            if number > self.count:
                return None
            made = Order(
                number, event["stamp"], identifier, node, event["condition"], event["values"], instant,
                instant - self.before_s, instant + self.after_s, number == self.count,
            )  # fmt: skip
            self.orders = (*self.orders, made)
            return made


class _Target(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def node(self) -> str: ...


T = TypeVar("T", bound=_Target)


@dataclass(frozen=True)
class Hands(Generic[T]):
    """What a node's thread can do: measure the clock and give an order, over as many connections as it takes; say
    something of the run, or of a row of the report; bring an archive home, or raise Postponed."""

    clock: Callable[[], Clock]
    order: Callable[[bytes], None]
    say: Callable[..., None]
    row: Callable[[str], T]
    bring: Callable[[T, Mapping[str, Any], Callable[[], bool]], bool]
    fail: Callable[[T, str, str, str], None]


class Duties(Generic[T]):
    """One node's part. `brought` are rows that an earlier runner has brought home."""

    def __init__(self, target: T, freezes: Freezes, hands: Hands[T], brought: Collection[str] = ()):
        self._target, self._freezes, self._hands, self._brought = target, freezes, hands, set(brought)
        self._fired: list[Mapping[str, Any]] = []
        self._home: list[Mapping[str, Any]] = []
        self._told = 0
        self._answered: set[str] = set()
        self.kept = False

    def take(self, event: Mapping[str, Any]) -> None:
        """Note what the node says; what it asks for is done by `do`."""
        kind = event["event"]
        if kind == "trigger":
            self._fired.append(event)
        elif kind in ("frozen", "not-frozen"):
            self._answered.add(event["trigger"]["stamp"])
            row = self._hands.row(event["trigger"]["stamp"])
            if row.id in self._brought:
                return
            self._hands.say("recording", row, trigger=event["trigger"])
            if kind == "frozen":
                fields = {k: v for k, v in event.items() if k not in ("seq", "time", "event", "trigger")}
                self._hands.say("archive", row, **fields)
                self._home.append(event)
            else:
                self._hands.fail(row, "frozen window", event["why"], "")

    def due(self) -> bool:
        """Whether there is something to do."""
        return bool(self._fired or self._home) or self._urgent()

    def _urgent(self) -> bool:
        return len(self._freezes.orders) > self._told

    def do(self) -> None:
        """Everything that is due. Raises what the hands raise, but Postponed."""
        while self.due():
            if self._fired:
                self._decide(self._fired[0])
                self._fired.pop(0)
            elif self._urgent():
                order = self._freezes.orders[self._told]
                if order.stamp not in self._answered:  # by itself, while nobody was there to tell it
                    self._hands.order(order.document(self._hands.clock()))
                self._told += 1
            else:
                try:
                    self._bring()
                except Postponed:
                    continue

    def _decide(self, event: Mapping[str, Any]) -> None:
        """The node's own clock said when; what that is on this one is measured now, as clocks drift in hours."""
        there = datetime.fromisoformat(event["instant_node"].replace("Z", "+00:00")).timestamp()
        made = self._freezes.fired(self._target.id, self._target.node, event, there - self._hands.clock().offset_s)
        if made is not None:
            self._hands.say("freeze", stamp=made.stamp, at=made.id, instant=event["instant"], number=made.number)

    def _bring(self) -> None:
        event = self._home[0]
        if not self._hands.bring(self._hands.row(event["trigger"]["stamp"]), event, self._urgent):
            self.kept = True
        self._home.pop(0)

    def finish(self) -> None:
        """The node has ended: bring the rest home, and say which orders came too late. `kept`: something must stay there."""
        while self._fired:  # it froze alone and ended before anybody listened: the others are still to be told
            self._decide(self._fired[0])
            self._fired.pop(0)
        self._told = len(self._freezes.orders)
        while self._home:
            self._bring()
        for order in self._freezes.orders:
            if order.stamp not in self._answered:
                row = self._hands.row(order.stamp)
                self._hands.say("recording", row, trigger=told(order))
                self._hands.fail(row, "frozen window", "this node's window was over before it was told", "")


def told(order: Order) -> dict[str, Any]:
    """As nodes tell it, for a node that doesn't."""
    return Freeze(
        order.stamp, order.node, order.condition, order.values, order.instant, order.instant, order.start, order.end
    ).told()
