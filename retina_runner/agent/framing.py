"""How an archive's bytes are compressed so that pieces of it can be written, rewritten and put in front later.

Both ways do the same: a member's tar header lies uncompressed at a known place, so that it can be rewritten; what grows
is compressed piece by piece; the front has room that the manifest fills at the end, and something that readers skip.

* gzip: one member (RFC 1952), one deflate stream (RFC 1951). Headers are *stored* deflate blocks. The front is filled up
  with the gzip header's comment (the extra field would do too, but tarfile's `r|gz` can't read past one), and the CRC of
  the whole is combined from its parts' CRCs: nothing is read twice for it.
* zstd (RFC 8878): frames in a row, each with its own checksum. Headers are frames of raw blocks, the front is filled up
  with a skippable frame. The standard library has no zstd on most nodes, so the node's `zstd` program makes the frames,
  one process for each few megabytes. A frame that it fails to make is written uncompressed: nothing depends on it.
"""

from __future__ import annotations

import struct
import sys
import zlib
from typing import Any, Callable, List, Optional

from retina_runner.agent import process

if sys.flags.no_site and "site" not in sys.modules:
    import site  # the interpreter began without it (executors/bootstrap.py); this is imported in the window, as a rule

    site.main()
try:
    from isal import isal_zlib as _deflate  # several times faster where it is installed; same format
except ImportError:
    _deflate = zlib

_GZIP_PLAIN = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"
_GZIP_COMMENT = b"\x1f\x8b\x08\x10\0\0\0\0\x00\xff"
_ZSTD_MAGIC, _ZSTD_SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"
_ZSTD_BLOCK_MOST = 1 << 17
FRAME_BYTES = 4 << 20
"""How much is compressed by one process; also what a member that grows holds in memory, beside what comes of it."""
FRAME_LEAST_BYTES = 512
"""Less than this isn't worth a process."""
FRAME_LIMIT_S = 120.0
SAMPLED_FROM_BYTES, SAMPLES, SAMPLE_BYTES = 64 << 10, 8, 2 << 10
"""Pieces from this size on are tried before they are deflated, by so many samples of them."""
COUNTED_MOST_BYTES = 2 << 20
DENSE = 0.97
"""Samples that deflate to no less than this part of themselves are of what is packed or encrypted already."""
ZSTD = ("zstd", "-q", "-1", "-c", "--single-thread")


def framing_of(compression: str) -> "Framing":
    """The framing that a plan asks for: `none` is gzip's with stored blocks. Raises process.MissingTool for zstd."""
    if compression == "zstd":
        if process.find(ZSTD[0]) is None:
            raise process.MissingTool(ZSTD[0])
        return ZstdFraming()
    return GzipFraming(0 if compression == "none" else 1)


class Framing:
    """What an ArchiveWriter asks of a format. Pieces of one archive come from one framing."""

    ending: str
    """What the archive's name ends in."""
    header_at: int
    """Where in `header` the header's own bytes begin."""

    def header(self, header: bytes) -> bytes:
        """A tar header, uncompressed, as a piece of its own."""
        raise NotImplementedError

    def squeezer(self, stored: bool) -> Any:
        """What takes bytes by `compress` and returns them compressed, sooner or later; `end` returns the rest of a piece."""
        raise NotImplementedError

    def front(self, plain: bytes) -> bytes:
        """What comes first in the archive, as a piece, without what the file begins with."""
        raise NotImplementedError

    def filled(self, front: bytes, room: int) -> Optional[bytes]:
        """The file's first `room` bytes; None when `front` is too long."""
        raise NotImplementedError

    def unfilled(self, front: bytes) -> bytes:
        """The file's first bytes when `front` is too long for that room: no fewer than the room has."""
        raise NotImplementedError

    def tail(self, trailer_bytes: int, crc: int, length: int) -> bytes:
        """The file's end: so many zeros, and what the format wants there. `crc` and `length` (bytes) are of everything
        before."""
        raise NotImplementedError


class _Deflater:
    def __init__(self, level: int):
        self._made = (
            zlib.compressobj(0, zlib.DEFLATED, -15) if level == 0 else _deflate.compressobj(level, zlib.DEFLATED, -15)
        )
        self.compress = self._made.compress

    def end(self) -> bytes:
        # A full flush ends on a byte boundary and forgets what was before: another compressor can go on from there.
        rest: bytes = self._made.flush(zlib.Z_FULL_FLUSH)
        return rest


class _Sparing:
    """Deflates, and stores what that wouldn't make smaller: it takes the longest, 21 ms a megabyte, and gives nothing."""

    def __init__(self, level: int):
        self._level, self._now, self._stores = level, _Deflater(level), False

    def compress(self, data: bytes) -> bytes:
        stores, rest = _dense(data), b""
        if stores != self._stores:
            rest = self.end()
            self._now, self._stores = _Deflater(0 if stores else self._level), stores
        made: bytes = self._now.compress(data)
        return rest + made

    def end(self) -> bytes:
        return self._now.end()


def _dense(data: bytes) -> bool:
    """Whether it looks as if deflating it were of no use; few bytes never do."""
    if len(data) < SAMPLED_FROM_BYTES:
        return False
    starts = range(0, len(data) - SAMPLE_BYTES, len(data) // SAMPLES)
    sample = b"".join(data[at : at + SAMPLE_BYTES] for at in starts)
    return len(zlib.compress(sample, 1)) >= DENSE * len(sample)


class GzipFraming(Framing):
    """One gzip member; level 0 stores."""

    ending, header_at = ".tar.gz", 5

    def __init__(self, level: int = 1):
        self._level = level

    def header(self, header: bytes) -> bytes:
        return b"\0" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF) + header

    def squeezer(self, stored: bool) -> Any:
        return _Deflater(0) if stored or not self._level else _Sparing(self._level)

    def front(self, plain: bytes) -> bytes:
        deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflated.compress(plain) + deflated.flush(zlib.Z_FULL_FLUSH)

    def filled(self, front: bytes, room: int) -> Optional[bytes]:
        slack = room - len(_GZIP_COMMENT) - 1 - len(front)
        return None if slack < 0 else _GZIP_COMMENT + b" " * slack + b"\0" + front

    def unfilled(self, front: bytes) -> bytes:
        return _GZIP_PLAIN + front

    def tail(self, trailer_bytes: int, crc: int, length: int) -> bytes:
        trailer = b"\0" * trailer_bytes
        last = zlib.compressobj(9, zlib.DEFLATED, -15)
        crc, length = zlib.crc32(trailer, crc), length + len(trailer)
        return last.compress(trailer) + last.flush() + struct.pack("<II", crc, length & 0xFFFFFFFF)


class ZstdFraming(Framing):
    """Frames of the `zstd` program. `compress` makes one of a few megabytes, or nothing when it can't."""

    ending, header_at = ".tar.zst", 12

    def __init__(self, compress: Optional[Callable[[bytes], bytes]] = None):
        self._compress = compress or _by_program

    def header(self, header: bytes) -> bytes:
        return _raw_frame(header)

    def squeezer(self, stored: bool) -> Any:
        return _Stored() if stored else _Framed(self._frame)

    def _frame(self, data: bytes) -> bytes:
        return (self._compress(data) if len(data) >= FRAME_LEAST_BYTES else b"") or _raw_frames(data)

    def front(self, plain: bytes) -> bytes:
        return self._frame(plain)

    def filled(self, front: bytes, room: int) -> Optional[bytes]:
        slack = room - len(front) - 8
        return None if slack < 0 else front + _ZSTD_SKIPPABLE + struct.pack("<I", slack) + b"\0" * slack

    def unfilled(self, front: bytes) -> bytes:
        return front + _ZSTD_SKIPPABLE + struct.pack("<I", 0)

    def tail(self, trailer_bytes: int, crc: int, length: int) -> bytes:
        # One block of one repeated byte (RLE): last block 1, type 1, size, the byte.
        return _frame_head(trailer_bytes) + struct.pack("<I", 1 | 1 << 1 | trailer_bytes << 3)[:3] + b"\0"


class _Framed:
    """Collects FRAME_BYTES, then makes a frame of them."""

    def __init__(self, frame: Callable[[bytes], bytes]):
        self._frame, self._waiting = frame, bytearray()

    def compress(self, data: bytes) -> bytes:
        self._waiting += data
        made: List[bytes] = []
        while len(self._waiting) >= FRAME_BYTES:
            piece = bytes(self._waiting[:FRAME_BYTES])
            del self._waiting[:FRAME_BYTES]
            made.append(self._frame(piece))
        return b"".join(made)

    def end(self) -> bytes:
        rest, self._waiting = bytes(self._waiting), bytearray()
        return self._frame(rest) if rest else b""


class _Stored:
    def compress(self, data: bytes) -> bytes:
        return _raw_frames(data)

    def end(self) -> bytes:
        return b""


def _by_program(data: bytes) -> bytes:
    try:
        done = process.run(ZSTD, stdin=data, limit_s=FRAME_LIMIT_S, output_limit_bytes=2 * FRAME_BYTES)
    except (OSError, process.MissingTool):
        return b""  # no more processes or memory, or the program has gone
    whole = done.ok and not done.truncated and done.stdout.startswith(_ZSTD_MAGIC)
    return done.stdout if whole else b""


def _frame_head(length: int) -> bytes:
    """A frame of known length, at most one block's: single segment, four bytes of content size, no checksum."""
    return _ZSTD_MAGIC + b"\xa0" + struct.pack("<I", length)


def _raw_frame(data: bytes) -> bytes:
    return _frame_head(len(data)) + struct.pack("<I", 1 | len(data) << 3)[:3] + data


def _raw_frames(data: bytes) -> bytes:
    return b"".join(_raw_frame(data[at : at + _ZSTD_BLOCK_MOST]) for at in range(0, len(data), _ZSTD_BLOCK_MOST))


def crc32_combine(first: int, second: int, second_length: int) -> int:
    """CRC-32 of two texts in a row, from the CRC of each and the length of the second.

    Appending n zero bytes to a message is a linear map of its CRC over GF(2); the map for n is composed by squaring
    from the one for a single zero bit. The method is that of zlib's crc32_combine. For few bytes zlib itself applies the
    map sooner, as the difference of what they make of two CRCs.
    """
    if second_length <= COUNTED_MOST_BYTES:
        zeros = bytes(second_length)
        return zlib.crc32(zeros, first) ^ zlib.crc32(zeros) ^ second
    # The map of one zero bit, as the images of the 32 unit vectors (reflected polynomial of RFC 1952).
    power = [0xEDB88320] + [1 << bit for bit in range(31)]
    for _ in range(3):
        power = [_apply(power, column) for column in power]  # 2, 4, 8 bits: one byte
    while second_length:
        if second_length & 1:
            first = _apply(power, first)
        second_length >>= 1
        if second_length:
            power = [_apply(power, column) for column in power]
    return first ^ second


def _apply(matrix: List[int], vector: int) -> int:
    image, bit = 0, 0
    while vector:
        if vector & 1:
            image ^= matrix[bit]
        vector >>= 1
        bit += 1
    return image
