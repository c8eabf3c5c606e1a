"""Host patterns as Ansible's: `web:&eu:!canary`, globs, `~` regular expressions, slices `web[0:2]`. Pure.

Parts are separated by `,` or `:`; plain parts add, `&` parts intersect, `!` parts take away, in that order wherever they
stand (ansible-core's inventory/manager.py). Two things differ, both on the safe side: a part that names neither a host
nor a group is an error wherever it stands, since `web:!cannary` would otherwise mean the canary too; and `db[01:20]`
means the hosts of these names where nothing is called `db`.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable

from retina_runner.documents import nearest
from retina_runner.inventory import ranges
from retina_runner.inventory.model import ALL, UNGROUPED, Inventory

_SLICE = re.compile(r"(.+)\[(?:(-?[0-9]+)|([0-9]+):([0-9]*))\]")
_PARTS = re.compile(r"(?:[^\s:\[\]]|\[[^\]]*\])+")
_GLOB = re.compile(r"[*?\[]")


class NoMatch(ValueError):
    """The pattern, or a part of it, means no host. The text says which, with the nearest names."""


def split(pattern: str) -> list[str]:
    """The parts of a pattern. A comma anywhere makes commas the separators; else `:`, but not in brackets or in IPv6."""
    if "," in pattern:
        return [p.strip() for p in pattern.split(",") if p.strip()]
    if _is_ipv6(bare(pattern.strip())):
        return [pattern.strip()]
    return _PARTS.findall(pattern)


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(text), ipaddress.IPv6Address)
    except ValueError:
        return False


def match(inventory: Inventory, pattern: str) -> tuple[str, ...]:
    """The hosts that a pattern means, each once, in the order in which its parts name them.

    Raises NoMatch when it is none, or when a part names nothing that there is; ValueError for a bad regular expression.
    """
    parts = split(pattern)
    if not parts:
        raise NoMatch(f"an empty pattern means no host; {ALL} means every one")
    for part in parts:
        if not known(inventory, part):
            slice_ = _SLICE.fullmatch(bare(part))
            whole = len(_enumerated(inventory, slice_[1])) if slice_ else 0
            if slice_ and whole:
                raise NoMatch(f"{bare(part)}: {slice_[1]} has {whole} hosts, counted from 0")
            raise NoMatch(f"{bare(part)} is no host and no group; {near(bare(part), inventory)}")
    found = select(inventory, parts)
    if not found:
        raise NoMatch(f"{pattern} means no host of {len(inventory.names)}")
    return found


def select(inventory: Inventory, parts: Iterable[str]) -> tuple[str, ...]:
    """As `match`, for parts; what isn't there is passed over, and none may be left. Raises ValueError."""
    parts = [p for p in parts if bare(p)]
    chosen: dict[str, None] = {}
    for part in [p for p in parts if p[0] not in "!&"] or [ALL]:
        chosen.update(dict.fromkeys(_one(inventory, part)))
    for part in (p for p in parts if p[0] == "&"):
        among = set(_one(inventory, bare(part)))
        chosen = {h: None for h in chosen if h in among}
    for part in (p for p in parts if p[0] == "!"):
        for host in _one(inventory, bare(part)):
            chosen.pop(host, None)
    return tuple(chosen)


def bare(part: str) -> str:
    """A part without its `!` or `&`."""
    return part[1:] if part[:1] in ("!", "&") else part


def known(inventory: Inventory, part: str) -> bool:
    """Whether a part means anything here. A glob that takes nothing away is no slip; one that adds nothing is."""
    if _one(inventory, bare(part)):
        return True
    glob = bare(part).startswith("~") or _GLOB.search(bare(part))
    if part[0] in "!&" and glob and not _SLICE.fullmatch(bare(part)):
        return True
    return bare(part) in inventory.groups or bare(part) in (ALL, UNGROUPED)


def near(word: str, inventory: Inventory) -> str:
    """The nearest names of hosts and groups to a word that is none, or what there is."""
    groups, hosts = inventory.group_names, len(inventory.names)
    found = nearest(word.partition("[")[0] or word, [*groups, *inventory.names])
    if found or not hosts:
        return found or "there are none"
    return f"there are {hosts} hosts" + (f" and the groups {', '.join(groups)}" if 0 < len(groups) <= 30 else "")


def _one(inventory: Inventory, part: str) -> Collection[str]:
    if part in inventory.host_settings:
        return (part,)
    if part.startswith("~"):
        try:
            expression = re.compile(part[1:])
        except re.error as error:
            raise ValueError(f"{part} is not a regular expression: {error}") from None
        return _matching(inventory, lambda name: expression.match(name) is not None, True)
    found = _SLICE.fullmatch(part)
    if found is None:
        return _enumerated(inventory, part)
    whole = tuple(_enumerated(inventory, found[1]))
    if whole:
        return _sliced(whole, found)
    named: tuple[str, ...] = ()
    if ranges.has_range(part):
        try:
            named = tuple(n for n in ranges.expand(part) if n in inventory.host_settings)
        except ValueError:
            named = ()
    return named or _enumerated(inventory, part)


def _enumerated(inventory: Inventory, part: str) -> Collection[str]:
    expression = re.compile(fnmatch.translate(part))
    return _matching(inventory, lambda name: expression.match(name) is not None, any(c in part for c in ".?*["))


def _matching(inventory: Inventory, wanted: Callable[[str], bool], hosts_too: bool) -> Collection[str]:
    """Hosts of the groups so named, and, for what may mean several things, hosts so named too."""
    found: dict[str, None] = {}
    groups = [g for g in (ALL, UNGROUPED, *inventory.group_names) if wanted(g)]
    for group in groups:
        found.update(dict.fromkeys(inventory.members(group)))
    if hosts_too or not groups:
        found.update(dict.fromkeys(n for n in inventory.names if wanted(n)))
    return found


def _sliced(hosts: tuple[str, ...], found: re.Match[str]) -> tuple[str, ...]:
    if found[2] is not None:
        index = int(found[2])
        return (hosts[index],) if -len(hosts) <= index < len(hosts) else ()
    return hosts[int(found[3]) : int(found[4]) + 1] if found[4] else hosts[int(found[3]) :]
