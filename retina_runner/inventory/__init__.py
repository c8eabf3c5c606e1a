"""Inventories: which hosts there are, which of them a pattern means, and how each is reached."""

from __future__ import annotations

from collections.abc import Sequence

from retina_runner.errors import DocumentError, Problem, UsageError
from retina_runner.inventory.connection import Connection
from retina_runner.inventory.model import Host, Inventory
from retina_runner.inventory.patterns import NoMatch, match
from retina_runner.inventory.reach import connection
from retina_runner.inventory.sources import read


def select(inventory: Inventory, pattern: str) -> tuple[Host, ...]:
    """The hosts that a pattern means. Raises UsageError, with the nearest names, when it means none."""
    try:
        names = match(inventory, pattern)
    except (NoMatch, ValueError) as error:
        raise UsageError(f"hosts {pattern!r}: {error}") from None
    if not names:
        raise UsageError(
            f"hosts {pattern!r}: no host is left of {len(inventory.names)} in {', '.join(inventory.sources)}"
        )
    return inventory.hosts(names)


def connections(hosts: Sequence[Host]) -> tuple[Connection, ...]:
    """How each host is reached. Raises DocumentError with everything that is wrong in what the inventory says of that."""
    made, problems = [], list[Problem]()
    for host in hosts:
        found, wrong = connection(host)
        problems += [p for p in wrong if p not in problems]
        if found is not None:
            made.append(found)
    if problems:
        raise DocumentError(problems)
    return tuple(made)


__all__ = ["Connection", "Host", "Inventory", "connections", "match", "read", "select"]
