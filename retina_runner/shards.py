"""`--shard i/n`: which of n runners a node falls to. By a hash of its name alone, so that shards agree without talking.

Were it by place in the list, two runners whose inventories differ by one host (a cloud that scales meanwhile) would take
some nodes twice and others never. A hash costs evenness: of N nodes a shard gets N/n, give or take a few times its root.
Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from retina_runner.errors import UsageError

MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """The `number`th of `of` shards, from 1."""

    number: int
    of: int

    def holds(self, node: str) -> bool:
        """Whether the node is of this shard. Every node is of exactly one."""
        return shard_of(node, self.of) == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_of(node: str, of: int) -> int:
    """1 to `of`; the same for this name on every machine and in every version (SHA-256, its first 8 bytes, big-endian)."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big") % of + 1


def parse(text: str) -> Shard:
    """`3/10`. Raises UsageError."""
    found = re.fullmatch(r"\s*([0-9]{1,6})\s*/\s*([0-9]{1,6})\s*", text)
    if not found:
        raise UsageError(f"--shard {text}: expected i/n, for example 1/4 to 4/4")
    number, of = int(found[1]), int(found[2])
    if not 1 <= of <= MOST_SHARDS:
        raise UsageError(f"--shard {text}: 1 to {MOST_SHARDS} shards are possible")
    if number == 0:
        raise UsageError(f"--shard {text}: shards count from 1; where an index counts from 0, add 1")
    if number > of:
        raise UsageError(f"--shard {text}: there is no shard {number} of {of}")
    return Shard(number, of)
