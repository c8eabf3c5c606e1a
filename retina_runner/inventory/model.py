"""What inventories say: hosts, groups, and for every value where it was said. Merging keeps Ansible's own precedence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ALL, UNGROUPED = "all", "ungrouped"
PRIORITY = "ansible_group_priority"
"""Of a group, and no variable of its hosts."""


@dataclass(frozen=True)
class Setting:
    """One value of one variable, and its origin: `file:line:column`, or a few words."""

    value: Any
    origin: str


Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Host:
    """One host. `groups` go from the widest to the nearest; `settings` are the effective ones.

    `notes` are what whoever asks why a value isn't there should know: a file that couldn't be read, for instance.
    """

    name: str
    groups: tuple[str, ...]
    settings: Settings
    notes: tuple[str, ...] = ()

    def setting(self, *names: str) -> Setting | None:
        """The first of these variables that is set to something."""
        for name in names:
            found = self.settings.get(name)
            if found is not None and found.value is not None:
                return found
        return None


@dataclass
class Group:
    """A group while inventories are read. `settings` are the inventory's own, `file_settings` those of `group_vars/`."""

    name: str
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    file_settings: dict[str, Setting] = field(default_factory=dict)


@dataclass
class Inventory:
    """Everything that several sources say together; what is read later overrides, as in Ansible."""

    groups: dict[str, Group] = field(default_factory=dict)
    host_settings: dict[str, dict[str, Setting]] = field(default_factory=dict)
    host_file_settings: dict[str, dict[str, Setting]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def group(self, name: str) -> Group:
        """The group of that name, made if it isn't there."""
        return self.groups.setdefault(name, Group(name))

    def add_host(self, name: str, group: str = ALL, settings: Settings | None = None) -> None:
        """Put a host into a group; its settings override what was said of it before."""
        self.group(group).hosts.setdefault(name)
        self.host_settings.setdefault(name, {}).update(settings or {})

    @property
    def names(self) -> tuple[str, ...]:
        """All hosts, in the order in which they were first named."""
        return tuple(self.host_settings)

    @property
    def group_names(self) -> tuple[str, ...]:
        """All groups but `all` and `ungrouped`, in the order in which they were first named."""
        return tuple(g for g in self.groups if g not in (ALL, UNGROUPED))

    def parents(self) -> dict[str, list[str]]:
        """Group to the groups that contain it; `all`, which contains every one, left out."""
        found: dict[str, list[str]] = {}
        for group in self.groups.values():
            for child in group.children:
                if group.name != ALL:
                    found.setdefault(child, []).append(group.name)
        return found

    def circle(self) -> tuple[str, ...]:
        """Groups that contain each other, the first again at the end; empty when there are none."""
        done: set[str] = set()

        def walk(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
            if name in above:
                return (*above[above.index(name) :], name)
            if name in done:
                return ()
            for child in self.groups[name].children if name in self.groups else ():
                found = walk(child, (*above, name))
                if found:
                    return found
            done.add(name)
            return ()

        return next((c for c in (walk(g, ()) for g in self.groups) if c), ())

    def members(self, group: str) -> tuple[str, ...]:
        """Hosts of a group and of the groups in it. Empty for a group that isn't there.

        First those of the group itself, then those of the groups in it, level by level; a host counts where it is met first.
        """
        if group == ALL:
            return self.names
        if group == UNGROUPED:
            grouped = {h for g in self.group_names for h in self.groups[g].hosts}
            return tuple(n for n in self.names if n not in grouped)
        found: dict[str, None] = {}
        level, seen = [group], {group}
        while level:
            below: list[str] = []
            for name in level:
                if name in self.groups:
                    found.update(self.groups[name].hosts)
                    below += [c for c in self.groups[name].children if c not in seen and c not in below]
            seen.update(below)
            level = below
        return tuple(found)

    def hosts(self, names: Iterable[str]) -> tuple[Host, ...]:
        """The hosts with their effective settings, the later of these overriding:

        `all`, the other groups from the widest to the nearest (those of one depth by ansible_group_priority, then by
        name), then the same again for group_vars/, then the host's own, then its host_vars/.
        """
        parents, depths = self.parents(), self._depths()
        direct: dict[str, list[str]] = {}
        for group in self.group_names:
            for host in self.groups[group].hosts:
                direct.setdefault(host, []).append(group)
        return tuple(self._host(n, direct.get(n, []), parents, depths) for n in names)

    def _host(self, name: str, direct: list[str], parents: Mapping[str, list[str]], depths: Mapping[str, int]) -> Host:
        mine: dict[str, None] = {}
        waiting = list(direct)
        while waiting:
            group = waiting.pop()
            if group not in mine:
                mine[group] = None
                waiting += parents.get(group, ())

        def rank(group: str) -> tuple[int, int, str]:
            said = self.groups[group].settings.get(PRIORITY)
            text = str(said.value) if said is not None else ""
            return depths.get(group, 1), int(text) if text.lstrip("-").isdigit() else 1, group

        ordered = (ALL, *(sorted(mine, key=rank) if mine else (UNGROUPED,)))
        found: dict[str, Setting] = {}
        known = [self.groups[g] for g in ordered if g in self.groups]
        for group_ in known:
            found.update((n, s) for n, s in group_.settings.items() if n != PRIORITY)
        for group_ in known:
            found.update(group_.file_settings)
        found.update(self.host_settings.get(name, {}))
        found.update(self.host_file_settings.get(name, {}))
        return Host(name, ordered, found, tuple(self.notes))

    def _depths(self) -> dict[str, int]:
        """How far below `all` each group is, at most. There must be no circle."""
        parents = self.parents()
        found: dict[str, int] = {ALL: 0}

        def depth(name: str) -> int:
            if name not in found:
                found[name] = 1 + max((depth(p) for p in parents.get(name, ())), default=0)
            return found[name]

        for name in self.groups:
            depth(name)
        return found
