"""A pod's first process: waits while agents work below a directory, reaps orphans, and lets a drained pod archive first.

It ends when the last directory is gone (the runner has fetched the archive, or the plan's expiry has come), or when no
plan has come in time. On SIGTERM every window ends now; what is archived then waits to be fetched until the kubelet kills.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import List, Optional, Set

from retina_runner.agent.solo import Solo
from retina_runner.agent.supervisor import signal_agent
from retina_runner.agent.workspace import Workspace

POLL_S = 0.5
LINGER_S = 10.0
"""After the last directory has gone: the verb that removed it has an answer to give."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def hold(parent: Path, limit_s: float, solo: Optional[Solo] = None) -> int:
    """Wait; 0 when there was a plan, 1 when none came within `limit_s` seconds, or when the plan of `solo` failed.

    (`solo` has started its plan already: the signals that are blocked here would be blocked in it.)
    """
    signal.pthread_sigmask(
        signal.SIG_BLOCK, SIGNALS
    )  # they are waited for; the kernel ignores them for process 1 otherwise
    deadline = time.monotonic() + limit_s
    had_plan, stopping, empty_since = solo is not None, False, time.monotonic()
    ended: Set[Path] = set()
    while True:
        received = signal.sigtimedwait(SIGNALS, POLL_S)
        _reap()
        if solo is not None:
            solo.step()
        plans = _plans(parent)
        had_plan = had_plan or bool(plans)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if solo is not None and solo.done:
                return int(solo.failed)  # the archive had its time to be fetched; who deletes the Job has done with it
            stopping = True
        # Once each, and again where there was nobody to take it yet: one whose agent is just being started, or is to come.
        ended |= {p for p in plans if stopping and p not in ended and signal_agent(Workspace(p), signal.SIGTERM)}
        now = time.monotonic()
        if plans:
            empty_since = now
        elif stopping or (had_plan and (solo is not None or now - empty_since > LINGER_S)):
            return int(solo is not None and solo.failed)
        elif not had_plan and now > deadline:
            return 1


def _plans(parent: Path) -> List[Path]:
    return sorted(p.parent for p in parent.glob("*/plan.json"))


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
