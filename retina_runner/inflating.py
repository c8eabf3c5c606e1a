"""The tar inside an archive, read in constant memory: of one gzip member, or of zstd frames. Which is told by its first bytes.

What is damaged is said as far as the format can tell. No more is inflated than `limit_bytes`, and a zstd frame that asks
for a larger window than those that a node makes is refused: nobody's archive can take this machine's memory.
"""

from __future__ import annotations

import io
import sys
import zlib
from typing import IO, Any

from retina_runner.errors import ArchiveError

CHUNK_BYTES = 1 << 16
"""Larger pieces come from the kernel and go back to it, page by page (mallopt(3), M_MMAP_THRESHOLD): with 256 KiB an archive of
1 MB takes 3.9 ms to verify instead of 1.8, by `python -m timeit -p -s "from retina_runner.verification import verify_archive"
"verify_archive('ARCHIVE')"` with either."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_LOG_MOST = 23
"""8 MiB, what RFC 8878 recommends every decoder to allow; `zstd -1` makes 512 KiB."""
_TAR_RECORD, _TAR_END = 10240, 1024


class Damaged(Exception):
    """What is wrong with an archive, in words."""


class Inflater(io.RawIOBase):
    """The inflated bytes of an archive, and nothing but one: what follows it is damage too. Raises Damaged."""

    def __init__(self, file: IO[bytes], limit_bytes: int):
        self._file, self.limit_bytes = file, limit_bytes
        self.given = 0
        self._rest, self._last = b"", b""
        start = file.read(len(_ZSTD_MAGIC))
        self._source: _Gzip | _Zstd = (_Zstd if start == _ZSTD_MAGIC else _Gzip)(file, start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = self._source.more()
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._last = (self._last + bytes(buffer[max(0, count - _TAR_END) : count]))[-_TAR_END:]
        self.given += count
        if self.given > self.limit_bytes:
            raise Damaged("it inflates to more than its manifest says")
        return count

    def finish(self) -> None:
        """Read what is behind the tar's last member: whole records of zeros, and then the file's end."""
        buffer = bytearray(CHUNK_BYTES)
        while count := self.readinto(memoryview(buffer)):
            if any(buffer[:count]):
                raise Damaged("there is something behind the archive's end")
        if self.given % _TAR_RECORD or self._last != bytes(_TAR_END):
            raise Damaged("truncated or altered: the tar inside has no end")
        self._source.finish()


class _Gzip:
    def __init__(self, file: IO[bytes], start: bytes):
        self._file, self._next = file, start
        self._inflate = zlib.decompressobj(31)

    def more(self) -> bytes:
        """Some inflated bytes; none at the end, where zlib has checked length and CRC."""
        found = b""
        try:
            while not found and not self._inflate.eof:
                chunk = self._inflate.unconsumed_tail or self._next or self._file.read(CHUNK_BYTES)
                self._next = b""
                if not chunk:
                    raise Damaged(f"truncated: the compressed data ends after {self._file.tell()} bytes of the file")
                found = self._inflate.decompress(chunk, CHUNK_BYTES)
        except zlib.error as error:
            raise Damaged(
                f"altered or not gzip, near byte {self._file.tell()}: {str(error).partition(': ')[2] or error}"
            ) from None
        return found

    def finish(self) -> None:
        if self._inflate.unused_data or self._file.read(1):
            raise Damaged("there is something behind the archive's end")


class _Zstd:
    def __init__(self, file: IO[bytes], start: bytes):
        self._file, self._next = file, start
        self._zstd = _library()
        self._frame: Any = None

    def more(self) -> bytes:
        """Some inflated bytes; none at the file's end, which has to be a frame's end too."""
        found = b""
        try:
            while not found:
                if self._frame is not None and not self._frame.needs_input:
                    found = self._frame.decompress(b"", CHUNK_BYTES)
                else:
                    chunk = self._next or self._file.read(CHUNK_BYTES)
                    self._next = b""
                    if not chunk and self._frame is None:
                        return b""
                    if not chunk:
                        raise Damaged(
                            f"truncated: the compressed data ends after {self._file.tell()} bytes of the file"
                        )
                    if self._frame is None:
                        most = self._zstd.DecompressionParameter.window_log_max
                        self._frame = self._zstd.ZstdDecompressor(options={most: _ZSTD_WINDOW_LOG_MOST})
                    found = self._frame.decompress(chunk, CHUNK_BYTES)
                if self._frame.eof:
                    self._next, self._frame = self._frame.unused_data, None
        except self._zstd.ZstdError as error:
            raise Damaged(f"altered or not zstd, near byte {self._file.tell()}: {error}") from None
        return found

    def finish(self) -> None:
        pass  # `more` has met the file's end


def _library() -> Any:
    """zstd as the standard library has it since 3.14 (PEP 784), or its backport. Raises ArchiveError."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise ArchiveError("a .tar.zst needs backports.zstd here: pip install backports.zstd") from None
    return zstd
