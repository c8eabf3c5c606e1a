"""A command of this machine as a `served.Stream`: what `docker exec -i`, `podman exec -i` and chroot(8) are run by."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from retina_runner.executors import LinkLost
from retina_runner.executors.served import LimitReached, send_all

CHUNK_BYTES = 1 << 18
STEP_S = 0.5
STDERR_BYTES = 1 << 16
END_S = 5.0
"""For a command whose input and output have ended to end itself."""


@dataclass(frozen=True)
class Answer:
    """What a command has said, and its exit status."""

    status: int
    stdout: str
    stderr: str


def answer(argv: Sequence[str], limit_s: float) -> Answer:
    """Run a command to its end, in the user's own environment: it says which engine is meant. Raises OSError, LimitReached."""
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, errors="replace", timeout=limit_s, check=False,
                              stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LimitReached(f"no answer within {limit_s:.0f} s") from None
    return Answer(done.returncode, done.stdout, done.stderr)


class ProcessStream:
    """See `served.Stream`. The command is a session of its own: Ctrl-C is the runner's, which ends it in its time."""

    def __init__(self, argv: Sequence[str]):
        try:
            self._process = subprocess.Popen(
                list(argv), bufsize=0, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise LinkLost(f"{argv[0]}: {error.strerror}") from error
        self._in, self._out, self._err = (
            stream.fileno() for stream in (self._process.stdin, self._process.stdout, self._process.stderr) if stream
        )
        os.set_blocking(self._in, False)
        self.stderr = b""
        self._errors_open = True

    def send(self, data: bytes, limit_s: float = 120.0, close: bool = True) -> None:
        try:
            send_all(self._write, data, limit_s)
        except BrokenPipeError:
            return  # the command has closed its input, or ended: its output or its status tells
        if close:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _write(self, view: memoryview) -> int:
        self._wait(self._in, select.POLLOUT)
        try:
            return os.write(self._in, view)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        if not self._wait(self._out, select.POLLIN):
            return None
        chunk = os.read(self._out, CHUNK_BYTES)
        if not chunk:
            self._drain_stderr()
        return chunk

    def status(self, limit_s: float) -> int:
        try:
            number = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise LimitReached(f"no end within {limit_s:.0f} s") from None
        self._drain_stderr()
        return number if number >= 0 else 255

    def close(self) -> None:
        process = self._process
        if process.stdin is None or process.stdout is None or process.stderr is None or process.stdout.closed:
            return
        # An engine's client hands the end of input on to what it runs, which ends; killed, it would leave that behind.
        for stream in (process.stdin, process.stdout):
            stream.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()

    def _wait(self, descriptor: int, for_what: int) -> bool:
        """Whether it is ready within a moment. What is said on stderr meanwhile is taken, so that nobody is kept from saying it."""
        poll = select.poll()
        poll.register(descriptor, for_what)
        if self._errors_open:
            poll.register(self._err, select.POLLIN)
        ready = dict(poll.poll(STEP_S * 1000))
        if self._err in ready:
            self._read_stderr()
        return descriptor in ready

    def _read_stderr(self) -> bool:
        chunk = os.read(self._err, CHUNK_BYTES)
        self._errors_open = bool(chunk)
        self.stderr = (self.stderr + chunk)[:STDERR_BYTES]
        return bool(chunk)

    def _drain_stderr(self) -> None:
        """What is there of it; not to its end, which a process that was left in there may hold open."""
        while self._errors_open:
            poll = select.poll()
            poll.register(self._err, select.POLLIN)
            if not poll.poll(0) or not self._read_stderr():
                return
