"""Pods that move between the choice of nodes and T0: looked at again, acted on while that can be done, told otherwise.

The choice is repeated when all nodes have been checked and again when all are ready. A node whose pods have changed gets
its plan anew, one without any leaves, one that has some now joins; what is found so late that nobody would wait for it
goes along with the release, so that the archives say themselves that their filter is of pods as they were.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from retina_runner.barrier import Barrier

MOVES_MOST = 3
"""How often nodes are planned again for pods that go on moving, before they are all checked and before T0 each."""


class _Target(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Target)
Out = TypeVar("Out", bound=_Target, covariant=True)


@dataclass(frozen=True)
class Changes:
    """What is otherwise than planned, by id, each with its reason. `unseen` targets couldn't be looked at again."""

    replanned: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.replanned or self.left or self.joined)


class Watch(Protocol[Out]):
    """Who knows how nodes were chosen."""

    def look(self, give_up: Callable[[], bool]) -> Changes:
        """Choose again. Waits some seconds for pods that are about to have an address, unless `give_up` says not to."""
        ...

    def take(self, changes: Changes) -> Sequence[Out]:
        """From now on this is what is planned; the targets of the replanned and of the joined."""
        ...

    def late(self, identifier: str) -> Out:
        """One that would have joined, as a row of the report: nothing is planned for it."""
        ...


class Standing(Generic[T]):
    """The newest plan of each target, and who has left. Told by one thread, asked by those of all nodes."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._newest: dict[str, T] = {}
        self._left: dict[str, str] = {}
        self._released = False
        self.why: dict[str, str] = {}
        """By id: why the newest plan isn't the first one."""
        self.stale: dict[str, str] = {}
        """By id: what has moved since, and can only be told."""
        self.unseen: dict[str, str] = {}

    def replan(self, target: T, why: str) -> None:
        with self._news:
            self._newest[target.id] = target
            self.why[target.id] = why
            self._news.notify_all()

    def leave(self, identifier: str, why: str) -> None:
        with self._news:
            self._left[identifier] = why
            self._news.notify_all()

    def release(self) -> None:
        """Nothing changes any more."""
        with self._news:
            self._released = True
            self._news.notify_all()

    def newest(self, target: T) -> T:
        return self._newest.get(target.id, target)

    def left(self, target: T) -> str:
        """Why it has; empty while it hasn't."""
        return self._left.get(target.id, "")

    def moved(self, target: T) -> bool:
        """Whether what this target does is no longer what is planned."""
        return bool(self.left(target)) or self.newest(target) is not target

    def wait(self, target: T) -> bool:
        """Until everything is released (True), or this target is planned otherwise or has left (False)."""
        with self._news:
            self._news.wait_for(lambda: self._released or self.moved(target))
            return not self.moved(target)


@dataclass(frozen=True)
class Crowd(Generic[T]):
    """What nodes that follow pods have to do with the others: `ready` is where they wait before T0, `wait(barrier, limit)`
    waits there with them until a limit by time.monotonic(), `join(target, why)` takes another one up."""

    ready: Barrier
    ids: Callable[[], Sequence[str]]
    halted: Callable[[], bool]
    wait: Callable[[Barrier, float], None]
    join: Callable[[T, str], None]


class Following(Generic[T]):
    """Has the nodes of a run follow their pods, by one thread. Without a watch, nothing moves."""

    def __init__(self, watch: Watch[T] | None, standing: Standing[T], crowd: Crowd[T]):
        self._watch, self._standing, self._crowd = watch, standing, crowd

    def follow(self, barrier: Barrier, limit: float) -> Changes:
        """Until the pods stay or the time (by time.monotonic()) is up, waiting at that barrier after each change; what is
        still otherwise then."""
        for left in range(MOVES_MOST, -1, -1):
            if self._watch is None or self._crowd.halted():
                break
            try:
                changes = self._watch.look(self._crowd.halted)
                if not changes or not left or time.monotonic() >= limit:
                    return changes
                planned = {target.id: target for target in self._watch.take(changes)}
            except Exception as error:  # whatever it is, everybody waits for this thread
                why = f"its pods couldn't be looked at again before T0: {type(error).__name__}: {error}"
                return Changes(unseen=dict.fromkeys(self._crowd.ids(), why))
            for identifier in (*changes.replanned, *changes.left):
                self._crowd.ready.recall(identifier)  # before it is told, or nobody would wait for it
            for identifier, why in changes.joined.items():
                self._crowd.join(planned[identifier], why)
            for identifier, why in changes.replanned.items():
                self._standing.replan(planned[identifier], why)
            for identifier, why in changes.left.items():
                self._standing.leave(identifier, why)
            self._crowd.wait(barrier, limit)
        return Changes()

    def note(self, late: Changes) -> tuple[tuple[T, str], ...]:
        """What nobody waits for any more: told with the release. Those that aren't captured, as rows of the report, each with
        its reason."""
        self._standing.stale.update(late.replanned)
        self._standing.unseen.update(late.unseen)
        for identifier, why in late.left.items():
            self._standing.leave(identifier, why)
        if self._watch is None:
            return ()
        return tuple((self._watch.late(identifier), why) for identifier, why in late.joined.items())
