"""How a session ends before its time: by a request from outside, or because there is nothing (more) to collect."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import Optional


class Abandoned(Exception):
    """Ended before anything was collected, on request or for want of a T0."""


class Skipped(Exception):
    """The plan's condition isn't met here: there is nothing to collect."""


class Failed(Exception):
    """Nothing can be collected. `why` and the next step, `hint`, for the `end` event."""

    def __init__(self, why: str, hint: str = ""):
        super().__init__(why)
        self.hint = hint


class Stop:
    """A request to end early, from a signal or from another thread. The first reason stays."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._reason: Optional[str] = None

    def request(self, reason: str) -> None:
        """Safe in a signal handler: it takes no lock."""
        if self._reason is None:
            self._reason = reason
            try:
                os.write(self._write, b"!")
            except BlockingIOError:
                pass

    @property
    def reason(self) -> Optional[str]:
        return self._reason

    def wait(self, seconds: float, other: Optional[int] = None) -> bool:
        """Sleep until then, until the descriptor `other` can be read, or until a request; whether there is one."""
        until = time.monotonic() + seconds
        descriptors = [self._read] if other is None else [self._read, other]
        while self._reason is None and (left := until - time.monotonic()) > 0:
            ready = select.select(descriptors, [], [], left)[0]
            if ready and self._read not in ready:
                break
            if ready and self._reason is None:
                # A signal whose handler has yet to run, in the main thread: which must wake, so no other takes its byte.
                if threading.current_thread() is threading.main_thread():
                    os.read(self._read, 1)
                time.sleep(0.001)
        return self._reason is not None

    def on_signals(self) -> None:
        """Main thread only. A hang-up is ignored: the agent outlives the connection that started it."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, frame: self.request("stopped by request"))
        # The kernel may give the signal to any thread (while the main one begins another, it takes none): Python notes it
        # there, and nothing would wake the main thread, which alone runs handlers, out of `wait`.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
