"""The one door to processes on a node: argv lists, a limit for each, bounded output, nothing that outlives the agent.

Every process gets its own session, so that ending it ends whatever it started, and (where util-linux has `setpriv`) a
parent-death signal, so that the kernel ends it if the agent is killed. PR_SET_PDEATHSIG, prctl(2), is tied to the
*thread* that forks: long-lived processes must be spawned from a thread that lives as long (the session's main thread).
"""

from __future__ import annotations

import math
import os
import select
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Callable, List, Mapping, Optional, Sequence, Tuple, Union

from retina_runner.agent.records import dataclass

if TYPE_CHECKING:
    import subprocess

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where node tools are looked for: an SSH or cron session's PATH often lacks the sbin directories."""

OUTPUT_LIMIT_BYTES = 16 << 20
KILL_GRACE_S = 2.0
NOTHING = -3
"""subprocess.DEVNULL. That module is imported by whoever starts something: most nodes begin to do so after T0."""


class MissingTool(Exception):
    """The program isn't installed on this node. `tool` is its name."""

    def __init__(self, tool: str):
        super().__init__(f"{tool}: not installed")
        self.tool = tool


@dataclass(frozen=True)
class Outcome:
    """One finished command. `exit_status` is negative for a signal, as in `subprocess`; `start` is Unix time."""

    argv: Tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes
    start: float
    duration_s: float
    timed_out: bool = False
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Ended by itself with status 0. A truncated output is still ok; its flag reaches the manifest."""
        return self.exit_status == 0 and not self.timed_out

    def why(self) -> str:
        """Why it isn't ok, in one line with the last line of stderr; empty when it is."""
        if self.ok:
            return ""
        tail = self.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        if self.timed_out:
            what = f"no end within {self.duration_s:.0f} s"
        elif self.exit_status < 0:
            what = f"killed by signal {-self.exit_status}"
        else:
            what = f"exit status {self.exit_status}"
        return f"{self.argv[0]}: {what}" + (f": {tail[0][:300]}" if tail else "")


def find(tool: str) -> Optional[str]:
    """Absolute path of a program on this node, or None. An absolute `tool` is only checked."""
    return shutil.which(tool, path=SEARCH_PATH)


def environment(extra: Optional[Mapping[str, str]] = None) -> "dict[str, str]":
    """The environment of every process on a node: nothing inherited, C locale, so that output can be parsed."""
    env = {"PATH": SEARCH_PATH, "LC_ALL": "C", "LANG": "C", "HOME": "/root" if os.geteuid() == 0 else "/"}
    env.update(extra or {})
    return env


def guarded(argv: Sequence[str]) -> List[str]:
    """`argv` with its program resolved, and a parent-death SIGKILL where `setpriv` can give one.

    Raises MissingTool.
    """
    path = find(argv[0])
    if path is None:
        raise MissingTool(argv[0])
    resolved = [path, *argv[1:]]
    setpriv = find("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *resolved] if setpriv else resolved


def spawn(
    argv: Sequence[str],
    *,
    stdin: Union[int, IO[bytes]] = NOTHING,
    stdout: Union[int, IO[bytes]] = NOTHING,
    stderr: Union[int, IO[bytes]] = NOTHING,
    cwd: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
) -> "subprocess.Popen[bytes]":
    """Start a long-lived process in its own session; end it with `end`. Raises MissingTool, OSError."""
    import subprocess

    return subprocess.Popen(
        guarded(argv), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=environment(env),
        start_new_session=True, close_fds=True,
    )  # fmt: skip


def end(process: "subprocess.Popen[bytes]", grace_s: float = KILL_GRACE_S, first: int = signal.SIGTERM) -> int:
    """Ask the process and everything in its session's group to end, then insist. Idempotent; returns the exit status."""
    import subprocess

    if process.poll() is None:
        _signal_group(process.pid, first)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
    # The group may hold descendants that ignored the first signal, whether or not the leader is gone.
    _signal_group(process.pid, signal.SIGKILL)
    return process.wait()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def run(
    argv: Sequence[str],
    *,
    limit_s: float = 10.0,
    stdin: bytes = b"",
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    cwd: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
    keep: Optional[Callable[[bytes], None]] = None,
) -> Outcome:
    """Run a command to its end or its limit. A non-zero status is an Outcome, never an exception.

    Output beyond `output_limit_bytes` (stdout) is read and thrown away, so that the command can finish. `keep` takes stdout
    piece by piece, in another thread, so that none of it is in memory; the Outcome has none of it then. Raises MissingTool
    when the program isn't installed, OSError when it can't be started.
    """
    import subprocess

    start, begun = time.time(), time.monotonic()
    process = spawn(
        argv, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=cwd, env=env,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        _Reader(process.stdout, output_limit_bytes, keep),
        _Reader(process.stderr, min(output_limit_bytes, 1 << 20)),
    ]
    if stdin:
        threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
    timed_out = False
    try:
        _ended(process, limit_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        end(process, grace_s=KILL_GRACE_S if timed_out else 0.0)
    for reader in readers:
        # A descendant that left the session can hold the pipe open; its output is not ours to wait for.
        reader.join(KILL_GRACE_S)
    return Outcome(
        argv=tuple(argv), exit_status=process.returncode, stdout=bytes(readers[0].data), stderr=bytes(readers[1].data),
        start=start, duration_s=time.monotonic() - begun, timed_out=timed_out,
        truncated=readers[0].truncated or readers[1].truncated,
    )  # fmt: skip


def _ended(process: "subprocess.Popen[bytes]", limit_s: float) -> None:
    """As its `wait`, which looks every 50 ms; here the kernel tells, where it can (pidfd_open(2), Linux 5.3)."""
    deadline = time.monotonic() + limit_s
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        pass
    else:
        poll = select.poll()  # select(2) knows descriptors below 1,024 only
        poll.register(descriptor, select.POLLIN)
        try:
            poll.poll(math.ceil(1000 * min(limit_s, 1e6)))
        finally:
            os.close(descriptor)
    process.wait(max(0.0, deadline - time.monotonic()))


def stat_fields(pid: int, proc: str = "/proc") -> List[str]:
    """Fields of /proc/<pid>/stat from the third (state) on; the second may hold blanks and parentheses."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode("ascii", "replace").split()
    except OSError:
        return []


def start_ticks(pid: int, proc: str = "/proc") -> Optional[int]:
    """When the process started, in clock ticks since boot (field 22): with it, a pid names one process for good."""
    fields = stat_fields(pid, proc)
    return int(fields[19]) if len(fields) > 19 else None


def _feed(pipe: Optional[IO[bytes]], data: bytes) -> None:
    assert pipe is not None
    try:
        pipe.write(data)
        pipe.close()
    except (BrokenPipeError, OSError):
        pass  # the command didn't want its input; its exit status says so


class _Reader(threading.Thread):
    def __init__(self, pipe: IO[bytes], limit_bytes: int, keep: Optional[Callable[[bytes], None]] = None):
        super().__init__(daemon=True)
        self.data = bytearray()
        self.truncated = False
        self._pipe, self._left_bytes = pipe, limit_bytes
        self._keep: Callable[[bytes], object] = keep or self.data.extend
        self.start()

    def run(self) -> None:
        while True:
            chunk = os.read(self._pipe.fileno(), 1 << 16)
            if not chunk:
                self._pipe.close()
                return
            self.truncated = self.truncated or len(chunk) > self._left_bytes
            kept = chunk[: self._left_bytes]
            self._left_bytes -= len(kept)
            try:
                if kept:
                    self._keep(kept)
            except MemoryError:  # the limit lets more through than this process may have: it is cut there
                self._left_bytes, self.truncated = 0, True
