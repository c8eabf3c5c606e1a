"""`retina-run inventory`: which hosts an inventory means, how each is reached, and where every value was said.

Nothing is touched, no host is spoken to. Values that may be secrets are not shown, wherever they stand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from retina_runner import inventory
from retina_runner.documents import VaultText, looks_secret, nearest
from retina_runner.errors import Exit, UsageError
from retina_runner.inventory import Connection, Explained, Host, Inventory
from retina_runner.inventory.connection import reached_by
from retina_runner.inventory.model import ALL, UNGROUPED

NOT_SHOWN = "(not shown)"
_SECRET_NAME = re.compile(r"(?i)pass|secret|token|credential|api_?key|private_key(?!_file)|vault")
_REFERENCE = re.compile(r"(env:\w+|file:.+)\Z|\{\{\s*lookup\(")


def main(chosen: argparse.Namespace) -> int:
    if not chosen.inventory:
        raise UsageError("inventory: name one with -i: a file or folder, host1,host2, @connector, ~/.ssh/config")
    known = inventory.read(chosen.inventory)
    if chosen.explain is not None:
        hosts = _one(known, chosen.explain)
    else:
        hosts = inventory.limit_hosts(known, inventory.select(known, chosen.pattern), chosen.limit)
    if chosen.graph:
        print("\n".join(_graph(known, {h.name for h in hosts})))
        return Exit.OK
    explained = inventory.explain(hosts)
    if chosen.json:
        print(json.dumps([_object(h, e) for h, e in zip(hosts, explained, strict=True)], indent=1, default=str))
    elif chosen.explain is not None:
        print("\n".join(_explanation(hosts[0], explained[0])))
    else:
        rows = [(h.name, _way(e.connection), ", ".join(_groups(h))) for h, e in zip(hosts, explained, strict=True)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for row in rows:
            print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip())
    return Exit.OK


def _one(known: Inventory, name: str) -> tuple[Host, ...]:
    if name not in known.host_settings and name not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"--explain {name}: no host of that name; {nearest(name, known.names) or f'there are {len(known.names)} hosts'}"
        )
    return known.hosts([name]) if name in known.host_settings else inventory.select(known, name)


def _groups(host: Host) -> tuple[str, ...]:
    return tuple(g for g in host.groups if g not in (ALL, UNGROUPED))


def _way(to: Connection) -> str:
    """How a host is reached, in a few words."""
    if to.connector != "ssh":
        return to.connector if to.connector == "local" else f"@{to.connector}"
    address = f"[{to.address}]" if ":" in to.address else to.address
    words = [f"{to.user}@{address}" + (f":{to.port}" if to.port != 22 else "")]
    words += [f"via {to.jump}"] if to.jump else ["by ProxyCommand"] if to.proxy_command else []
    words += [f"sudo {to.become_user}" if to.become_user != "root" else "sudo"] if to.become else []
    return ", ".join(words)


def shown(name: str, value: Any) -> Any:
    """The value, or that it isn't shown: what is encrypted, looks like a secret, or is called like one."""
    if isinstance(value, VaultText):
        return "(encrypted by ansible-vault)"
    if isinstance(value, dict):
        return {k: shown(f"{name}.{k}", v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(name, v) for v in value]
    if isinstance(value, str) and looks_secret(value):
        return NOT_SHOWN
    secret = _SECRET_NAME.search(name) and value not in (None, "", True, False)
    return NOT_SHOWN if secret and not _REFERENCE.match(str(value)) else value


def _object(host: Host, explained: Explained) -> dict[str, Any]:
    return {
        "name": host.name,
        "groups": list(_groups(host)),
        "connection": asdict(explained.connection),
        "origins": dict(explained.origins),
        "variables": {
            n: {"value": shown(n, s.value), "origin": s.origin} for n, s in sorted(host.settings.items())
        },
        "notes": list(explained.notes),
    }  # fmt: skip


def _explanation(host: Host, explained: Explained) -> Iterator[str]:
    """Every value of the connection that applies to it, then every variable, each with where it was said."""
    yield f"{host.name}: {_way(explained.connection)}"
    yield f"groups, the nearest last: {', '.join(host.groups)}"
    yield ""
    yield "how it is reached"
    rows = []
    for name, value in reached_by(explained.connection).items():
        if value in ("", ()) and name not in explained.origins:
            continue
        text = " ".join(value) if isinstance(value, tuple) else str(value)
        rows.append((name, text, explained.origins.get(name, "default")))
    yield from _columns(rows)
    for number, hop in enumerate(explained.connection.hops, 1):
        keys = f", keys {' '.join(hop.key_files)}" if hop.key_files else ""
        yield f"  bastion {number}: {_way(hop)}, host keys {hop.host_keys}{keys}"
    yield ""
    yield "variables"
    yield from _columns([(n, json.dumps(shown(n, s.value), default=str), s.origin) for n, s in sorted(host.settings.items())])  # fmt: skip
    for note in explained.notes:
        yield f"note: {note}"


def _columns(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    widths = [min(max((len(row[column]) for row in rows), default=0), 48) for column in (0, 1)]
    for name, value, origin in rows:
        yield f"  {name:{widths[0]}}  {value:{widths[1]}}  {origin}"


def _graph(known: Inventory, hosts: set[str]) -> Iterator[str]:
    """Groups and the hosts in them, in the form of `ansible-inventory --graph`."""

    def below(group: str, depth: int) -> Iterator[str]:
        yield "  |" * depth + ("--" if depth else "") + f"@{group}:"
        found = known.groups.get(group)
        children = list(found.children) if found else []
        if group == ALL:
            within = {c for g in known.group_names for c in known.groups[g].children}
            children = [UNGROUPED, *(g for g in known.group_names if g not in within)]
        for child in children:
            yield from below(child, depth + 1)
        direct = (
            known.members(UNGROUPED) if group == UNGROUPED else tuple(found.hosts) if found and group != ALL else ()
        )
        for host in direct:
            if host in hosts:
                yield "  |" * (depth + 1) + f"--{host}"

    yield from below(ALL, 0)
