"""What is done on a run's nodes, over as many connections as it takes; `forks` of them are made at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from retina_runner.account import Account
from retina_runner.bundle import AgentBundle
from retina_runner.executors import EXACT_S, Clock, LinkLost, LinkRefused
from retina_runner.targets import Target, Terms

RECONNECT_FIRST_S, RECONNECT_MOST_S = 1.0, 20.0
FIRST_TRIES = 4
"""How often a connection that was dropped before the login is tried: sshd does so beyond MaxStartups, at random."""
INTERRUPTED_LIMIT_S = 20.0
"""How long after Ctrl-C a node that can't be reached is still tried."""


class Persistence:
    """One run's, used by the threads of all its nodes. `slots` bounds what costs the runner something."""

    def __init__(self, account: Account, terms: Terms):
        self._account, self._terms = account, terms
        self.slots = threading.BoundedSemaphore(terms.forks)

    def meet(self, target: Target, agent: AgentBundle) -> bool:
        """Connect and install, a bounded number at a time; whether it came to that. Raises LinkRefused, LinkLost."""
        give_up_at = time.monotonic() + self._terms.ready_timeout_s
        for number in range(1, FIRST_TRIES + 1):
            with self.slots:
                if self._account.halted():
                    if self._account.held_back.is_set():
                        self._account.hold_back(target)
                    return False
                try:
                    target.link.connect()
                    target.link.install(agent)
                    return True
                except LinkLost as lost:
                    if isinstance(lost, LinkRefused) or number == FIRST_TRIES or time.monotonic() > give_up_at:
                        raise
            self._account.interrupted.wait(random.uniform(0.3, 1.0) * number)
        raise AssertionError("unreachable")

    def do(self, target: Target, action: Callable[[], Any]) -> None:
        """Do it, again over a new connection when one is lost. Raises LinkLost when the node stays away, LinkRefused."""
        delay_s, lost = RECONNECT_FIRST_S, False
        give_up_at = time.monotonic() + target.duration_s + self._terms.reconnect_timeout_s
        interrupted = self._account.interrupted
        while True:
            try:
                if lost:
                    with self.slots:
                        target.link.connect()
                    self._account.say("reattached", target)
                    lost, delay_s = False, RECONNECT_FIRST_S
                action()
                return
            except LinkLost as error:
                if not lost:
                    self._account.say("lost", target, why=str(error))
                lost = True
                now = time.monotonic()
                if now > give_up_at or (
                    interrupted.is_set() and now > self._account.interrupted_at + INTERRUPTED_LIMIT_S
                ):
                    raise
                pause_s = delay_s * random.uniform(0.5, 1.0)  # a hundred nodes behind one switch come back together
                time.sleep(min(pause_s, 1.0)) if interrupted.is_set() else interrupted.wait(pause_s)
                delay_s = min(2 * delay_s, RECONNECT_MOST_S)

    def call(self, target: Target, *words: str, **options: Any) -> dict[str, Any]:
        """What one of the agent's verbs answers. Raises as `do`."""
        answer: dict[str, Any] = {}
        self.do(target, lambda: answer.update(target.link.call(*words, **options)))
        return answer

    def clock(self, target: Target, enough_s: float = EXACT_S) -> Clock:
        """Its clock as it is now; an error of up to `enough_s` is small enough. Raises as `do`."""
        found: list[Clock] = []
        self.do(target, lambda: found.append(target.link.clock(enough_s)))
        return found[-1]

    def remove(self, target: Target, quietly: bool = False) -> None:
        """Take its agent's directory away; what can't be is the node's failure. Raises as `do`."""
        answer = self.call(target, "remove", target.directory, limit_s=90.0)
        if not answer.get("removed"):
            why = str(answer.get("why", "it couldn't be removed"))
            self._account.failed(target, target.directory, why, "retina-run cleanup tries again")
            return
        self._account.clean(target)
        if not quietly:
            self._account.say("removed", target)
