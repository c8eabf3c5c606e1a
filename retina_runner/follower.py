"""One agent's events, read over as many connections as it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retina_runner.executors import Link
from retina_runner.freezing import Duties


class _Turn(threading.Event):
    """Set while that is so."""

    def __init__(self, so: Callable[[], bool]):
        super().__init__()
        self._so = so

    def is_set(self) -> bool:
        return self._so()


class Follower:
    """Reads one agent's events, passes them on, and remembers what matters later.

    `persistently(action)` does it again over a new connection when one is lost. Once `interrupted`, the agent is told to stop.
    """

    def __init__(
        self,
        link: Link,
        directory: str,
        *,
        duties: Duties[Any] | None,
        interrupted: threading.Event,
        persistently: Callable[[Callable[[], Any]], None],
        pass_on: Callable[[Mapping[str, Any]], None],
    ):
        self._link, self._directory = link, directory
        self._interrupted, self._persistently, self._pass_on = interrupted, persistently, pass_on
        self._next = 0
        self._stopped = False
        self.duties = duties
        self.ended = False
        self.archive: dict[str, Any] | None = None
        self.steps_s: list[float] = []

    def until(self, *names: str) -> Iterator[dict[str, Any]]:
        """Events as they come, up to and with the first of one of these names, or until the agent is gone."""
        while not self.ended:
            if self._interrupted.is_set() and not self._stopped:
                self._stop()
            if self.duties is not None:
                self.duties.do()
            found: list[dict[str, Any]] = []
            before = self._next

            def follow(found: list[dict[str, Any]] = found) -> None:
                for event in self._link.events(self._directory, self._next, _Turn(self._turn)):
                    self._take(event)
                    if event["event"] in names:
                        found.append(event)
                        return

            self._persistently(follow)
            if found:
                yield found[0]
                return
            if self._next == before and not self._turn():
                return  # the agent is gone

    def _turn(self) -> bool:
        """Whether there is something to do besides listening."""
        # Once the agent has been told to stop, its remaining events are worth waiting for.
        if self._interrupted.is_set() and not self._stopped:
            return True
        return self.duties is not None and self.duties.due()

    def _stop(self) -> None:
        """The window ends now; before it there is nothing to keep, and the agent abandons by itself."""
        self._stopped = True
        self._persistently(lambda: self._link.call("stop", self._directory))

    def _take(self, event: dict[str, Any]) -> None:
        self._next += 1
        if event["event"] == "archive":
            self.archive = event
        elif event["event"] == "clock":
            self.steps_s.append(float(event["step_s"]))
        elif event["event"] == "end":
            self.ended = True
        self._pass_on(event)
        if self.duties is not None:
            self.duties.take(event)
