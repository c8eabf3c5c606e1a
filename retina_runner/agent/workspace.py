"""The private directory of one plan on a node: who may use it, who is alive in it, and its event journal.

Liveness is a lock, not a pid: the agent's processes hold `lock` for as long as one of them lives, and the kernel lets go
of it for them however they end. Pids are reused; locks aren't.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from retina_runner.agent.context import utc

ROOM_BYTES = 64 << 10
"""How much the journal has ahead of its end: some three hundred events."""


class UnsafeDirectory(Exception):
    """The directory belongs to somebody else, or others may write to it: an agent run as root must not trust it."""


class Workspace:
    """Paths below one plan's directory. Making the object touches nothing."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.plan = directory / "plan.json"
        self.events = directory / "events.jsonl"
        self.release = directory / "release.json"
        self.orders = directory / "orders"
        self.lock = directory / "lock"
        self.pid = directory / "pid"
        self.out = directory / "out"
        self.raw = directory / "raw"
        self.archive = directory / "archive"

    def create(self) -> None:
        """Make the directory tree, private to this user. Raises FileExistsError, UnsafeDirectory, OSError."""
        parent = self.directory.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(parent)
        self.directory.mkdir(mode=0o700)
        for folder in (self.out, self.raw, self.archive):
            folder.mkdir(mode=0o700)

    def take_lock(self) -> Optional[int]:
        """The descriptor that holds the lock (inherited over fork), or None if an agent lives here already."""
        descriptor = os.open(str(self.lock), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def alive(self) -> bool:
        """Whether an agent process holds the lock now."""
        try:
            descriptor = os.open(str(self.lock), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def size_bytes(self) -> int:
        """Bytes on disk below the directory, as allocated; what vanishes meanwhile counts nothing."""
        total = 0
        pending = [str(self.directory)]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        else:
                            try:
                                total += entry.stat(follow_symlinks=False).st_blocks * 512
                            except FileNotFoundError:
                                pass
            except FileNotFoundError:
                pass
        return total


def check_private(directory: Path) -> None:
    """Raise UnsafeDirectory unless it is a real directory of this user that nobody else may write to."""
    status = os.lstat(str(directory))
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectory(f"{directory} is not a directory")
    if status.st_uid != os.geteuid():
        raise UnsafeDirectory(f"{directory} belongs to user id {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & 0o022:
        raise UnsafeDirectory(f"{directory} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})")


def write_whole(path: Path, value: Any, sync: bool = True) -> None:
    """`replace_whole` of a value as JSON."""
    replace_whole(path, json.dumps(value).encode(), sync)


def replace_whole(path: Path, content: bytes, sync: bool = True) -> None:
    """Replace a file in one step, so that a reader sees the old content or the new one. Without `sync` it may be lost with
    the machine: enough for what concerns running processes only."""
    partial = path.with_name(path.name + ".part")
    descriptor = os.open(str(partial), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(str(partial), str(path))


class Room:
    """Room on the disk ahead of a file that is appended to: somebody who fills the disk takes none of it."""

    def __init__(self, descriptor: int):
        self._descriptor, self._end = descriptor, 0

    def ahead(self, length: int) -> bool:
        """To be called before a write of that length. False when the room is being used up and there is no more."""
        size = os.fstat(self._descriptor).st_size
        if size + length + ROOM_BYTES // 2 > self._end:
            if not self._allocate(size + ROOM_BYTES):
                return self._end == 0  # never had any: not every file system can
            self._end = size + ROOM_BYTES
        return True

    def _allocate(self, end: int) -> bool:
        """fallocate(2), without making the file longer; where nobody can, nothing is changed."""
        try:
            library = ctypes.CDLL(None)
            call = getattr(library, "fallocate64", None) or library.fallocate
            keep_size = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
            return bool(call(self._descriptor, keep_size, ctypes.c_int64(0), ctypes.c_int64(end)) == 0)
        except (OSError, AttributeError):
            return False


class Journal:
    """`events.jsonl`: one JSON object a line, numbered by `seq` from 0. Appending is one write(2), so lines never mix."""

    def __init__(self, path: Path, echo: Optional[Callable[[Dict[str, Any]], None]] = None):
        self._path = path
        self._echo = echo
        self._lock = threading.Lock()
        self._next = sum(1 for _ in read_events(path))
        self._descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._room = Room(self._descriptor)

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event. A full disk loses the event, never the run: the archive's manifest has what matters."""
        with self._lock:
            entry: Dict[str, Any] = {"seq": self._next, "time": utc(), "event": event, **fields}
            line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
            if not self._room.ahead(len(line)) and event == "progress":
                return  # the room is for what must be known in the end
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    os.write(self._descriptor, b"\n")
            except OSError:
                return
            self._next += 1
        if self._echo is not None:
            self._echo(entry)


def read_events(path: Path) -> Iterator[Dict[str, Any]]:
    """The whole events of a journal, in order; a line cut short by a full disk is passed over."""
    yield from Reader(path).news()


class Reader:
    """Reads a journal as it grows: a long window's has a line a second, too many to read all of them again each time."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def news(self) -> Iterator[Dict[str, Any]]:
        """The whole events that weren't there the last time, in order."""
        try:
            with open(str(self._path), "rb") as file:
                file.seek(self._offset)
                lines: List[bytes] = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        self._offset += sum(len(line) + 1 for line in lines)
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
