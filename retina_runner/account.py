"""What a run says of itself while it goes on: its events, which nodes have failed, what is still on nodes, and whether it
goes on at all. Kept by the threads of all nodes, read by the main thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from retina_runner.agent.context import utc
from retina_runner.targets import Target

HEED_S = 0.1
"""A signal that comes while the process is stopped may be taken by any of its threads, which doesn't wake the main one: that
alone runs handlers, and so never waits for longer than this."""


class Account:
    """One run's. `max_fail`: with more failed nodes than that, it is held back (None: never)."""

    def __init__(self, max_fail: int | None):
        self._max_fail = max_fail
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._fails = 0
        self._unclean: dict[str, str] = {}
        self._lock = threading.Lock()
        self.interrupted = threading.Event()
        self.interrupted_at = 0.0
        """By time.monotonic()."""
        self.held_back = threading.Event()

    def events(self, threads: Callable[[], int]) -> Iterator[dict[str, Any]]:
        """Everything that is said, until as many threads as there are by then have said their last word."""
        ended = 0
        while ended < threads():
            try:
                event = self._queue.get(timeout=HEED_S)
            except queue.Empty:
                continue
            if event is None:
                ended += 1
            else:
                yield event
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if event is not None:
                yield event

    def say(self, event: str, at: Target | None = None, /, **fields: Any) -> None:
        self._queue.put({"time": utc(), "event": event, **_who(at), **fields})

    def say_all(self, target: Target, events: Iterable[Mapping[str, Any]]) -> None:
        for event in events:
            self.say(str(event["event"]), target, **{k: v for k, v in event.items() if k != "event"})

    def pass_on(self, target: Target, event: Mapping[str, Any]) -> None:
        """Say what its agent has said, when it has said it."""
        fields = {k: v for k, v in event.items() if k not in ("seq", "event", "time")}
        self._queue.put({"time": event["time"], "event": event["event"], **_who(target), **fields})

    def last_word(self) -> None:
        """A thread has nothing more to say."""
        self._queue.put(None)

    def failed(self, target: Target, what: str, why: str, hint: str = "") -> None:
        with self._lock:
            remains = self._unclean.get(target.id, "")
            self._fails += 1
            fails, allowed = self._fails, self._max_fail
        self.say("node-failed", target, what=what, why=why, **({"hint": hint} if hint else {}),
                 **({"remains": remains} if remains else {}))  # fmt: skip
        if allowed is not None and fails == allowed + 1 and not self.halted():
            self.held_back.set()
            self.say("held-back", failed=fails, max_fail=allowed)

    def hold_back(self, target: Target) -> None:
        """This one isn't started, because others have failed."""
        self.say("node-failed", target, what="max_fail", why="not started: too many other nodes had failed",
                 hint="mend those, or raise max_fail; retina-run retry --failed does these nodes again")  # fmt: skip

    def interrupt(self, signal: str) -> None:
        """End every window now, keep what is there. Safe in a signal handler: what is interrupted may be anything, an
        unfinished write to a terminal among it, so nothing is written here, and the queue is one whose `put` may interrupt
        itself (queue.SimpleQueue)."""
        self.interrupted_at = time.monotonic()
        self.interrupted.set()
        self.say("interrupted", signal=signal, remains=[])

    def halted(self) -> bool:
        """Nothing new begins any more: Ctrl-C, or too many nodes have failed."""
        return self.interrupted.is_set() or self.held_back.is_set()

    # -- what is still on nodes ------------------------------------------------------------------------------------------

    def unclean(self, target: Target, what: str) -> None:
        """This directory may be there from now on."""
        with self._lock:
            self._unclean[target.id] = what

    def clean(self, target: Target) -> None:
        with self._lock:
            self._unclean.pop(target.id, None)

    def is_unclean(self, target: Target) -> bool:
        return target.id in self._unclean

    def remains(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """What may still be on these at this moment: one line each, `node: directory`."""
        with self._lock:
            return tuple(f"{t.id}: {self._unclean[t.id]}" for t in targets if t.id in self._unclean)


def _who(at: Target | None) -> dict[str, str]:
    return {"id": at.id, "node": at.node, "capture": at.capture} if at else {}
