"""One member of an archive while it grows: compressed, hashed and counted as it comes, its tar header rewritten at the end.

What a full disk has no room for waits in memory, and is tried again with the next call; `cut` goes back to what is there.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Deque, Optional

from retina_runner.agent.framing import crc32_combine
from retina_runner.agent.passing import is_full
from retina_runner.agent.records import dataclass

if TYPE_CHECKING:
    from retina_runner.agent.archive import ArchiveWriter

SYNC_EVERY_BYTES = 64 << 20
"""Written-back bit by bit, so that the last fsync has little left to wait for."""
MARK_EVERY_BYTES = 1 << 20
"""How much of a member a cut takes away at most, beyond what isn't on the disk."""
TAR_BLOCK = 512


@dataclass(frozen=True)
class MemberInfo:
    """A finished member; `path` is below the top folder."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Mark:
    """A member as it was when everything of it was on the disk: it can be gone back to."""

    offset: int
    size_bytes: int
    digest: Any
    data_crc: int
    count: int


class Member:
    """One member that grows: `write` until `close`. Used by one thread at a time.

    `count` is what the last `write` said that there is in it (packets), or after a cut what that left.
    """

    def __init__(self, writer: "ArchiveWriter", path: str, file: Any, spool: Optional[Path]):
        self._writer, self.path, self._file, self.spool = writer, path, file, spool
        self._fast = False
        self._squeezer = writer.framing.squeezer(stored=False)
        self._unwritten = b""
        self._since_sync = 0
        self._at = file.tell()
        self._digest = hashlib.sha256()
        self._data_crc = 0
        self._marks: Deque[_Mark] = deque(maxlen=2)
        self.size_bytes = self.count = 0
        self.closed = False
        self.crc, self.length = 0, 0
        self.placed_at: Optional[int] = None
        self.rest: Optional[bytes] = None
        try:
            self._put(writer.framing.header(self._header(0)))
        except OSError as error:
            if not is_full(error):
                raise

    @property
    def at(self) -> int:
        """Where in its file it begins."""
        return int(self._at)

    @property
    def unwritten_bytes(self) -> int:
        """What waits in memory for room on the disk."""
        return len(self._unwritten)

    def _header(self, size_bytes: int) -> bytes:
        return tar_header(f"{self._writer.top}/{self.path}", size_bytes, self._writer.mtime)

    def write(self, data: bytes, fast: bool = False, count: int = 0) -> None:
        """Append what a cut keeps whole or not at all. `fast` stores instead of compressing, for a member that mustn't
        fall behind. `count` is how many things (packets) the member holds with this.

        Raises OSError for a full disk; the data is taken all the same, and goes out with the next call.
        """
        if fast != self._fast:
            self._unwritten += self._squeezer.end()
            self._squeezer = self._writer.framing.squeezer(stored=fast)
            self._fast = fast
        self._digest.update(data)
        self._data_crc = zlib.crc32(data, self._data_crc)
        self.size_bytes += len(data)
        self.count = count
        self._put(self._squeezer.compress(data))
        if self.size_bytes - (self._marks[-1].size_bytes if self._marks else 0) >= MARK_EVERY_BYTES:
            self._put(self._squeezer.end())
            self._marks.append(
                _Mark(self._file.tell(), self.size_bytes, self._digest.copy(), self._data_crc, self.count)
            )

    def flush(self) -> None:
        """Write what couldn't be written. Raises OSError for a disk that is still full."""
        self._put(b"")

    def cut(self) -> bool:
        """Forget the last of it: what isn't on the disk, and up to MARK_EVERY_BYTES of what is. Again cuts more.

        Whether something is left; nothing may be written to the member then but `close`.
        """
        if not self._marks:
            return False
        mark = self._marks.pop()
        self._file.seek(mark.offset)
        self._file.truncate()
        self._unwritten, self._squeezer = b"", self._writer.framing.squeezer(stored=False)
        self.size_bytes, self.count, self._data_crc = mark.size_bytes, mark.count, mark.data_crc
        self._digest = mark.digest
        return True

    def close(self) -> None:
        """Finish the member. Idempotent, and repeatable after an OSError."""
        if self.closed:
            return
        if self._squeezer is not None:
            padding = b"\0" * (-self.size_bytes % TAR_BLOCK)
            self._data_crc = zlib.crc32(padding, self._data_crc)
            self._unwritten += self._squeezer.compress(padding) + self._squeezer.end()
            self._squeezer = None
        self._put(b"")
        header = self._header(self.size_bytes)
        end = self._file.tell()
        self._file.seek(self._at + self._writer.framing.header_at)
        self._file.write(header)
        self._file.seek(end)
        padded = self.size_bytes + -self.size_bytes % TAR_BLOCK
        self.crc = crc32_combine(zlib.crc32(header), self._data_crc, padded)
        self.length = len(header) + padded
        self.closed = True
        if self.spool is not None:
            self._file.close()  # what is removed gives its room back only when nobody has it open
        self._writer.member_closed(self)

    def discard_spool(self) -> None:
        """Remove the file beside the archive, and what is held of it. Idempotent."""
        assert self.spool is not None
        self._file.close()
        self.spool.unlink(missing_ok=True)
        self.rest = None

    def _put(self, data: bytes) -> None:
        self._unwritten += data
        while self._unwritten:
            written = self._file.write(self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._since_sync += written
        if self._since_sync > SYNC_EVERY_BYTES:
            self._since_sync = 0
            os.fdatasync(self._file.fileno())

    def info(self) -> MemberInfo:
        return MemberInfo(self.path, self.size_bytes, self._digest.hexdigest())


def tar_header(name: str, size_bytes: int, mtime: int) -> bytes:
    """The member's header; a GNU long-name entry before it for names of over 100 bytes, base-256 for over 8 GiB."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size_bytes, mtime, 0o600
    info.uname = info.gname = "root"
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
