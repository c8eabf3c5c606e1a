"""Runs that nobody watches (cron, timers): one at a time, spread out, over by a deadline, and quiet unless it matters.

The lock is flock(2) on a file in the run folder, so that the kernel takes it back from a runner that died. What the file
holds is only for people: who has it, or who died with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retina_runner.agent.context import utc
from retina_runner.errors import OverlapError, UsageError
from retina_runner.units import parse_duration

NICE = 10
"""Niceness of a runner without a terminal. Agents set their own, and tcpdump's is 0 whatever started it."""


@dataclass(frozen=True)
class Manners:
    """What the command line says of an unattended run; seconds, None for not said."""

    lock: bool = False
    jitter_s: float = 0.0
    deadline_s: float | None = None


def manners(lock: bool, jitter: str | None, deadline: str | None) -> Manners:
    """From the words of the command line. Raises UsageError."""
    found = {}
    for option, text in (("--jitter", jitter), ("--deadline", deadline)):
        try:
            found[option] = None if text is None else parse_duration(text)
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
    if found["--deadline"] == 0:
        raise UsageError("--deadline 0s: nothing could be done by then; give it more than the runbook's duration")
    return Manners(lock, found["--jitter"] or 0.0, found["--deadline"])


def give_way() -> None:
    """Lower this process's priority where there is no terminal; never raise it."""
    if sys.stdout.isatty() or os.getpriority(os.PRIO_PROCESS, 0) >= NICE:
        return
    os.setpriority(os.PRIO_PROCESS, 0, NICE)


def spread_out(jitter_s: float, sleep: Callable[[float], None] = time.sleep) -> float:
    """Wait a random while of at most `jitter_s`, so that a thousand machines' cron jobs don't begin at once; the seconds."""
    chosen = random.uniform(0.0, jitter_s)
    if chosen:
        sleep(chosen)
    return chosen


def lock_path(folder: Path, runbook: Path) -> Path:
    """The lock of this runbook file for runs in this folder."""
    whole = str(runbook.resolve())
    return folder / f".{runbook.stem}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}.lock"


@contextmanager
def alone(folder: Path, runbook: Path) -> Iterator[str]:
    """Hold the runbook's lock. Yields what is known of a holder that died with it, empty for none.

    Raises OverlapError when another run holds it, UsageError when there can't be a lock there.
    """
    path = lock_path(folder, runbook)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"--lock: {path}: {error.strerror}; choose another place with --output DIR") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OverlapError(
                f"{runbook}: a run of it is under way ({_holder(descriptor) or 'just begun'}); nothing was touched"
            ) from None
        died = _holder(descriptor)
        _note(descriptor, json.dumps({"pid": os.getpid(), "since": utc()}) + "\n")
        try:
            yield died
        finally:
            # Emptied, never unlinked: another run may have opened it and be about to lock it.
            _note(descriptor, "")
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        known = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(known['pid'])} since {known['since']!s:.19}Z"
    except (ValueError, KeyError, TypeError):
        return ""


def _note(descriptor: int, text: str) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError:
        pass  # a full disk: the lock holds all the same


@contextmanager
def by(deadline_s: float | None, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` from another thread when the time is over and the body isn't."""
    if deadline_s is None:
        yield
        return
    running, over = threading.Lock(), False

    def ring() -> None:
        with running:
            if not over:
                end()

    timer = threading.Timer(deadline_s, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with running:  # one that has just rung has had its effect; none rings later
            over = True
