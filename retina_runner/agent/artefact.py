"""One artefact as it comes, piece by piece: onto the disk, and where that is full into the memory that is kept for it.

No more of it than one piece is in memory otherwise, however large it becomes.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, MutableMapping, Optional, Type, Union

from retina_runner.agent.passing import is_full


class Artefact:
    """Leave it as a context manager, or by `close`. Pieces may come from another thread, also too late: those are dropped.

    `place` makes the artefact's folder and returns its path. `held` takes the content (by path) for which the disk has no
    room, and `reserve(path, size_bytes)` sets so much memory in all aside for it, or says that it may not have it.
    """

    def __init__(self, path: str, place: Callable[[str], Path], held: "MutableMapping[str, bytes]",
                 reserve: Callable[[str, int], bool]):  # fmt: skip
        self._path, self._place, self._held, self._reserve = path, place, held, reserve
        self._lock = threading.Lock()
        self._target: Optional[Path] = None
        self._file: Any = None
        self._memory: Optional[bytearray] = None
        self._trouble: Optional[OSError] = None
        self._closed = False
        self.size_bytes = 0

    def write(self, piece: Union[bytes, bytearray]) -> None:
        """The next piece. What there is no room for is told by `close`, so that whoever reads a pipe reads on."""
        with self._lock:
            if self._closed or self._trouble is not None:
                return
            try:
                self._write(piece)
            except OSError as error:
                self._trouble = error

    def _write(self, piece: Union[bytes, bytearray]) -> None:
        view = memoryview(piece)
        if self._memory is None:
            try:
                if self._file is None:
                    self._target = self._place(self._path)
                    descriptor = os.open(str(self._target), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                    self._file = os.fdopen(descriptor, "r+b", buffering=0)
                while view:
                    written = self._file.write(view)
                    self.size_bytes += written
                    view = view[written:]
                return
            except OSError as error:
                if not is_full(error):
                    raise
            self._move(len(view))
        assert self._memory is not None
        self._ask_for(len(self._memory) + len(view))
        self._memory += view
        self.size_bytes += len(view)

    def _move(self, more_bytes: int) -> None:
        """From the disk into memory. Raises OSError (ENOSPC) when that is too much for it: then it stays where it is."""
        self._ask_for(self.size_bytes + more_bytes)
        content = bytearray()
        if self._file is not None:
            self._file.seek(0)
            content += self._file.read()
        self._remove()
        self._memory = content

    def _ask_for(self, size_bytes: int) -> None:
        if not self._reserve(self._path, size_bytes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _remove(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._target is not None:
            self._target.unlink(missing_ok=True)

    def discard(self) -> None:
        """Close it, and keep nothing of it. Idempotent."""
        with self._lock:
            self._closed = True
            self._remove()
            self._memory = None
            self._held.pop(self._path, None)
            self._reserve(self._path, 0)

    def close(self) -> None:
        """Raises OSError when it isn't whole, ENOSPC when that is for want of room; its first `size_bytes` are kept."""
        with self._lock:
            if self._closed:
                return
            if self._trouble is None and self._file is None and self._memory is None:
                try:
                    self._write(b"")
                except OSError as error:
                    self._trouble = error
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._memory is not None:
                self._held[self._path] = bytes(self._memory)
                self._memory = None
            if self._trouble is not None:
                raise self._trouble

    def __enter__(self) -> "Artefact":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """What came before another trouble is kept; where nothing did, nothing is."""
        if kind is None:
            self.close()
        elif self.size_bytes:
            try:
                self.close()
            except OSError:
                pass  # the first trouble is the one to tell
        else:
            self.discard()


def check_path(path: str) -> None:
    """Raise ValueError for an artefact's path that isn't relative, or could leave the archive."""
    if path.startswith("/") or any(p in ("", ".", "..") for p in path.split("/")) or "\0" in path:
        raise ValueError(f"not a relative path inside the archive: {path!r}")
