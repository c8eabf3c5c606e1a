"""What an inventory says: hosts, groups, and for every value where it was said. Merging follows Ansible's own precedence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One value of one variable, and its origin: `file:line:column` or a few words."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Host:
    """One host. `groups` from the widest to the nearest; `settings` are the effective ones, each with its origin."""

    name: str
    groups: tuple[str, ...]
    settings: Mapping[str, Setting]

    def value(self, *names: str, default: Any = None) -> Any:
        """The first of these variables that is set."""
        for name in names:
            if name in self.settings and self.settings[name].value is not None:
                return self.settings[name].value
        return default


@dataclass
class Group:
    """A group while an inventory is read. `hosts` keep the order in which they were named."""

    name: str
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)


@dataclass
class Inventory:
    """Everything that the sources of one capture say together."""

    groups: dict[str, Group] = field(default_factory=dict)
    host_settings: dict[str, dict[str, Setting]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def add_host(self, name: str, group: str, settings: Mapping[str, Setting] | None = None) -> None:
        self.group(group).hosts.setdefault(name)
        self.host_settings.setdefault(name, {}).update(settings or {})

    @property
    def names(self) -> tuple[str, ...]:
        """All hosts in the order in which they were first named."""
        return tuple(self.host_settings)

    def depths(self) -> dict[str, int]:
        """How far below `all` each group is, at most. Raises ValueError, naming the groups, when they contain each other."""
        parents = self._parents()
        found: dict[str, int] = {"all": 0}

        def depth(name: str, below: tuple[str, ...]) -> int:
            if name in below:
                raise ValueError(" > ".join((*below[below.index(name) :], name)))
            if name not in found:
                found[name] = 1 + max((depth(p, (*below, name)) for p in parents.get(name, ())), default=0)
            return found[name]

        for name in self.groups:
            depth(name, ())
        return found

    def _parents(self) -> dict[str, list[str]]:
        parents: dict[str, list[str]] = {}
        for group in self.groups.values():
            for child in group.children:
                if group.name != "all":
                    parents.setdefault(child, []).append(group.name)
        return parents

    def members(self, group: str) -> tuple[str, ...]:
        """Hosts of a group and of the groups in it, in the order of the inventory. Empty for a group that isn't there."""
        if group == "all":
            return self.names
        if group == "ungrouped":
            grouped = {h for g in self.groups.values() if g.name not in ("all", "ungrouped") for h in g.hosts}
            return tuple(n for n in self.names if n not in grouped)
        found: dict[str, None] = {}
        seen: set[str] = set()

        def walk(name: str) -> None:
            if name in seen or name not in self.groups:
                return
            seen.add(name)
            found.update(self.groups[name].hosts)
            for child in self.groups[name].children:
                walk(child)

        walk(group)
        return tuple(found)

    def host(self, name: str) -> Host:
        """The host with its effective settings: `all`, then groups from the widest to the nearest, then its own.

        Groups of the same depth go by ansible_group_priority, then by name, as in Ansible.
        """
        parents, depths = self._parents(), self.depths()
        mine: set[str] = set()

        def up(group: str) -> None:
            if group not in mine:
                mine.add(group)
                for parent in parents.get(group, ()):
                    up(parent)

        for group in self.groups.values():
            if name in group.hosts and group.name not in ("all", "ungrouped"):
                up(group.name)

        def rank(group: str) -> tuple[int, int, str]:
            priority = self.groups[group].settings.get("ansible_group_priority", Setting(1, "")).value
            return depths[group], int(priority) if str(priority).lstrip("-").isdigit() else 1, group

        ordered = ("all", *sorted(mine, key=rank)) if mine else ("all", "ungrouped")
        settings: dict[str, Setting] = {}
        for group_name in ordered:
            if group_name in self.groups:
                settings.update(self.groups[group_name].settings)
        settings.update(self.host_settings.get(name, {}))
        return Host(name, ordered, settings)

    def hosts(self, names: Iterable[str]) -> tuple[Host, ...]:
        return tuple(self.host(n) for n in names)
