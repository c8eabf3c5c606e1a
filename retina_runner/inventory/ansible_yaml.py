"""Inventories in Ansible's YAML and JSON shapes: groups with `hosts`, `vars`, `children`, or what `--list` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retina_runner import schema
from retina_runner.documents import Document, Path_
from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory import host_words
from retina_runner.inventory.model import ALL, Inventory, Setting


def read(document: Document, inventory: Inventory) -> None:
    """Add what a document says. Raises DocumentError with everything that is wrong in it."""
    value = document.value
    if isinstance(value, dict) and isinstance(value.get("plugin"), str):
        raise DocumentError([
            document.problem(
                ("plugin",), f"the configuration of Ansible's inventory plugin {value['plugin']}, whose hosts only Ansible knows",
                f"ansible-inventory -i {document.name} --list --export --yaml > hosts.yaml, and use that",
            )
        ])  # fmt: skip
    if isinstance(value, dict) and (value.get("_meta") is not None or _is_listing(value)):
        problems = _listing(document, value, inventory)
    else:
        problems = schema.validate(document, value, "inventory")
        if not problems:
            for name, group in value.items():
                _group(document, inventory, name, group or {}, (name,), problems)
    if problems:
        raise DocumentError(problems)


def settings(document: Document, values: Mapping[str, Any] | None, path: Path_) -> dict[str, Setting]:
    """Variables with the place of each."""
    found = {}
    for name, value in (values or {}).items():
        line, column = document.place((*path, name))
        found[str(name)] = Setting(value, f"{document.name}:{line}:{column}")
    return found


def _section(group: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = group.get(key)
    return {found: None} if isinstance(found, str) else found or {}


def _group(
    document: Document, inventory: Inventory, name: str, group: Mapping[str, Any], path: Path_, problems: list[Problem]
) -> None:
    made = inventory.group(name)
    made.settings.update(settings(document, group.get("vars"), (*path, "vars")))
    for child, inner in _section(group, "children").items():
        made.children.setdefault(child)
        _group(document, inventory, child, inner or {}, (*path, "children", child), problems)
    for word, values in _section(group, "hosts").items():
        here = (*path, "hosts", word)
        try:
            names, port = host_words.read(word)
        except ValueError as error:
            problems.append(document.problem(here, str(error), "write db[01:20] for several hosts", key=True))
            continue
        said = settings(document, values, here)
        if port is not None:
            line, column = document.place(here, key=True)
            said = {"ansible_port": Setting(port, f"{document.name}:{line}:{column}"), **said}
        for host in names:
            inventory.add_host(host, name, said)


def _is_listing(value: Mapping[str, Any]) -> bool:
    """Lists where a group's mappings would be: what `ansible-inventory --list` and inventory scripts print."""
    groups = [g for g in value.values() if g]
    return bool(groups) and all(
        isinstance(g, list) or (isinstance(g, dict) and any(isinstance(g.get(k), list) for k in ("hosts", "children")))
        for g in groups
    )


def _listing(document: Document, value: Mapping[str, Any], inventory: Inventory) -> list[Problem]:
    problems: list[Problem] = []

    def names(found: Any, path: Path_) -> list[str]:
        if found is None or (isinstance(found, list) and all(isinstance(n, str) for n in found)):
            return found or []
        problems.append(document.problem(path, "expected a list of names"))
        return []

    for name, group in value.items():
        if name == "_meta":
            continue
        if isinstance(group, list):
            group = {"hosts": group}
        if not isinstance(group, dict):
            problems.append(document.problem((name,), "expected a group: hosts, vars, children"))
            continue
        made = inventory.group(name)
        if isinstance(group.get("vars"), dict):
            made.settings.update(settings(document, group["vars"], (name, "vars")))
        for child in names(group.get("children"), (name, "children")):
            inventory.group(child)
            made.children.setdefault(child)
        for host in names(group.get("hosts"), (name, "hosts")):
            inventory.add_host(host, name)
    meta = value.get("_meta")
    variables = meta.get("hostvars") if isinstance(meta, dict) else None
    for host, said in (variables or {}).items():
        if isinstance(said, dict):
            inventory.add_host(host, ALL, settings(document, said, ("_meta", "hostvars", host)))
    return problems
