"""One remote command on an open SSH transport: bytes in, bytes out as they come, the exit status, and a limit."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retina_runner.executors import LinkLost
from retina_runner.executors.served import LimitReached, send_all

WINDOW_BYTES, PACKET_BYTES = 2 << 20, 1 << 18
"""Paramiko's packets are 32 KiB. A window is what the runner may have to hold in memory for each node that it fetches from:
2 MiB let 40 MB/s through at a round trip of 50 ms."""
CHUNK_BYTES = 1 << 18
STEP_S = 0.5
OPEN_LIMIT_S = 20.0
MOST_OUTPUT_BYTES = 64 << 20


@dataclass(frozen=True)
class Finished:
    """`status` is the command's own; 255 stands for one that a signal ended."""

    status: int
    stdout: bytes
    stderr: bytes


class Channel:
    """A running command, a `served.Stream`. Use as a context manager: leaving it closes the channel whatever has happened."""

    def __init__(self, transport: Any, argv: Sequence[str], *, large: bool = False):
        import paramiko

        self._broken = (paramiko.SSHException, EOFError, OSError)
        try:
            self._channel = transport.open_session(
                window_size=WINDOW_BYTES if large else None, max_packet_size=PACKET_BYTES if large else None,
                timeout=OPEN_LIMIT_S,
            )  # fmt: skip
            self._channel.settimeout(STEP_S)
            self._channel.exec_command(shlex.join(argv))
        except self._broken as error:
            raise LinkLost(f"no channel: {error or type(error).__name__}") from error
        self.stderr = b""

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the channel. Idempotent."""
        try:
            self._channel.close()
        except self._broken:
            pass

    def send(self, data: bytes, limit_s: float = 120.0, close: bool = True) -> None:
        """Give the command its input; `close` ends it. A command that wants no more is no trouble. Raises LinkLost."""
        try:
            try:
                send_all(self._write, data, limit_s)
            except self._broken:
                if self._channel.transport is None or not self._channel.transport.is_active():
                    raise
                return  # the command has closed its input
            if close:
                self._channel.shutdown_write()
        except self._broken as error:
            raise LinkLost(str(error) or type(error).__name__) from error

    def _write(self, view: memoryview) -> int:
        try:
            taken: int = self._channel.send(view[: 1 << 17])
        except TimeoutError:
            return 0
        return taken

    def chunks(self, limit_s: float, give_up: threading.Event | None = None) -> Iterator[bytes]:
        """stdout as it comes, until its end, or `give_up`. Raises LinkLost, LimitReached (`limit_s` without a byte)."""
        last = time.monotonic()
        while give_up is None or not give_up.is_set():
            chunk = self.receive()
            if chunk is None:
                if time.monotonic() - last > limit_s:
                    raise LimitReached(f"nothing came for {limit_s:.0f} s")
                continue
            if not chunk:
                return
            last = time.monotonic()
            yield chunk

    def receive(self) -> bytes | None:
        """What has come of stdout; b"" at its end, None when nothing came for a moment. Raises LinkLost."""
        self._read_stderr()
        try:
            chunk: bytes = self._channel.recv(CHUNK_BYTES)
        except TimeoutError:
            self._check_transport()
            return None
        except self._broken as error:
            raise LinkLost(str(error) or type(error).__name__) from error
        if not chunk:
            self._check_transport()
        return chunk

    def _check_transport(self) -> None:
        transport = self._channel.get_transport()
        if transport is None or not transport.is_active():
            raise LinkLost("the connection is gone")

    def _read_stderr(self) -> None:
        while len(self.stderr) < 1 << 16 and self._channel.recv_stderr_ready():
            self.stderr += self._channel.recv_stderr(1 << 15)

    def status(self, limit_s: float) -> int:
        """Wait for the exit status. Raises LinkLost, LimitReached."""
        deadline = time.monotonic() + limit_s
        while not self._channel.status_event.wait(STEP_S):
            self._check_transport()
            if time.monotonic() > deadline:
                raise LimitReached(f"no end within {limit_s:.0f} s")
        self._read_stderr()
        number = int(self._channel.exit_status)
        if number < 0:
            self._check_transport()
            return 255
        return number


def run(transport: Any, argv: Sequence[str], stdin: bytes = b"", limit_s: float = 60.0) -> Finished:
    """Run a command to its end. Raises LinkLost, LimitReached."""
    deadline = time.monotonic() + limit_s
    with Channel(transport, argv) as channel:
        channel.send(stdin, limit_s)
        stdout = b""
        for chunk in channel.chunks(limit_s):
            stdout += chunk
            if len(stdout) > MOST_OUTPUT_BYTES:
                raise LimitReached(f"it printed more than {MOST_OUTPUT_BYTES} B")
            if time.monotonic() > deadline:
                raise LimitReached(f"no end within {limit_s:.0f} s")
        status = channel.status(max(1.0, deadline - time.monotonic()))
        return Finished(status, stdout, channel.stderr)
