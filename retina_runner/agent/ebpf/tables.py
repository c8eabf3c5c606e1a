"""Maps as numbers since zero: per-CPU values are added up, what they were at zero is taken off."""

from __future__ import annotations

import struct
from typing import Dict, Tuple

from retina_runner.agent.ebpf.syscalls import ARRAYS, Map
from retina_runner.agent.metrics.model import Labels, Number

Numbers = Tuple[int, ...]


class Table:
    """A map whose values only grow: every field of `layout` (struct's format) is a counter."""

    def __init__(self, table: Map, layout: str):
        self._map, self._layout = table, struct.Struct(layout)
        self._base: Dict[bytes, Numbers] = {}

    def _now(self) -> Dict[bytes, Numbers]:
        found = {}
        for key, copies in self._map.items():
            rows = [self._layout.unpack_from(copy) for copy in copies]
            found[key] = tuple(sum(column) for column in zip(*rows))
        return found

    def zero(self) -> None:
        self._base = self._now()

    def since(self) -> Dict[bytes, Numbers]:
        """Key to what was counted; keys that counted nothing are left out."""
        found = {}
        for key, now in self._now().items():
            base = self._base.get(key, (0,) * len(now))
            change = tuple(after - before for after, before in zip(now, base))
            if any(change):
                found[key] = change
        return found


class Flows:
    """A bounded map of many keys, which forgets the least used: emptied at zero, so that what is there is new."""

    def __init__(self, table: Map, layout: str):
        assert table.shape.type not in ARRAYS
        self._map, self._layout = table, struct.Struct(layout)

    def zero(self) -> None:
        self._map.clear()

    def since(self) -> Dict[bytes, Numbers]:
        return {key: self._layout.unpack_from(copies[0]) for key, copies in self._map.items()}

    def __len__(self) -> int:
        return sum(1 for _ in dict.fromkeys(self._map.keys()))


class Sums:
    """Samples that are added up: several keys of a map can be one sample."""

    def __init__(self) -> None:
        self.found: Dict[Tuple[str, Labels], Number] = {}

    def add(self, metric: str, labels: Labels, value: Number) -> None:
        key = (metric, labels)
        self.found[key] = self.found.get(key, 0) + value

    def histogram(self, metric: str, labels: Labels, slots: Dict[int, Numbers]) -> None:
        """Slots of powers of two in microseconds, each with (how many, their sum), as a histogram in seconds.

        Slot n holds what is less than 2^n (bpf_log2l of BCC).
        """
        total = 0
        for slot in range(max(slots, default=0) + 1):
            total += slots.get(slot, (0,))[0]
            if slot in slots or slot + 1 in slots:
                self.add(f"{metric}_bucket", (*labels, ("le", repr(2**slot / 1e6))), total)
        self.add(f"{metric}_bucket", (*labels, ("le", "+Inf")), total)
        self.add(f"{metric}_sum", labels, sum(s[1] for s in slots.values()) / 1e6)
        self.add(f"{metric}_count", labels, total)
