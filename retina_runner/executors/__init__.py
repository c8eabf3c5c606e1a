"""Executors: how the agent gets to a node and how bytes come back. Everything else is the same for all of them.

An executor gives a `Link` for each of its nodes. A link carries the agent's verbs; what they mean is in the agent, so
that archives are uniform by construction. One conformance suite runs over every executor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from retina_runner.bundle import AgentBundle

EXACT_S = 0.0005
"""An error of a comparison of clocks that isn't worth another round trip: no node wakes up more exactly than that."""


class LinkLost(Exception):
    """The connection went away. The agent goes on; connect again, and it answers as before.

    Where the cause is known, `what` and `why` say it, and `hint` is the next step.
    """

    what, why, hint = "connection", "", ""


class LinkRefused(Exception):
    """The node can't be used, and trying again won't help. `what`, `why` and the next step, `hint`."""

    def __init__(self, what: str, why: str, hint: str = ""):
        super().__init__(f"{what}: {why}" + (f" ({hint})" if hint else ""))
        self.what, self.why, self.hint = what, why, hint


@dataclass(frozen=True)
class Clock:
    """The node's clock minus ours, and the most by which that can be wrong (half the best round trip); seconds."""

    offset_s: float
    error_s: float


class Link(Protocol):
    """A way to one node. Used by one thread at a time.

    Each method raises LinkLost when the connection breaks, LinkRefused when the node can't do it at all.
    """

    def connect(self) -> None:
        """Reach the node. Idempotent; after LinkLost, reaches it again."""
        ...

    def install(self, agent: AgentBundle) -> None:
        """Have this agent's file on the node, private to the user, whole. Idempotent."""
        ...

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        """Run one verb to its end and return the JSON object that it prints."""
        ...

    def events(self, directory: str, first: int, give_up: threading.Event) -> Iterator[dict[str, Any]]:
        """The agent's events from number `first` on, as they come, until `end` or soon after `give_up` is set.

        Yields nothing more when the agent is gone without an `end`; the caller notices by its absence.
        """
        ...

    def fetch(self, directory: str, name: str, offset: int) -> Iterator[bytes]:
        """The bytes of a finished archive from `offset` on."""
        ...

    def clock(self, enough_s: float = EXACT_S) -> Clock:
        """Measure the node's clock; an error of up to `enough_s` needs no better measurement."""
        ...

    def close(self) -> None:
        """Let go of the connection; the agent isn't concerned. Idempotent."""
        ...
