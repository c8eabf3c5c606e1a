"""A `.tar.gz` or `.tar.zst` that is written while its members still grow, with the manifest, known last, as its first member.

Plain tar (GNU format): any tar reads it. How it is compressed so that parts of it can be rewritten is `framing.py`'s:

* A growing member's tar header lies uncompressed in a known place, and is rewritten when the size is known.
* The file begins with room for the manifest, which is put there at the end. For one that doesn't fit the rest moves up.
* Of several members that grow at once the first is written in place, the others beside it, and appended at the end.

After an OSError for a full disk nothing is lost: what couldn't be written is kept and tried again with the next call.
Where no room comes, `Member.cut` goes back to what is on the disk, and `ArchiveWriter.drop_last` leaves a member out:
so an archive that has begun can always be finished. What to give up, and when, is `packing.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

from retina_runner.agent.artefact import check_path
from retina_runner.agent.framing import Framing, GzipFraming, crc32_combine
from retina_runner.agent.member import TAR_BLOCK, Member, MemberInfo, tar_header
from retina_runner.agent.passing import REST_BYTES, is_full
from retina_runner.agent.records import dataclass

RESERVE_BYTES = 64 << 10
_COPY_BYTES = 1 << 20
_HASHED_BYTES = 1 << 16
"""Larger pieces come from the kernel and go back to it, page by page: for 1 MB 1.05 ms instead of 0.67, by `python -m timeit -p
-s "from retina_runner.agent.archive import Path, digest_of" "digest_of(Path('FILE'))"` with either."""
_TAR_RECORD = 10240


@dataclass(frozen=True)
class ArchiveInfo:
    """A finished archive; the digest is of the whole file."""

    path: Path
    size_bytes: int
    sha256: str


class ArchiveWriter:
    """Writes one archive at `path` (mode 0600) whose members lie below the folder `top`; `mtime` is Unix time.

    `open_member` may be called from any thread.
    """

    def __init__(
        self, path: Path, top: str, mtime: float, framing: Optional[Framing] = None, reserve_bytes: int = RESERVE_BYTES
    ):
        self.path, self.top, self.mtime = path, top, int(mtime)
        self.framing, self._reserve_bytes = framing or GzipFraming(), reserve_bytes
        self._lock = threading.Lock()
        self._in_place: Optional[Member] = None
        self._members: List[Member] = []
        self._file = _create(path)
        try:
            self._write_all(b"\0" * self._reserve_bytes)
        except OSError:
            self.abandon()
            raise

    def open_member(self, path: str) -> Member:
        """Begin a member that grows. Raises ValueError for a path that isn't a plain relative one, OSError."""
        check_path(path)
        with self._lock:
            if self._in_place is None:
                member = Member(self, path, self._file, None)
                self._in_place = member
            else:
                spool = self.path.with_name(f"{self.path.name}.spool{len(self._members)}")
                member = Member(self, path, _create(spool), spool)
            self._members.append(member)
            return member

    def member_closed(self, member: Member) -> None:
        with self._lock:
            if self._in_place is member:
                self._in_place = None

    def add_bytes(self, path: str, data: bytes) -> MemberInfo:
        """Add a whole member."""
        member = self.open_member(path)
        member.write(data)
        member.close()
        return member.info()

    def open_members(self) -> Tuple[Member, ...]:
        """Those that still grow."""
        return tuple(m for m in self._members if not m.closed)

    def drop(self, member: Member) -> None:
        """Leave a member out; of those in the archive's own file only the last can be."""
        with self._lock:
            self._members.remove(member)
            if member is self._in_place:
                self._in_place = None
        at = member.placed_at
        if member.spool is None:
            at = member.at
        else:
            member.discard_spool()
        if at is not None:
            self._file.seek(at)
            self._file.truncate()

    def drop_last(self) -> Optional[Member]:
        """Leave out the member that comes last in the archive, whose room that gives back; None when there is none."""
        ordered = self._ordered()
        if not ordered:
            return None
        self.drop(ordered[-1])
        return ordered[-1]

    def _ordered(self) -> List[Member]:
        """In the order of the file: what was written in place, then what was beside it."""
        return [m for m in self._members if m.spool is None] + [m for m in self._members if m.spool is not None]

    def finish(self, manifest: Callable[[Tuple[MemberInfo, ...]], bytes]) -> ArchiveInfo:
        """Close every member, put the manifest in front, make it durable. May be called again after an OSError."""
        for member in self._members:
            member.close()
        ordered = self._ordered()
        text = manifest(tuple(m.info() for m in ordered))
        for member in ordered:
            if member.spool is not None and member.placed_at is None:
                self._append(member)
        head, head_crc, head_length = self._head(text)
        crc, length = head_crc, head_length
        for member in ordered:
            crc = crc32_combine(crc, member.crc, member.length)
            length += member.length
        # Two zero blocks end a tar; readers that work in records want a whole one.
        trailer_bytes = 2 * TAR_BLOCK + -(length + 2 * TAR_BLOCK) % _TAR_RECORD
        tail = self.framing.tail(trailer_bytes, crc, length)
        room = self._reserve_bytes
        if not ordered:  # a disk that is full is no reason to have no manifest: all of it lies in what is there already
            room -= len(tail)
            self._file.seek(room)
        end = self._file.tell()
        try:
            self._write_all(tail)
            self._file.truncate()
            self._place_head(head, room, end + len(tail))
        except OSError:
            self._file.seek(end)
            self._file.truncate()
            raise
        os.fsync(self._file.fileno())
        self._file.close()
        _sync_folder(self.path.parent)
        size, digest = digest_of(self.path)
        return ArchiveInfo(self.path, size, digest)

    def abandon(self) -> None:
        """Remove everything that was written. Idempotent."""
        self._file.close()
        for path in [self.path, *(m.spool for m in self._members if m.spool is not None)]:
            try:
                path.unlink()
            except FileNotFoundError:
                pass

    def _append(self, member: Member) -> None:
        """Copy what grew beside the archive into it; by way of memory when the disk has no room for both."""
        assert member.spool is not None
        at = self._file.tell()
        try:
            if member.rest is None:
                with open(str(member.spool), "rb", buffering=0) as source:
                    _copy(source, self._file)
            else:
                self._write_all(member.rest)
        except OSError as error:
            self._file.seek(at)
            self._file.truncate()
            if not is_full(error) or member.rest is not None or member.spool.stat().st_size > REST_BYTES:
                raise
            member.rest = member.spool.read_bytes()
            member.spool.unlink()
            self._append(member)
            return
        member.placed_at = at
        member.discard_spool()

    def _head(self, manifest: bytes) -> Tuple[bytes, int, int]:
        """(compressed manifest member, CRC and length of what it holds)."""
        plain = tar_header(f"{self.top}/manifest.json", len(manifest), self.mtime) + manifest
        plain += b"\0" * (-len(plain) % TAR_BLOCK)
        return self.framing.front(plain), zlib.crc32(plain), len(plain)

    def _place_head(self, head: bytes, room: int, total: int) -> None:
        filled = self.framing.filled(head, room)
        if filled is not None:
            self._file.seek(0)
            self._write_all(filled)
            self._file.seek(total)
            return
        front = self.framing.unfilled(head)
        self._shift(len(front) - room, room, total)
        self._file.seek(0)
        self._write_all(front)
        self._file.seek(0, os.SEEK_END)

    def _shift(self, by: int, start: int, total: int) -> None:
        """Move everything behind the room at the front up, last piece first: a disk that is full refuses that one, before
        anything is overwritten."""
        at, piece_bytes = total, max(_COPY_BYTES, by)
        while by and at > start:
            length = min(piece_bytes, at - start)
            at -= length
            self._file.seek(at)
            piece = _read_exactly(self._file, length)
            self._file.seek(at + by)
            self._write_all(piece)

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]


def _create(path: Path) -> Any:
    descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(descriptor, "r+b", buffering=0)


def _copy(source: Any, target: Any) -> None:
    """From here to the end of `source`, in the kernel where it can (copy_file_range(2)), else through memory."""
    while True:
        try:
            if not os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                return
        except OSError as error:
            if is_full(error):
                raise
            break
    while True:
        chunk = source.read(_COPY_BYTES)
        if not chunk:
            return
        while chunk:
            chunk = chunk[target.write(chunk) :]


def _read_exactly(file: Any, length: int) -> bytes:
    pieces = []
    while length:
        pieces.append(file.read(length))
        length -= len(pieces[-1])
    return b"".join(pieces)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> Tuple[int, str]:
    """(size in bytes, SHA-256 in hex) of a file, in constant memory."""
    digest = hashlib.sha256()
    return feed(digest, path), digest.hexdigest()


def feed(digest: "hashlib._Hash", path: Path) -> int:
    """Hash a file's bytes, after what the digest has had already; how many they were."""
    size = 0
    with open(str(path), "rb", buffering=0) as file:
        while True:
            chunk = file.read(_HASHED_BYTES)
            if not chunk:
                return size
            size += len(chunk)
            digest.update(chunk)
