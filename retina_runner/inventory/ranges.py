"""Ranges in host names, `db[01:20].example`, written out as Ansible writes them. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

MOST_HOSTS = 100_000
_RANGE = re.compile(r"\[([0-9a-zA-Z]*):([0-9a-zA-Z]+)(?::(\d+))?\]")


def has_range(text: str) -> bool:
    """Whether a host's name stands for several."""
    return _RANGE.search(text) is not None and ":" in text


def expand(text: str) -> list[str]:
    """`db[01:03]` to db01, db02, db03; letters `[a:c]`, a step `[0:10:2]`, several ranges in one name.

    Raises ValueError, with the reason, for a range that isn't one, or for more than 100,000 hosts.
    """
    found = _RANGE.search(text)
    if not found:
        return [text]
    first, last, step = found[1] or "0", found[2], int(found[3] or 1)
    values: Iterable[str]
    if step < 1:
        raise ValueError(f"{found[0]}: the step must be at least 1")
    if first.isdigit() and last.isdigit():
        if len(first) > 1 and first.startswith("0") and len(first) != len(last):
            raise ValueError(f"{found[0]}: both ends need the same number of digits")
        if int(last) < int(first):
            raise ValueError(f"{found[0]}: the end is before the beginning")
        if (int(last) - int(first)) // step >= MOST_HOSTS:
            raise ValueError(f"{found[0]}: more than {MOST_HOSTS} hosts")
        width = len(first) if len(first) > 1 and first.startswith("0") else 0
        values = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1, step)]
    else:
        letters = string.ascii_letters
        if len(first) != 1 or len(last) != 1 or first not in letters or last not in letters:
            raise ValueError(f"{found[0]}: letters are single ones, as in [a:f]")
        if letters.index(last) < letters.index(first):
            raise ValueError(f"{found[0]}: the end is before the beginning")
        values = letters[letters.index(first) : letters.index(last) + 1 : step]
    tails = expand(text[found.end() :])
    if len(list(values)) * len(tails) > MOST_HOSTS:
        raise ValueError(f"{text}: more than {MOST_HOSTS} hosts")
    head = text[: found.start()]
    return [head + value + tail for value in values for tail in tails]
