"""The cut: exactly the records whose stamps lie in the window, however the file arrives, and no file breaks the reader."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent.pcap import Cutter, NotPcap, header, inspect, packets, record

SECOND = 1_000_000_000
stamps = st.lists(st.integers(min_value=0, max_value=20 * SECOND).map(lambda s: s // 1000 * 1000), max_size=40)


def pcap(at: list[int]) -> bytes:
    return header() + b"".join(record(s, struct.pack(">I", n) * (1 + n % 5)) for n, s in enumerate(at))


@given(
    stamps, st.integers(min_value=0, max_value=20 * SECOND), st.integers(min_value=0, max_value=9 * SECOND), st.data()
)
def test_the_cut_is_what_lies_in_the_window_in_any_pieces(
    at: list[int], start: int, length: int, data: st.DataObject
) -> None:
    whole = pcap(at)
    cutter = Cutter(((start, start + length),))
    out, position = b"", 0
    while position < len(whole):
        size = data.draw(st.integers(min_value=1, max_value=max(1, len(whole) - position)))
        out += b"".join(cutter.feed(whole[position : position + size]))
        position += size
    expected = [p for p in packets(whole) if start <= p[0] < start + length]
    assert list(packets(out)) == expected
    assert cutter.packets_kept == len(expected)
    assert cutter.packets_in == len(at)
    assert cutter.leftover_bytes == 0


@given(stamps, st.integers(min_value=24, max_value=2000))
def test_a_limit_is_never_crossed_and_what_is_kept_is_whole(at: list[int], limit: int) -> None:
    cutter = Cutter(((0, 100 * SECOND),), limit)
    out = b"".join(cutter.feed(pcap(at)))
    assert len(out) <= limit
    assert inspect(io.BytesIO(out)).complete
    assert cutter.full == (len(out) < len(pcap(at)))


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    facts = inspect(io.BytesIO(content))
    assert facts.complete or facts.why
    facts = inspect(io.BytesIO(header() + content))
    assert facts.complete or facts.why


@given(stamps.filter(bool), st.integers(min_value=1, max_value=15))
def test_a_cut_off_record_is_told(at: list[int], missing: int) -> None:
    facts = inspect(io.BytesIO(pcap(at)[:-missing]))
    assert not facts.complete
    assert "cut off" in facts.why


@pytest.mark.parametrize(
    ("magic", "order", "unit"),
    [(0xA1B2C3D4, "<", 1000), (0xA1B2C3D4, ">", 1000), (0xA1B23C4D, "<", 1), (0xA1B23C4D, ">", 1)],
)
def test_both_byte_orders_and_both_resolutions_are_read(magic: int, order: str, unit: int) -> None:
    whole = (
        struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 96, 276) + struct.pack(order + "IIII", 5, 7, 2, 60) + b"ab"
    )
    facts = inspect(io.BytesIO(whole))
    assert (facts.packets, facts.linktype, facts.snaplen, facts.first_ns) == (1, 276, 96, 5 * SECOND + 7 * unit)


def test_another_file_is_not_a_pcap() -> None:
    with pytest.raises(NotPcap, match="0a0d0d0a"):
        Cutter(((0, 1),)).feed(b"\x0a\x0d\x0d\x0a" + b"\0" * 40)
