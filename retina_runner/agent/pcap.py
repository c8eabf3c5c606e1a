"""Classic pcap files while they grow, and afterwards: cut to a window by time stamp, counted, read to the last packet.

Format: the pcap savefile of libpcap, pcap-savefile(5): a 24-byte header, then records of 16 bytes and the packet.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Iterator, List, Optional, Sequence, Tuple, Union

from retina_runner.agent.records import dataclass

HEADER_BYTES, RECORD_BYTES = 24, 16
LARGEST_PACKET_BYTES = 1 << 20
"""libpcap's MAXIMUM_SNAPLEN is 262144, and 1 MiB for a few link types; a longer record means a broken file."""
_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_READ_BYTES = 1 << 20

Intervals = Tuple[Tuple[int, int], ...]


class NotPcap(Exception):
    """The first bytes aren't a pcap header."""


class Cutter:
    """Passes on the records whose stamps lie in one of `intervals`: half-open, Unix nanoseconds; replaceable meanwhile.

    Feed it a growing file in any pieces; what comes out is a pcap again, header first. With `limit_bytes` it is `full`
    before the output would grow beyond, and passes nothing more. `broken` is the offset of a record that can't be one.
    """

    def __init__(self, intervals: Intervals, limit_bytes: Optional[int] = None):
        self.intervals = intervals
        self._limit_bytes = limit_bytes
        self._rest = b""
        self._offset = 0
        self._endian, self._unit_ns = "", 0
        self.packets_kept = self.packets_before = self.packets_after = 0
        self.bytes_kept = 0
        self.first_ns: Optional[int] = None
        self.last_ns: Optional[int] = None
        self.full = False
        self.broken: Optional[int] = None

    @property
    def packets_in(self) -> int:
        return self.packets_kept + self.packets_before + self.packets_after

    @property
    def leftover_bytes(self) -> int:
        """Bytes of a record that hasn't come whole; at the end of a file they are a truncation."""
        return len(self._rest)

    def feed(self, data: bytes) -> List[bytes]:
        """The output that this piece gives: bytes, in order. Raises NotPcap."""
        if self.broken is not None or self.full:
            return []
        buffer = self._rest + data if self._rest else data
        pieces: List[bytes] = []
        start = 0
        if not self._endian:
            if len(buffer) < HEADER_BYTES:
                self._rest = buffer
                return []
            self._endian, self._unit_ns = _parse_magic(buffer)
            pieces.append(buffer[:HEADER_BYTES])
            self.bytes_kept = start = HEADER_BYTES
        end = self._cut(buffer, start, pieces)
        self._offset += end
        self._rest = buffer[end:]
        return pieces

    def _cut(self, buffer: bytes, at: int, pieces: List[bytes]) -> int:
        """Walk the whole records from `at` on; returns where the first incomplete one begins."""
        unpack = struct.Struct(self._endian + "IIII").unpack_from
        length, limit = len(buffer), self._limit_bytes
        # Whole seconds that surely lie inside: for nearly every packet one comparison of its seconds decides.
        inside_from, inside_to = self._whole_seconds()
        run, kept, stamped = at, 0, 0
        first = -1
        last_kept = at
        while at + RECORD_BYTES <= length:
            seconds, fraction, captured, _ = unpack(buffer, at)
            following = at + RECORD_BYTES + captured
            if captured > LARGEST_PACKET_BYTES:
                self.broken = self._offset + at
                break
            if following > length:
                break
            if inside_from <= seconds < inside_to or self._inside(seconds * 1_000_000_000 + fraction * self._unit_ns):
                if limit is not None and self.bytes_kept + (following - run) > limit:
                    self.full = True
                    break
                kept += 1
                stamped = seconds * 1_000_000_000 + fraction * self._unit_ns
                if first < 0:
                    first = stamped
                last_kept = following
            else:
                if last_kept > run:
                    pieces.append(buffer[run:last_kept])
                    self.bytes_kept += last_kept - run
                run = last_kept = following
            at = following
        if last_kept > run:
            pieces.append(buffer[run:last_kept])
            self.bytes_kept += last_kept - run
        if kept:
            self.packets_kept += kept
            self.first_ns = first if self.first_ns is None else self.first_ns
            self.last_ns = stamped
        return at

    def _whole_seconds(self) -> Tuple[int, int]:
        if len(self.intervals) != 1:
            return 0, 0
        start, end = self.intervals[0]
        return -(-start // 1_000_000_000), end // 1_000_000_000

    def _inside(self, stamp: int) -> bool:
        for start, end in self.intervals:
            if start <= stamp < end:
                return True
        if self.intervals and stamp < self.intervals[0][0]:
            self.packets_before += 1
        else:
            self.packets_after += 1
        return False


def _parse_magic(header: bytes) -> Tuple[str, int]:
    """(struct's byte order, nanoseconds in a unit of the stamps' fraction)."""
    try:
        return _MAGICS[header[:4]]
    except KeyError:
        raise NotPcap(f"not a pcap file: it begins with {header[:4].hex() or 'nothing'}") from None


@dataclass(frozen=True)
class PcapFacts:
    """A pcap read to its end. `complete` is False with the reason in `why`; then the counts are of what can be read."""

    packets: int
    size_bytes: int
    linktype: int
    snaplen: int
    first_ns: Optional[int]
    last_ns: Optional[int]
    complete: bool
    why: str = ""


def inspect(source: Union[Path, BinaryIO, Iterator[bytes]]) -> PcapFacts:
    """Read a pcap to its last packet, in constant memory. Never raises for what is in the file; OSError for the disk."""
    if isinstance(source, Path):
        with open(str(source), "rb", buffering=0) as file:
            return _inspect(_pieces(file))
    if hasattr(source, "read"):
        return _inspect(_pieces(source))  # type: ignore[arg-type]  # mypy doesn't narrow a Union by hasattr
    return _inspect(source)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while True:
        chunk = file.read(_READ_BYTES)
        if not chunk:
            return
        yield chunk


def _inspect(pieces: Iterator[bytes]) -> PcapFacts:
    cutter = Cutter(((0, 1 << 62),))
    size, header, why = 0, b"", ""
    for piece in pieces:
        size += len(piece)
        if len(header) < HEADER_BYTES:
            header = (header + piece)[:HEADER_BYTES]
        if not why:
            try:
                cutter.feed(piece)
            except NotPcap as error:
                why = str(error)
    linktype = snaplen = 0
    if not why and len(header) == HEADER_BYTES:
        snaplen, linktype = struct.unpack_from(_parse_magic(header)[0] + "II", header, 16)
    if not why and len(header) < HEADER_BYTES:
        why = f"its header is cut off after {size} bytes" if size else "the file is empty"
    if not why and cutter.broken is not None:
        why = f"the record at byte {cutter.broken} can't be one"
    if not why and cutter.leftover_bytes:
        why = f"the last record is cut off: {cutter.leftover_bytes} bytes after packet {cutter.packets_in}"
    return PcapFacts(cutter.packets_in, size, linktype & 0xFFFF, snaplen, cutter.first_ns, cutter.last_ns, not why, why)


def header(linktype: int = 1, snaplen: int = 262144) -> bytes:
    """A little-endian microsecond header: an empty pcap, for one whose tcpdump wrote none."""
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen, linktype)


def record(stamp_ns: int, packet: bytes, wire_bytes: Optional[int] = None) -> bytes:
    """One little-endian microsecond record."""
    seconds, fraction = divmod(stamp_ns, 1_000_000_000)
    return struct.pack("<IIII", seconds, fraction // 1000, len(packet), wire_bytes or len(packet)) + packet


def packets(source: bytes) -> Sequence[Tuple[int, bytes]]:
    """(stamp in Unix nanoseconds, packet) of each whole record; for small files."""
    endian, unit = _parse_magic(source)
    found, at = [], HEADER_BYTES
    while at + RECORD_BYTES <= len(source):
        seconds, fraction, captured, _ = struct.unpack_from(endian + "IIII", source, at)
        found.append(
            (seconds * 1_000_000_000 + fraction * unit, source[at + RECORD_BYTES : at + RECORD_BYTES + captured])
        )
        at += RECORD_BYTES + captured
    return found
