"""Which hosts of inventories a runbook's captures mean, and how each is reached; `-i`, `--limit`, `--shard` included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from retina_runner import inventory, planning
from retina_runner.documents import nearest
from retina_runner.errors import DocumentError, UsageError
from retina_runner.executors.entered import CONNECTORS as ENTERED
from retina_runner.inventory import Configurations, Connection, Inventory, patterns
from retina_runner.runbook import Capture, InventoryNodes, LocalNodes, Runbook

EXECUTORS = ("local", "ssh", *ENTERED)
"""Connectors that carry a plan out, by the name of the executor that does."""


class Hosts:
    """Reads each set of inventories once for a whole runbook. `connections` are by (capture, node)."""

    def __init__(self, given: Sequence[str]):
        self._given = tuple(given)
        self._read: dict[tuple[str, ...], Inventory] = {}
        self._configurations = Configurations()
        self.inventories: dict[str, Inventory] = {}
        self.connections: dict[tuple[str, str], Connection] = {}

    def captures(self, captures: Sequence[Capture]) -> tuple[Capture, ...]:
        """The captures with `-i` put in: where a capture names no inventory, or no nodes.

        When all of them are of this machine, `-i` means the runbook on these hosts instead. Raises UsageError when no
        capture takes it.
        """
        if not self._given:
            return tuple(captures)
        all_here = all(isinstance(c.nodes, LocalNodes) for c in captures)
        found = []
        for capture in captures:
            nodes = capture.nodes
            if isinstance(nodes, InventoryNodes) and not nodes.inventories:
                nodes = InventoryNodes(self._given, nodes.hosts)
            elif isinstance(nodes, LocalNodes) and (all_here or nodes.implied):
                nodes = InventoryNodes(self._given, "all")
            found.append(replace(capture, nodes=nodes))
        if [c.nodes for c in found] == [c.nodes for c in captures]:
            raise UsageError("-i: every capture of the runbook says its nodes itself; leave `inventory` out to use -i")
        return tuple(found)

    def places(self, runbook: Runbook, capture: Capture, nodes: InventoryNodes) -> list[planning.Place]:
        """The hosts as places. Raises DocumentError."""
        at = (*capture.path, "nodes")
        if not nodes.inventories:
            raise DocumentError(
                [runbook.problem(at, "names hosts and no inventory", "inventory: FILE here, or -i FILE")]
            )
        if nodes.inventories not in self._read:
            self._read[nodes.inventories] = inventory.read(nodes.inventories)
        found = self.inventories[capture.name] = self._read[nodes.inventories]
        try:
            hosts = inventory.select(found, nodes.hosts)
        except UsageError as error:
            raise DocumentError([runbook.problem((*at, "hosts"), str(error))]) from None
        connections = inventory.connections(hosts, self._configurations)
        unreachable = [c for c in connections if c.connector not in EXECUTORS]
        if unreachable:
            first = unreachable[0]
            more = f"; so are {len(unreachable) - 1} more" if len(unreachable) > 1 else ""
            what = f"{first.host} is reached by @{first.connector}, which carries no plan out{more}"
            problem = runbook.problem(at, what, _instead(first))
            raise DocumentError([problem])
        for connection in connections:
            self.connections[capture.name, connection.host] = connection
        return [planning.Place(c.host, c.connector) for c in connections]


def _instead(of: Connection) -> str:
    """What to name in place of a host that no plan can be carried to."""
    machine, colon, container = of.host.removeprefix("@dockerssh/").partition(":")
    if of.connector == "dockerssh" and colon:
        there = f"retina-run … -i @docker/{container},"
        return f"name {machine}, the machine that the container runs on, or run there: {there}"
    return f"leave it out; hosts are reached by {', '.join(EXECUTORS)}"


def limited(
    places: Mapping[str, list[planning.Place]], inventories: Mapping[str, Inventory], pattern: str | None
) -> dict[str, list[planning.Place]]:
    """`--limit`: a further pattern, with the groups of each capture's own inventory; `@FILE` for a list.

    Raises UsageError, with the nearest names, when it names what no capture knows, or when no node is left.
    """
    if pattern is None:
        return dict(places)
    parts = inventory.limit_parts(pattern)
    known = {c: inventories.get(c) or _plain(ps) for c, ps in places.items()}
    for part in parts:
        if not any(patterns.known(i, part) for i in known.values()):
            names = dict.fromkeys(n for i in known.values() for n in (*i.group_names, *i.names))
            raise UsageError(
                f"--limit {pattern}: no node of the runbook matches {patterns.bare(part)}; "
                f"{nearest(patterns.bare(part), names) or 'retina-run RUNBOOK --list-hosts shows them'}"
            )
    try:
        wanted = {c: set(patterns.select(i, parts)) for c, i in known.items()}
    except ValueError as error:
        raise UsageError(f"--limit {pattern}: {error}") from None
    left = {c: [p for p in ps if p.node in wanted[c]] for c, ps in places.items()}
    if not any(left.values()):
        raise UsageError(f"--limit {pattern}: no node of the runbook matches all of it")
    return left


def _plain(places: Sequence[planning.Place]) -> Inventory:
    """Nodes that no inventory knows, as one: their names, and a group named for how they are reached."""
    found = Inventory()
    for place in places:
        found.add_host(place.node, place.executor)
    return found
