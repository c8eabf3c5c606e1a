"""Which kernel function an address lies in, by /proc/kallsyms; read once for each batch of addresses that are new."""

from __future__ import annotations

import bisect
from typing import Dict, Iterable


class Symbols:
    """`name` answers an empty text where the kernel hides its addresses (kptr_restrict)."""

    def __init__(self, path: str = "/proc/kallsyms"):
        self._path = path
        self._known: Dict[int, str] = {}

    def learn(self, addresses: Iterable[int]) -> None:
        """Look these up, all at once. Raises nothing."""
        new = sorted(set(addresses) - set(self._known))
        if not new:
            return
        best = [0] * len(new)
        names = [""] * len(new)
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                for line in file:
                    words = line.split(None, 3)
                    if len(words) < 3 or words[1] not in "tTwW":
                        continue
                    start = int(words[0], 16)
                    at = bisect.bisect_left(new, start)
                    # Every address from here on may be in this function, until one that starts later is found.
                    while start and at < len(new) and start > best[at]:
                        best[at], names[at] = start, words[2]
                        at += 1
        except OSError:
            pass
        self._known.update(zip(new, names))

    def name(self, address: int) -> str:
        return self._known.get(address, "")
