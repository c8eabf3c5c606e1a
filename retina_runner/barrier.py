"""Where the nodes of a run wait for each other, a thread each."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Barrier:
    """Who has arrived, who has dropped out, and when the rest may go on."""

    waiting_for: set[str]
    lock: threading.Condition = field(default_factory=threading.Condition)
    arrived: dict[str, float] = field(default_factory=dict)

    def arrive(self, target: str, value: float = 0.0) -> None:
        with self.lock:
            self.arrived[target] = value
            self.waiting_for.discard(target)
            self.lock.notify_all()

    def drop(self, target: str) -> None:
        with self.lock:
            self.waiting_for.discard(target)
            self.lock.notify_all()

    def late(self) -> set[str]:
        """Who is still waited for."""
        with self.lock:
            return set(self.waiting_for)

    def expect(self, target: str) -> None:
        """One more."""
        with self.lock:
            self.waiting_for.add(target)

    def recall(self, target: str) -> None:
        """Wait for it again, if it had arrived."""
        with self.lock:
            if self.arrived.pop(target, None) is not None:
                self.waiting_for.add(target)

    def complete(self, timeout_s: float) -> bool:
        with self.lock:
            return self.lock.wait_for(lambda: not self.waiting_for, timeout_s)
