"""Bringing one archive here: streamed, hashed on the way, resumed where it broke off, under its name only when it is whole."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from retina_runner.agent.archive import digest_of, feed
from retina_runner.agent.passing import is_full


class Throttle:
    """Bounds the bytes a second of everything that goes through it together; None doesn't bound. `wait(seconds)` may come
    back sooner, where somebody has no more time."""

    def __init__(self, bytes_s: float | None, wait: Callable[[float], object] = time.sleep):
        self._bytes_s, self._wait = bytes_s, wait
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait for these bytes' turn."""
        if not self._bytes_s:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self._bytes_s
            wait_s = self._free_at - now
        self._wait(wait_s)


def fetch(read: Callable[[int], Iterator[bytes]], path: Path, size_bytes: int, sha256: str, throttle: Throttle) -> str:
    """Have the archive of that size and digest at `path`; what is wrong with what came, or nothing.

    `read(offset)` yields its bytes from there on. What came before it broke stays beside `path` as `.part`, for the next
    call, also of another process; not when this disk is full, where the run's own records need the room. Raises whatever
    `read` raises, and OSError.
    """
    if path.exists() and path.stat().st_size == size_bytes and digest_of(path)[1] == sha256:
        return ""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        resumed = os.fstat(descriptor).st_size
        if resumed > size_bytes:
            file.truncate(0)
            resumed = 0
        digest = hashlib.sha256()
        feed(digest, part)
        file.seek(resumed)
        got, before = resumed, -1
        while before < got < size_bytes:
            # A stream that was cut short can look like one that has ended (Kubernetes' exec): it is asked for the rest, until
            # nothing more comes.
            before = got
            for chunk in read(got):
                _write(file, chunk, part)
                digest.update(chunk)
                throttle.take(len(chunk))
            got = file.tell()
        os.fsync(descriptor)
    if got != size_bytes or digest.hexdigest() != sha256:
        part.unlink()
        if resumed:
            return fetch(read, path, size_bytes, sha256, throttle)  # once more, and all of it
        return f"{got} of {size_bytes} B came over, with another sha256 than the node's"
    os.replace(part, path)
    return ""


def _write(file: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        if is_full(error):
            file.truncate(0)
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(part.with_suffix(""))) from error
