"""Durations and sizes as people write them: `90s`, `1h30m`, `200MB`, `1GiB`. A number without a unit is nobody's guess."""

from __future__ import annotations

import re

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {
    "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip
_DURATION = re.compile(r"(?:\d+(?:ms|s|m|h|d))+\Z", re.ASCII)
_DURATION_PART = re.compile(r"(\d+)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d{1,3})?) ?([A-Za-z]+)\Z", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds. Units from large to small, each once: `1h30m`, `90s`, `500ms`, `2d`. Raises ValueError."""
    text = text.strip()
    if not _DURATION.match(text):
        raise ValueError(_duration_advice(text))
    parts = _DURATION_PART.findall(text)
    order = [list(_DURATION_UNITS)[::-1].index(unit) for _, unit in parts]
    if order != sorted(set(order)):
        raise ValueError(f"{text!r}: write the units from large to small, each once, as in 1h30m")
    return sum(int(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _duration_advice(text: str) -> str:
    if re.fullmatch(r"\d+", text):
        return f"{text!r} has no unit; did you mean {text}s?"
    if text.startswith("-"):
        return f"{text!r} is negative; a duration is like 90s, 5m or 1h30m"
    clock = re.fullmatch(r"(\d+):(\d\d)", text)
    if clock:
        return f"{text!r} could be hours or minutes; write {clock[1]}h{int(clock[2])}m or {clock[1]}m{int(clock[2])}s"
    return f"{text!r} is not a duration; write 90s, 5m or 1h30m"


def parse_size(text: str) -> int:
    """Bytes. kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024. Raises ValueError."""
    text = text.strip()
    found = _SIZE.match(text)
    if found and found[2] in _SIZE_UNITS:
        whole, _, fraction = found[1].partition(".")
        size: int
        size, rest = divmod(int(whole + fraction) * _SIZE_UNITS[found[2]], 10 ** len(fraction))
        if rest:
            raise ValueError(f"{text!r} is not a whole number of bytes")
        return size
    if re.fullmatch(r"\d+", text):
        raise ValueError(f"{text!r} has no unit; did you mean {text}B, {text}kB or {text}MB?")
    if text.startswith("-"):
        raise ValueError(f"{text!r} is negative; a size is like 96B, 200MB or 1GiB")
    if found:
        near = [u for u in _SIZE_UNITS if u.lower() == found[2].lower() or u.lower() == found[2].lower() + "b"]
        advice = f"did you mean {found[1]}{near[0]}?" if near else "units are " + ", ".join(_SIZE_UNITS)
        raise ValueError(f"{text!r} has an unknown unit; {advice}")
    raise ValueError(f"{text!r} is not a size; write 96B, 200MB or 1GiB")


def format_duration(seconds: float) -> str:
    """The shortest exact text for whole milliseconds; `parse_duration` reads it back. `0s` for nothing."""
    left = round(seconds * 1000)
    text = ""
    for unit in ("d", "h", "m", "s", "ms"):
        step = round(_DURATION_UNITS[unit] * 1000)
        if unit == "d" and left % step:  # 36h reads better than 1d12h
            continue
        count, left = divmod(left, step)
        if count:
            text += f"{count}{unit}"
    return text or "0s"


def format_size(size_bytes: int) -> str:
    """The shortest exact text where there is one of up to four digits, else about three digits: `200MB`, `1GiB`, `1.23GB`."""
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB", "B"):
        count, rest = divmod(size_bytes, _SIZE_UNITS[unit])
        if not rest and 0 < count < 10000:
            return f"{count}{unit}"
    for unit in ("TB", "GB", "MB", "kB"):
        if size_bytes >= _SIZE_UNITS[unit]:
            return (
                f"{size_bytes / _SIZE_UNITS[unit]:.3g}{unit}"
                if size_bytes < 999.5 * _SIZE_UNITS[unit]
                else f"{size_bytes // _SIZE_UNITS[unit]}{unit}"
            )
    return f"{size_bytes}B"
