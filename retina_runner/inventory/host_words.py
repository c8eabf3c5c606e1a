"""A host as one word of an inventory: `[user@]name[:port]`, IPv6 in brackets, ranges written out. Pure."""

from __future__ import annotations

import re

from retina_runner.inventory import ranges

_BRACKETED = re.compile(r"\[([0-9a-fA-F:.%\w]*:[0-9a-fA-F:.%\w]*)\](?::(\d+))?")
_PORT = re.compile(r"(.+):(\d+)")


def split_port(word: str) -> tuple[str, int | None]:
    """`(host, port)` of `host:22`, `[2001:db8::1]:22`; a bare IPv6 address has no port. Raises ValueError."""
    found = _BRACKETED.fullmatch(word)
    if found and not ranges.has_range(word):
        return found[1], port_number(found[2]) if found[2] else None
    outside = re.sub(r"\[[^\]]*\]", "", word)
    if outside.count(":") == 1:
        found = _PORT.fullmatch(word)
        if not found:
            raise ValueError(f"{word!r}: the port after : is missing or is no number")
        return found[1], port_number(found[2])
    return word, None


def read(word: str) -> tuple[list[str], int | None]:
    """The names that a word of an inventory stands for, and their port. Raises ValueError."""
    name, port = split_port(word)
    if not name or name != name.strip() or "---" in name[:3]:
        raise ValueError(f"{word!r} is no host")
    names = ranges.expand(name)
    if "[" in names[0] or "]" in names[0]:
        raise ValueError(f"{word!r} is no host; a range is written [1:3]")
    return names, port


def port_number(text: str) -> int:
    """Raises ValueError for what is none, 1 to 65535."""
    if not 0 < int(text) < 65536:
        raise ValueError(f"{text} is no port: 1 to 65535")
    return int(text)


def port_or(text: str) -> int:
    """The port, or ssh's own for what is none."""
    return port_number(text) if text.isdigit() and 0 < int(text) < 65536 else 22
