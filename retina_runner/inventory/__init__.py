"""Inventories: which hosts there are, what is known of each and where it was said, and how each is reached.

`read` reads inventories, `select` takes hosts of them by a pattern, `connections` says how to reach these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from retina_runner.errors import DocumentError, Problem, UsageError
from retina_runner.inventory import patterns, sources
from retina_runner.inventory.connecting import Configurations, Explained, connect
from retina_runner.inventory.connection import Connection
from retina_runner.inventory.model import ALL, Host, Inventory, Setting

__all__ = [
    "Configurations", "Connection", "Explained", "Host", "Inventory", "Setting", "connections", "explain",
    "limit_hosts", "limit_parts", "read", "resolve", "select",
]  # fmt: skip


def read(inventories: Sequence[str]) -> Inventory:
    """Read inventories into one. Raises DocumentError with every problem of all of them."""
    return sources.read(inventories)


def select(inventory: Inventory, pattern: str = ALL) -> tuple[Host, ...]:
    """The hosts that a pattern means, in its order. Raises UsageError, with the nearest names, when it means none."""
    _implicit_localhost(inventory, pattern)
    if not inventory.names:
        raise UsageError("the inventory has no hosts")
    try:
        return inventory.hosts(patterns.match(inventory, pattern))
    except ValueError as error:
        raise UsageError(f"hosts {pattern}: {error}") from None


def _implicit_localhost(inventory: Inventory, pattern: str) -> None:
    """As in Ansible, `localhost` is this machine where no inventory says otherwise."""
    for part in patterns.split(pattern):
        if part in ("localhost", "127.0.0.1", "::1") and part not in inventory.host_settings:
            inventory.add_host(part, ALL, {"ansible_connection": Setting("local", "implied by the name")})


def limit_parts(pattern: str) -> list[str]:
    """The parts of a `--limit`: a pattern; a part `@FILE` stands for the names in its lines. Raises UsageError."""
    parts: list[str] = []
    whole = pattern.startswith("@") and os.path.exists(os.path.expanduser(pattern[1:]))  # whatever is in its name
    words = [pattern] if whole else patterns.split(pattern)
    if not words:
        # A variable of a shell script that isn't set, most likely: it must not mean every host.
        raise UsageError("--limit: it is empty; leave it out for every host")
    for part in words:
        if not part.startswith("@"):
            parts.append(part)
            continue
        try:
            lines = Path(os.path.expanduser(part[1:])).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--limit {part}: {getattr(error, 'strerror', '') or 'not UTF-8 text'}") from None
        named = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not named:
            raise UsageError(f"--limit {part}: the file names no host")
        parts += named
    return parts


def explain(hosts: Sequence[Host], configurations: Configurations | None = None) -> tuple[Explained, ...]:
    """How each host is reached, and where each part of that was said. Raises DocumentError with what is wrong anywhere."""
    configurations = configurations or Configurations()
    found: list[Explained] = []
    problems: dict[Problem, None] = {}
    for host in hosts:
        explained, wrong = connect(host, configurations)
        problems.update(dict.fromkeys(wrong))
        if explained is not None:
            found.append(explained)
    if problems:
        raise DocumentError(list(problems))
    return tuple(found)


def connections(hosts: Sequence[Host], configurations: Configurations | None = None) -> tuple[Connection, ...]:
    """How each host is reached. Raises DocumentError with everything that is wrong with any of them."""
    return tuple(e.connection for e in explain(hosts, configurations))


def resolve(inventories: Sequence[str], pattern: str = ALL, limit: str | None = None) -> tuple[Host, ...]:
    """Hosts of inventories by a pattern, and by a further one. Raises DocumentError, UsageError."""
    inventory = read(inventories)
    return limit_hosts(inventory, select(inventory, pattern), limit)


def limit_hosts(inventory: Inventory, hosts: Sequence[Host], pattern: str | None) -> tuple[Host, ...]:
    """Those of the hosts that a `--limit` means too. Raises UsageError, with the nearest names, when none is left."""
    if pattern is None:
        return tuple(hosts)
    try:
        parts = limit_parts(pattern)
        wanted = set(patterns.select(inventory, parts))
    except ValueError as error:
        raise UsageError(f"--limit {pattern}: {error}") from None
    unknown = next((p for p in parts if not patterns.known(inventory, p)), None)
    if unknown is not None:
        near = patterns.near(patterns.bare(unknown), inventory)
        raise UsageError(f"--limit {pattern}: {patterns.bare(unknown)} is no host and no group; {near}")
    left = tuple(h for h in hosts if h.name in wanted)
    if not left:
        raise UsageError(f"--limit {pattern}: none of the {len(hosts)} hosts matches")
    return left
