"""A file on its way into the archive: read once, from front to back, and given up for its room when the disk is full.

What is read into memory instead is bounded; the file goes, so that the archive has the room that its content needs.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Optional, Union

FULL = (errno.ENOSPC, errno.EDQUOT)
REST_BYTES = 256 << 20
"""The most of a file that is taken into memory when the disk is full; a reader of one that grows is rarely 1 MB behind."""


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room on the disk, or none for this user."""
    return error.errno in FULL


class Passing:
    """Reads a file, or bytes that never got into one. `give_up` may come at any time. `size_bytes` is as it was opened.

    Raises OSError when the file can't be opened.
    """

    def __init__(self, source: Union[Path, bytes]):
        self.path: Optional[Path] = None
        self._rest, self._at = b"", 0
        self._file: Any = None
        if isinstance(source, bytes):
            self._rest, self.size_bytes = source, len(source)
        else:
            self.path = source
            self._file = open(str(source), "rb", buffering=0)  # noqa: SIM115 - closed by `close` or `give_up`
            self.size_bytes = os.fstat(self._file.fileno()).st_size

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; none at the end, which of a file that grows is only the end so far."""
        if self._file is not None:
            chunk: bytes = self._file.read(most_bytes) or b""
            return chunk
        piece = self._rest[self._at : self._at + most_bytes]
        self._at += len(piece)
        return piece

    def behind_bytes(self) -> int:
        """How much there is that hasn't been read yet."""
        if self._file is None:
            return len(self._rest) - self._at
        return int(os.fstat(self._file.fileno()).st_size - self._file.tell())

    def give_up(self) -> None:
        """Take what wasn't read yet into memory, REST_BYTES at most, and remove the file. Idempotent."""
        if self._file is None:
            return
        pieces = []
        left = REST_BYTES
        while left:
            piece = self._file.read(min(left, 1 << 20))
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        self._rest, self._at = b"".join(pieces), 0
        self._file.close()
        self._file = None
        assert self.path is not None
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop reading; the file stays, if it is still there."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._rest = b""
