"""Cron expressions, read once and written for each scheduler so that all of them mean the same instants.

Fields as in crontab(5). What the schedulers disagree on is refused: `5/15` (cron: an error, Kubernetes: 5-59/15), and a
stepped star beside a restricted day (cron: both must match, Kubernetes: either).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS_OF = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_PART = re.compile(r"(\*|[0-9a-z]+)(?:-([0-9a-z]+))?(?:/(\d+))?\Z")


@dataclass(frozen=True)
class Cron:
    """When. `days` (of the month) and `weekdays` (0 is Sunday) are None for every day; with both, either matches."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...]
    weekdays: tuple[int, ...] | None

    def matches(self, when: datetime.datetime) -> bool:
        """Whether it fires in that minute."""
        if (
            when.minute not in self.minutes
            or when.hour not in self.hours
            or when.month not in self.months
            or (self.days is None and self.weekdays is None)
        ):
            return when.minute in self.minutes and when.hour in self.hours and when.month in self.months
        by_day = self.days is not None and when.day in self.days
        return by_day or (self.weekdays is not None and when.isoweekday() % 7 in self.weekdays)

    @property
    def text(self) -> str:
        """The expression in numbers, as every cron reads it."""
        return " ".join(
            (
                _written(self.minutes, 60, 0),
                _written(self.hours, 24, 0),
                "*" if self.days is None else _listed(self.days),
                _written(self.months, 12, 1),
                "*" if self.weekdays is None else _listed(self.weekdays),
            )
        )

    def on_calendar(self, timezone: str) -> tuple[str, ...]:
        """systemd.time(7) calendar events; two where cron takes either day, since systemd takes both only together."""
        months = _padded(self.months, 12)
        clock = f"{_padded(self.hours, 24)}:{_padded(self.minutes, 60)}:00 {timezone}"
        found = []
        if self.days is not None or self.weekdays is None:
            found.append(f"*-{months}-{'*' if self.days is None else _padded(self.days, 31)} {clock}")
        if self.weekdays is not None:
            names = ",".join(WEEKDAYS[d].capitalize() for d in self.weekdays)
            found.append(f"{names} *-{months}-* {clock}")
        return tuple(found)


def parse_cron(text: str) -> Cron:
    """Read an expression of five fields, or one of the names with `@`. Raises ValueError."""
    words = ALIASES.get(text.strip().lower(), text).lower().split()
    if words and words[0].startswith("@"):
        raise ValueError(f"{text!r} is no time that all schedulers know; the names are {', '.join(ALIASES)}")
    if len(words) != 5:
        raise ValueError(
            f"{text!r} has {len(words)} fields; write five: minute hour day month weekday, as in */30 * * * *"
        )
    minutes = _field(words[0], "minute", 0, 59)
    hours = _field(words[1], "hour", 0, 23)
    days = None if words[2] == "*" else _field(words[2], "day", 1, 31)
    months = _field(words[3], "month", 1, 12, MONTHS)
    weekdays = None if words[4] == "*" else _field(words[4], "weekday", 0, 7, WEEKDAYS)
    if days is not None and weekdays is not None:
        for word in (words[2], words[4]):
            if word.startswith("*"):
                raise ValueError(
                    f"{text!r}: {word} beside another restricted day means one thing to cron and another to "
                    "Kubernetes; write its values out"
                )
    if weekdays is not None:
        weekdays = tuple(sorted({d % 7 for d in weekdays}))
    if (weekdays is not None and len(weekdays) == 7) or (days is not None and len(days) == 31):
        # Every day. With another restriction either would do, so it restricts nothing.
        days, weekdays = (None, None)
    if days is not None and weekdays is None and not any(days[0] <= DAYS_OF[m - 1] for m in months):
        raise ValueError(f"{text!r} never comes: none of its months has a day {days[0]}")
    return Cron(minutes, hours, days, months, weekdays)


def _field(text: str, what: str, low: int, high: int, names: tuple[str, ...] = ()) -> tuple[int, ...]:
    values: set[int] = set()
    for part in text.split(","):
        found = _PART.match(part)
        if not found or (found[1] == "*" and found[2]):
            raise ValueError(f"{what} {part!r}: write a number, 1-5, */15, or several with commas")
        step = int(found[3] or 1)
        if not 1 <= step <= high:
            raise ValueError(f"{what} {part!r}: a step is from 1 to {high}")
        if found[1] == "*":
            first, last = low, high if what != "weekday" else 6
        else:
            first = _value(found[1], what, low, high, names)
            last = _value(found[2], what, low, high, names) if found[2] else first
            if found[3] and not found[2]:
                raise ValueError(f"{what} {part!r}: a step needs a range, as in {first}-{high}/{step}")
            if last < first:
                raise ValueError(f"{what} {part!r}: the range ends before it begins")
        values.update(range(first, last + 1, step))
    return tuple(sorted(values))


def _value(text: str, what: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + (1 if what == "month" else 0)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"{what} {text!r}: from {low} to {high}" + (f", or {names[0]} … {names[-1]}" if names else ""))
    return int(text)


def _runs(values: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    first = last = values[0]
    for value in values[1:]:
        if value != last + 1:
            yield first, last
            first = value
        last = value
    yield first, last


def _listed(values: tuple[int, ...]) -> str:
    """The shortest list of values and ranges."""
    return ",".join(f"{a}-{b}" if b > a + 1 else f"{a},{b}" if b > a else str(a) for a, b in _runs(values))


def _written(values: tuple[int, ...], count: int, low: int) -> str:
    if len(values) == count:
        return "*"
    if len(values) > 1 and values[0] == low:
        step = values[1] - values[0]
        if values == tuple(range(low, low + count, step)):
            return f"*/{step}"
    return _listed(values)


def _padded(values: tuple[int, ...], count: int) -> str:
    return "*" if len(values) == count else ",".join(f"{v:02d}" for v in values)
