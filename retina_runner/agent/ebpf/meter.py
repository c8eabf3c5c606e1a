"""What each program costs, by the kernel's own account, which is kept for a part of the time only.

Keeping it takes two looks at the clock at every run, which can cost more than the program does. So it is on for the first
seconds, and then for a slice of each period; what is counted in a slice stands for its period.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Callable, Dict, Optional, Tuple

FULL_S, SLICE_S, PERIOD_S = 10.0, 0.1, 2.0
"""Switching it on and off makes the kernel change its code, which every CPU has to be told of: not many times a second."""

Key = Tuple[int, str]
Times = Dict[Key, Tuple[int, int]]


class Meter:
    """`read` answers (runs, ns) of each program so far, `enable` a descriptor that keeps the account open.

    Before 5.8 the kernel has no such account: then everything is 0. Other processes can keep it open at the same time;
    what it says between the slices isn't counted.
    """

    def __init__(self, read: Callable[[], Times], enable: Callable[[], int]):
        self._read, self._enable = read, enable
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._descriptor = -1
        self._before: Times = {}
        self._begun = self._since = 0.0
        """When counting began; when the account was opened, or shut."""
        self._clear()

    def _clear(self) -> None:
        self._sums: Dict[Key, Tuple[float, float]] = {}
        self._measured = self._unmeasured = self._pending = 0.0
        """Seconds that were measured, those that weren't, and of these those that the present slice stands for."""

    def start(self) -> None:
        """Raises nothing."""
        self.zero()
        if self._descriptor >= 0:
            self._thread = threading.Thread(target=self._run, name="costs of programs", daemon=True)
            self._thread.start()

    def zero(self) -> None:
        """Count from now on, the first seconds wholly."""
        with self._lock:
            self._shut()
            self._clear()
            self._open()
            self._begun = self._since

    def so_far(self) -> Tuple[Times, float]:
        """((runs, ns) of each program, in how much of the time since `zero` they were measured: at most 1).

        Neither of the numbers ever falls. A slice that isn't over is not in them.
        """
        with self._lock:
            if self._descriptor >= 0 and not self._pending:
                self._shut()
                self._open()
            whole = self._measured + self._unmeasured
            share = self._measured / whole if whole else 1.0
            return {key: (round(runs), round(ns)) for key, (runs, ns) in self._sums.items()}, share

    def stop(self) -> None:
        """Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._pending:
                self._before = self._read()  # too short a slice to stand for anything
            self._shut()

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                left = self._begun + FULL_S - time.monotonic()
                if left <= 0:
                    self._shut()
            if self._ended.wait(left if left > 0 else PERIOD_S - SLICE_S):
                return
            if left <= 0:
                with self._lock:
                    self._resume()
                if self._ended.wait(SLICE_S):
                    return

    def _resume(self) -> None:
        if self._descriptor >= 0:
            return  # zeroed meanwhile
        self._pending = time.monotonic() - self._since
        self._open()

    def _open(self) -> None:
        try:
            self._descriptor = self._enable()
        except OSError:
            return
        self._before = self._read()
        self._since = time.monotonic()

    def _shut(self) -> None:
        if self._descriptor < 0:
            return
        now, until = self._read(), time.monotonic()
        took = max(until - self._since, 1e-9)
        for key, (runs, ns) in now.items():
            before, known = self._before.get(key, (0, 0)), self._sums.get(key, (0.0, 0.0))
            weight = 1 + self._pending / took
            self._sums[key] = (known[0] + (runs - before[0]) * weight, known[1] + (ns - before[1]) * weight)
        self._measured += took
        self._unmeasured += self._pending
        self._pending, self._since = 0.0, until
        os.close(self._descriptor)
        self._descriptor = -1
