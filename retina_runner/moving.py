"""Pods that move between the choice of nodes and T0: looked at again, acted on while that can be done, told otherwise.

The choice is repeated when all nodes have been checked and again when all are ready. A node whose pods have changed gets
its plan anew, one without any leaves, one that has some now joins; what is found so late that nobody would wait for it
goes along with the release, so that the archives say themselves that their filter is of pods as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


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
