"""Values as YAML that reads the same in versions 1.1 and 1.2, with comments: for runbooks that the runner writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(
    r"[A-Za-z_/.][A-Za-z0-9_./%@+-]*(?: [A-Za-z0-9_./%@+()-]+)*\Z|[0-9]+(?:ms|s|m|h|d|B|[kMG]B|[KMG]iB)\Z"
)
_NOT_TEXT = re.compile(r"(?i)(?:y|n|yes|no|on|off|true|false|null|\.inf|\.nan|\.[0-9].*)\Z")


def scalar(value: Any) -> str:
    """One value on one line; text is quoted wherever some reader could take it for something else."""
    if isinstance(value, str) and _PLAIN.match(value) and not _NOT_TEXT.match(value):
        return value
    return "".join(c if c.isprintable() else _escaped(c) for c in json.dumps(value, ensure_ascii=False))


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def lines(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A mapping as lines; short lists of single values stay on one."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield f"{indent}{scalar(key)}:"
            yield from lines(inner, indent + "  ")
        elif isinstance(inner, Sequence) and not isinstance(inner, str) and any(isinstance(i, Mapping) for i in inner):
            yield f"{indent}{scalar(key)}:"
            for item in inner:
                yield from _item(item, indent + "  ")
        elif isinstance(inner, Sequence) and not isinstance(inner, str):
            yield f"{indent}{scalar(key)}: [{', '.join(_inside(i) for i in inner)}]"
        else:
            yield f"{indent}{scalar(key)}: {scalar(inner) if inner != {} else '{}'}"


def _inside(value: Any) -> str:
    text = scalar(value)
    return json.dumps(value) if isinstance(value, str) and " " in text and text == value else text


def _item(item: Any, indent: str) -> Iterator[str]:
    if not isinstance(item, Mapping):
        yield f"{indent}- {scalar(item)}"
        return
    for number, line in enumerate(lines(item, indent + "  ")):
        yield f"{indent}- {line[len(indent) + 2 :]}" if number == 0 else line
