"""Talking to the agent's verb `serve` over one stream: requests out, lines and bytes in, and noticing when it falls silent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from retina_runner.executors import LinkLost

SILENCE_S = 25.0
"""The agent sends an empty line every 5 s; who hears nothing for so long has a connection that only looks like one."""
INTERRUPT = b"\n"


class LimitReached(Exception):
    """What was asked for didn't come in time."""


class Stream(Protocol):
    """A command that runs somewhere. Each method raises LinkLost when the way there breaks."""

    stderr: bytes
    """What it has said there so far, or the beginning of it."""

    def send(self, data: bytes, limit_s: float = ..., close: bool = ...) -> None:
        """Give it input; `close` ends that. A command that wants no more is no trouble. Raises LimitReached."""
        ...

    def receive(self) -> bytes | None:
        """What has come of stdout; b"" at its end, None when nothing came for a moment."""
        ...

    def status(self, limit_s: float) -> int:
        """Wait for its exit status; 255 for one that a signal ended. Raises LimitReached."""
        ...

    def close(self) -> None:
        """Let go of it, so that it notices. Idempotent."""
        ...


def send_all(write: Callable[[memoryview], int], data: bytes, limit_s: float) -> None:
    """Write all of it. `write` returns how much it has taken, 0 when nothing was for a moment. Raises LimitReached, and what
    `write` raises."""
    deadline = time.monotonic() + limit_s
    view = memoryview(data)
    while view:
        if time.monotonic() > deadline:
            raise LimitReached(f"its input wasn't taken within {limit_s:.0f} s")
        view = view[write(view) :]


class Served:
    """One running `serve`. Every method raises LinkLost when the connection breaks, ends or falls silent."""

    def __init__(self, channel: Stream):
        self.channel = channel
        self._buffer = b""
        self._heard = self._listened = time.monotonic()

    def send(self, content: bytes) -> None:
        try:
            self.channel.send(content, SILENCE_S, close=False)
        except LimitReached as error:
            raise LinkLost(str(error)) from error

    def request(self, verb: str, **fields: Any) -> None:
        self.send((json.dumps({"verb": verb, **fields}) + "\n").encode())

    def poll(self) -> list[bytes]:
        """The whole lines that have come, without beats; waits for a moment at most."""
        if b"\n" not in self._buffer:
            self._more(wait=False)
        *lines, self._buffer = self._buffer.split(b"\n")
        return [line for line in lines if line.strip()]

    def unread(self, lines: list[bytes]) -> None:
        """Put lines back that nobody has looked at."""
        self._buffer = b"".join(line + b"\n" for line in lines) + self._buffer

    def line(self, limit_s: float) -> bytes:
        """The next line that isn't a beat. Raises LimitReached."""
        deadline = time.monotonic() + limit_s
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if line.strip():
                    return line
                continue
            if time.monotonic() > deadline:
                raise LimitReached(f"nothing within {limit_s:.0f} s")
            self._more()

    def some(self, most: int) -> bytes:
        """Some bytes that have come, at least one, at most so many."""
        while not self._buffer:
            self._more()
        chunk, self._buffer = self._buffer[:most], self._buffer[most:]
        return chunk

    def _more(self, wait: bool = True) -> None:
        """Take in what has come, waiting for it or for a moment only. Silence counts while somebody listens."""
        if time.monotonic() - self._listened > 2 * SILENCE_S / 5:
            self._heard = time.monotonic()
        while True:
            self._listened = time.monotonic()
            chunk = self.channel.receive()
            if chunk:
                self._buffer += chunk
                self._heard = time.monotonic()
                return
            if chunk == b"":
                raise LinkLost("the agent's session has ended")
            if time.monotonic() - self._heard > SILENCE_S:
                raise LinkLost(f"nothing has come for {SILENCE_S:.0f} s")
            if not wait:
                return
