"""CPUs that go or come while something is counted by CPU: the kernel drops what it had for one that goes.

BPF's own maps keep their values for every CPU that can ever be there; the rows of /proc by CPU don't.
"""

from __future__ import annotations

from typing import FrozenSet, Set

ONLINE = "/sys/devices/system/cpu/online"


class Cpus:
    """Looks at the mask of CPUs that are online. One that goes and comes back between two looks isn't seen."""

    def __init__(self, path: str = ONLINE):
        self._path = path
        self.zero()

    def zero(self) -> None:
        """Count changes from now on."""
        self.changed = 0
        """How many CPUs went or came."""
        self._known = self._now()

    def look(self) -> int:
        """`changed`, with what has changed since the last look."""
        now = self._now()
        self.changed += len(now ^ self._known)
        self._known = now
        return self.changed

    def _now(self) -> FrozenSet[int]:
        """Empty where the kernel has no such file (one without SMP)."""
        try:
            with open(self._path, encoding="ascii") as file:
                return parse(file.read())
        except OSError:
            return frozenset()


def parse(mask: str) -> FrozenSet[int]:
    """`0-3,6` as numbers: Documentation/admin-guide/cputopology.rst. Raises ValueError."""
    found: Set[int] = set()
    for part in filter(None, mask.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
