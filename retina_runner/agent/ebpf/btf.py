"""This kernel's own types, from /sys/kernel/btf/vmlinux: offsets of members, values of enumerations, arguments of
tracepoints. Documentation/bpf/btf.rst has the format. It takes some 50 MB while it is open: for the child only.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

PATH = "/sys/kernel/btf/vmlinux"
MAGIC = 0xEB9F
PTR, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG, ENUM64 = 2, 4, 5, 6, 8, 9, 10, 11, 18, 19
_TRAILING = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes after the twelve of each type's head: INT, ARRAY, VAR, DECL_TAG; and by number of members: """
_TRAILING_EACH = {STRUCT: 12, UNION: 12, ENUM: 8, 13: 8, 15: 12, ENUM64: 12}
_MODIFIERS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_HEAD = struct.Struct("<III")


class Types:
    """Raises OSError when there is no BTF, ValueError for what isn't BTF."""

    def __init__(self, path: str = PATH):
        with open(path, "rb") as file:
            data = file.read()
        magic, _, _, head, types_at, types_len, text_at, text_len = struct.unpack_from("<HBBIIIII", data)
        if magic != MAGIC:
            raise ValueError(f"{path} isn't BTF")
        self._types = data[head + types_at : head + types_at + types_len]
        self._text = data[head + text_at : head + text_at + text_len]
        self._at: List[int] = [0]
        self._named: Dict[int, List[int]] = {}
        at, end = 0, len(self._types)
        while at < end:
            name, info, _ = _HEAD.unpack_from(self._types, at)
            kind = info >> 24 & 0x1F
            if name:
                self._named.setdefault(name, []).append(len(self._at))
            self._at.append(at)
            at += 12 + _TRAILING.get(kind, 0) + _TRAILING_EACH.get(kind, 0) * (info & 0xFFFF)

    def _find(self, name: str, kinds: Sequence[int]) -> int:
        """Raises KeyError."""
        # The names are deduplicated: each stands once, behind the NUL of the one before it.
        at = self._text.find(b"\0" + name.encode() + b"\0")
        for number in self._named.get(at + 1, ()) if at >= 0 else ():
            if self._kind(number) in kinds:
                return number
        raise KeyError(name)

    def _head(self, number: int) -> Tuple[int, int, int]:
        name, info, size = _HEAD.unpack_from(self._types, self._at[number])
        return name, info, size

    def _kind(self, number: int) -> int:
        return self._head(number)[1] >> 24 & 0x1F if number else 0

    def _bare(self, number: int) -> int:
        while number and self._kind(number) in _MODIFIERS:
            number = self._head(number)[2]
        return number

    def _string(self, at: int) -> str:
        return self._text[at : self._text.index(b"\0", at)].decode("ascii", "replace")

    def _members(self, number: int) -> Iterator[Tuple[str, int, int]]:
        """(name, type, offset in bits)."""
        _, info, _ = self._head(number)
        for n in range(info & 0xFFFF):
            name, kind, offset = _HEAD.unpack_from(self._types, self._at[number] + 12 + 12 * n)
            yield self._string(name) if name else "", kind, offset & 0xFFFFFF if info >> 31 else offset

    def _member(self, number: int, wanted: str) -> Optional[Tuple[int, int]]:
        for name, kind, offset in self._members(number):
            if name == wanted:
                return kind, offset
            if not name:  # an anonymous struct or union
                inner = self._member(self._bare(kind), wanted)
                if inner is not None:
                    return inner[0], offset + inner[1]
        return None

    def offset(self, structure: str, path: str) -> int:
        """Byte offset of a dotted member. Raises KeyError."""
        number, bits = self._find(structure, (STRUCT, UNION)), 0
        for part in path.split("."):
            found = self._member(self._bare(number), part)
            if found is None:
                raise KeyError(f"{structure}.{path}")
            number, bits = found[0], bits + found[1]
        return bits // 8

    def enumeration(self, name: str) -> Dict[int, str]:
        """Value to name; the first of two names for one value. Raises KeyError."""
        number = self._find(name, (ENUM, ENUM64))
        _, info, _ = self._head(number)
        at = self._at[number] + 12
        found: Dict[int, str] = {}
        wide = self._kind(number) == ENUM64
        for n in range(info & 0xFFFF):
            label, value = struct.unpack_from("<Ii", self._types, at + (12 if wide else 8) * n)
            found.setdefault(value, self._string(label))
        return found

    def tracepoint_arguments(self, name: str) -> Optional[int]:
        """How many arguments a raw tracepoint has; None when this kernel has no such tracepoint.

        `typedef void (*btf_trace_<name>)(void *, …)`, include/trace/bpf_probe.h.
        """
        try:
            number = self._head(self._find(f"btf_trace_{name}", (TYPEDEF,)))[2]
        except KeyError:
            return None
        if self._kind(number) == PTR:
            number = self._head(number)[2]
        return (self._head(number)[1] & 0xFFFF) - 1
