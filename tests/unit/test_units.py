"""Durations and sizes: what is written is read back exactly, and what could be misread is refused with the right word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.units import format_duration, format_size, parse_duration, parse_size


@given(st.integers(min_value=0, max_value=400 * 86400 * 1000))
def test_a_duration_is_read_back_as_it_was_written(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)
    assert round(parse_duration(text) * 1000) == milliseconds


@given(
    st.integers(min_value=1, max_value=9999), st.sampled_from(("B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"))
)
def test_a_size_is_read_back_as_it_was_written(count: int, unit: str) -> None:
    size = parse_size(f"{count}{unit}")
    assert size == parse_size(f"{count} {unit}")
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=1 << 50))
def test_every_size_has_a_text_near_it(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(size * 0.01, 0.5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172800), ("1d2h3m4s5ms", 93784.005)],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("90", "did you mean 90s"),
        ("-5s", "negative"),
        ("1:30", "1h30m or 1m30s"),
        ("30s1h", "large to small"),
        ("1m1m", "each once"),
        ("", "not a duration"),
        ("1.5h", "not a duration"),
        ("5 m", "not a duration"),
        ("1h-5m", "not a duration"),
        ("٣s", "not a duration"),
    ],
)
def test_what_could_be_misread_is_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("200", "did you mean 200B, 200kB or 200MB"),
        ("200mb", "did you mean 200MB"),
        ("200M", "did you mean 200MB"),
        ("1.5B", "not a whole number"),
        ("-1MB", "negative"),
        ("ten MB", "not a size"),
        ("1e3MB", "unknown unit|not a size"),
        ("MB", "not a size"),
    ],
)
def test_sizes_that_are_none_are_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_size(text)
