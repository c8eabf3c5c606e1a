"""Host patterns as Ansible's: `web:&eu:!canary`, globs, `~` regular expressions, slices `web[0:2]`. Pure.

A pattern is a list, separated by `,` or `:`; plain parts add, `&` parts intersect, `!` parts take away, whatever their
order. A slice's end is included, as in Ansible. Ranges in host *names*, `db[01:20]`, are written out by `expand_range`.
"""

from __future__ import annotations

import fnmatch
import re
import string
from collections.abc import Iterable

from retina_runner.documents import nearest
from retina_runner.inventory.model import Inventory

_SLICE = re.compile(r"^(.+?)\[(-?\d+)(?::(-?\d*))?\]$|^(.+?)\[:(-?\d+)\]$")
_RANGE = re.compile(r"\[([0-9a-zA-Z]*):([0-9a-zA-Z]+)(?::(\d+))?\]")
MOST_IN_RANGE = 100_000


class NoMatch(Exception):
    """A part of the pattern that means no host and no group; the text has the nearest names."""


def split(pattern: str) -> list[str]:
    """The parts of a pattern. A comma anywhere makes commas the separators; `:` separates but in brackets and IPv6."""
    pattern = pattern.strip()
    if "," in pattern:
        return [p.strip() for p in pattern.split(",") if p.strip()]
    if re.fullmatch(r"[!&]?\[?[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*\]?", pattern):
        return [pattern]  # one IPv6 address
    parts, current, depth = [], "", 0
    for character in pattern:
        depth += (character == "[") - (character == "]")
        if character == ":" and depth <= 0:
            parts.append(current)
            current = ""
        else:
            current += character
    parts.append(current)
    return [p.strip() for p in parts if p.strip()]


def match(inventory: Inventory, pattern: str) -> tuple[str, ...]:
    """The hosts that a pattern means, each once, in the order in which its parts name them.

    Raises NoMatch for a plain part that means nothing at all, ValueError for a bad regular expression.
    """
    parts = split(pattern)
    plain = [p for p in parts if p[0] not in "!&"]
    chosen: dict[str, None] = {}
    for part in plain or ["all"]:
        found = _one(inventory, part)
        if not found and not inventory.members(part) and part not in ("all", "ungrouped", "*"):
            known = [*inventory.names, *(g for g in inventory.groups if g not in ("all", "ungrouped"))]
            raise NoMatch(f"{part!r} means no host and no group; {nearest(part, known) or 'the inventory has none'}")
        chosen.update(dict.fromkeys(found))
    for part in (p[1:] for p in parts if p[0] == "&"):
        among = set(_one(inventory, part))
        chosen = {h: None for h in chosen if h in among}
    for part in (p[1:] for p in parts if p[0] == "!"):
        for host in _one(inventory, part):
            chosen.pop(host, None)
    return tuple(chosen)


def _one(inventory: Inventory, part: str) -> tuple[str, ...]:
    if part.startswith("~"):
        try:
            expression = re.compile(part[1:])
        except re.error as error:
            raise ValueError(f"{part!r} is not a regular expression: {error}") from None
        return _by_name(inventory, lambda name: expression.match(name) is not None)
    if part in inventory.host_settings or part in inventory.groups or part in ("all", "ungrouped", "*"):
        return _named(inventory, part)
    found = _SLICE.match(part)
    if found and not any(c in part.partition("[")[0] for c in "*?"):
        whole = _one(inventory, found[1] or found[4])
        if whole:
            return _sliced(whole, found)
    if any(c in part for c in "*?["):
        return _by_name(inventory, lambda name: fnmatch.fnmatchcase(name, part))
    return ()


def _named(inventory: Inventory, part: str) -> tuple[str, ...]:
    if part == "*":
        return inventory.names
    members = inventory.members(part)
    return (part, *(m for m in members if m != part)) if part in inventory.host_settings else members


def _by_name(inventory: Inventory, wanted: object) -> tuple[str, ...]:
    assert callable(wanted)
    found: dict[str, None] = {}
    for group in inventory.groups:
        if group not in ("all", "ungrouped") and wanted(group):
            found.update(dict.fromkeys(inventory.members(group)))
    found.update({n: None for n in inventory.names if wanted(n)})
    return tuple(found)


def _sliced(hosts: tuple[str, ...], found: re.Match[str]) -> tuple[str, ...]:
    if found[4]:  # [:end]
        return hosts[: _end(int(found[5]), len(hosts))]
    start = int(found[2])
    if found[3] is None:
        return hosts[start : start + 1 or None] if -len(hosts) <= start < len(hosts) else ()
    return hosts[start : _end(int(found[3]), len(hosts)) if found[3] else None]


def _end(last: int, count: int) -> int:
    return (last if last >= 0 else count + last) + 1


def expand_range(text: str) -> list[str]:
    """`db[01:03].example` to three names; `[a:c]`, a step `[0:10:2]`, several ranges. Raises ValueError."""
    found = _RANGE.search(text)
    if not found:
        if "[" in text and not re.fullmatch(r"\[[0-9a-fA-F:.]+\](:\d+)?", text):
            raise ValueError(f"{text!r} isn't a range; write db[01:20] or web[a:f]")
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
        if (int(last) - int(first)) // step > MOST_IN_RANGE:
            raise ValueError(f"{found[0]}: more than {MOST_IN_RANGE} hosts")
        width = len(first) if first.startswith("0") else 0
        values = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1, step))
    else:
        letters = string.ascii_letters
        if len(first) != 1 or len(last) != 1 or first not in letters or last not in letters:
            raise ValueError(f"{found[0]}: letters are single ones, as in [a:f]")
        if letters.index(last) < letters.index(first):
            raise ValueError(f"{found[0]}: the end is before the beginning")
        values = letters[letters.index(first) : letters.index(last) + 1 : step]
    head, tail = text[: found.start()], text[found.end() :]
    return [head + value + rest for value in values for rest in expand_range(tail)]
