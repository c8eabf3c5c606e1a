"""Where hosts come from: Ansible's YAML and INI, `host1,host2`, ~/.ssh/config, pyinfra's Python inventories and connectors.

Each source adds to one `Inventory`. `group_vars/` and `host_vars/` beside a file are read as Ansible reads them. All
problems of all sources are gathered before anything is said.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_runner import schema
from retina_runner.documents import Dialect, Document, load_document
from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory.model import Inventory, Setting
from retina_runner.inventory.patterns import expand_range

IGNORED = (".orig", ".bak", ".retry", ".pyc", ".cfg", "~", ".md", ".txt")
"""Files of an inventory folder that are none, after Ansible's INVENTORY_IGNORE_EXTS."""
_SECTION = re.compile(r"\[([^\]:]+)(?::(children|vars|hosts))?\]\s*(?:[#;].*)?$")


def read(sources: Sequence[str]) -> Inventory:
    """One inventory of several sources, the later winning. Raises DocumentError with everything that is wrong."""
    inventory = Inventory()
    problems: list[Problem] = []
    inventory.group("all")
    inventory.group("ungrouped")
    for source in sources:
        try:
            _add(inventory, source)
        except DocumentError as error:
            problems += error.problems
        else:
            inventory.sources.append(source)
    try:
        inventory.depths()
    except ValueError as error:
        problems.append(_whole(sources[0], f"groups contain each other: {error}"))
    if problems:
        raise DocumentError(problems)
    return inventory


def _whole(name: str, message: str, hint: str = "") -> Problem:
    return Problem(name, 0, 0, "", message, hint)


def _add(inventory: Inventory, source: str) -> None:
    if source.startswith("@"):
        from retina_runner.inventory.pyinfra_source import add_connector

        add_connector(inventory, source)
    elif "," in source:
        for name in (n.strip() for n in source.split(",")):
            for host in _range(name, source, 0) if name else ():
                inventory.add_host(host, "ungrouped")
    elif source in ("ssh_config", "~/.ssh/config"):
        _add_ssh_config(inventory, Path("~/.ssh/config").expanduser())
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            _add_folder(inventory, path)
        elif path.name == "config" and path.parent.name == ".ssh":
            _add_ssh_config(inventory, path)
        elif path.suffix == ".py":
            from retina_runner.inventory.pyinfra_source import add_file

            add_file(inventory, path)
        else:
            _add_file(inventory, path)
            _add_vars_beside(inventory, path.parent)


def _add_folder(inventory: Inventory, folder: Path) -> None:
    files = [
        p for p in sorted(folder.iterdir())
        if p.is_file() and not p.name.startswith(".") and not p.name.endswith(IGNORED)
    ]  # fmt: skip
    if not files:
        raise DocumentError([_whole(str(folder), "the folder holds no inventory", "a .yaml or .ini file, for example")])
    for path in files:
        _add_file(inventory, path)
    _add_vars_beside(inventory, folder)


def _add_file(inventory: Inventory, path: Path) -> None:
    if path.suffix in (".yaml", ".yml", ".json"):
        _add_yaml(inventory, load_document(path, Dialect.ANSIBLE))
        return
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise load_error(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError([_whole(str(path), getattr(error, "strerror", None) or "not UTF-8 text")]) from None
    if text.startswith("#!"):
        raise DocumentError(
            [
                _whole(
                    str(path),
                    "is a program; dynamic inventories aren't run",
                    f"{path} --list > inventory.json, and name that",
                )
            ]
        )
    if re.search(r"^\s*[\w-]+:\s*(?:#.*)?$", text, re.MULTILINE) and not re.search(r"^\[", text, re.MULTILINE):
        _add_yaml(inventory, load_document(path, Dialect.ANSIBLE))
    else:
        IniReader(inventory, str(path), text).read()


def load_error(path: Path) -> DocumentError:
    """What `load_document` says of a file that isn't there, with the nearest names."""
    try:
        load_document(path)
    except DocumentError as error:
        return error
    return DocumentError([_whole(str(path), "can't be read")])


def _origin(document: Document, path: tuple[str | int, ...]) -> str:
    line, column = document.place(path)
    return f"{document.name}:{line}:{column}"


# -- YAML --------------------------------------------------------------------------------------------------------------


def _add_yaml(inventory: Inventory, document: Document) -> None:
    problems = schema.validate(document, document.value, "inventory")
    if problems:
        raise DocumentError(problems)
    for name, content in document.value.items():
        _yaml_group(inventory, document, name, content or {}, (name,), problems)
    if problems:
        raise DocumentError(problems)


def _yaml_group(
    inventory: Inventory, document: Document, name: str, content: Mapping[str, Any], path: tuple[str | int, ...],
    problems: list[Problem],
) -> None:  # fmt: skip
    group = inventory.group(name)
    for variable, value in (content.get("vars") or {}).items():
        group.settings[variable] = Setting(value, _origin(document, (*path, "vars", variable)))
    for given, variables in (content.get("hosts") or {}).items():
        here = (*path, "hosts", given)
        try:
            names = expand_range(str(given))
        except ValueError as error:
            problems.append(document.problem(here, str(error), key=True))
            continue
        settings = {v: Setting(value, _origin(document, (*here, v))) for v, value in (variables or {}).items()}
        for host in names:
            inventory.add_host(host, "ungrouped" if name == "all" else name, settings)
    for child, inner in (content.get("children") or {}).items():
        if name != "all":
            group.children.setdefault(child)
        _yaml_group(inventory, document, child, inner or {}, (*path, "children", child), problems)


def _add_vars_beside(inventory: Inventory, folder: Path) -> None:
    for kind in ("group_vars", "host_vars"):
        for name in list(inventory.groups if kind == "group_vars" else inventory.host_settings):
            for path in _vars_files(folder / kind, name):
                document = load_document(path, Dialect.ANSIBLE)
                if document.value is None:
                    continue
                if not isinstance(document.value, dict):
                    raise DocumentError([document.problem((), "expected a mapping of variables")])
                target = inventory.group(name).settings if kind == "group_vars" else inventory.host_settings[name]
                target.update({k: Setting(v, _origin(document, (k,))) for k, v in document.value.items()})


def _vars_files(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_dir():
        return sorted(p for p in (folder / name).iterdir() if p.is_file() and not p.name.startswith("."))
    return [p for p in (folder / f"{name}.yml", folder / f"{name}.yaml", folder / name) if p.is_file()]


# -- INI ---------------------------------------------------------------------------------------------------------------


class IniReader:
    """Ansible's INI: hosts with `key=value`, `[group]`, `[group:children]`, `[group:vars]`."""

    def __init__(self, inventory: Inventory, name: str, text: str):
        self._inventory, self._name, self._lines = inventory, name, text.splitlines()
        self._problems: list[Problem] = []

    def read(self) -> None:
        """Add everything. Raises DocumentError."""
        group, kind = "ungrouped", "hosts"
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if not text or text[0] in "#;":
                continue
            if text.startswith("[") and (found := _SECTION.match(text)):
                group, kind = found[1].strip(), found[2] or "hosts"
                self._inventory.group(group)
                continue
            if text.startswith("[") and "]" not in text:
                self._problem(number, line, "a section without its closing bracket", "[group] or [group:vars]")
            elif kind == "vars":
                key, equals, value = text.partition("=")
                if not equals:
                    self._problem(number, line, "expected key=value")
                    continue
                self._inventory.group(group).settings[key.strip()] = Setting(
                    _typed(value.strip()), self._at(number, line)
                )
            elif kind == "children":
                child = text.split("#")[0].strip()
                self._inventory.group(child)
                if group != "all":
                    self._inventory.group(group).children.setdefault(child)
            else:
                self._host(number, line, group)
        if self._problems:
            raise DocumentError(self._problems)

    def _host(self, number: int, line: str, group: str) -> None:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            self._problem(number, line, f"{error}".lower(), "quote the whole value")
            return
        settings = {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if not equals:
                self._problem(number, line, f"{word!r}: expected key=value behind the host's name")
                return
            settings[key] = Setting(_typed(value), self._at(number, line))
        name, port = words[0], ""
        if found := re.fullmatch(r"([^:\[\]]+|\[[0-9a-fA-F:.]+\]|[^:]*\[[^\]]+\][^:]*):(\d+)", name):
            name, port = found[1], found[2]
        try:
            hosts = expand_range(name)
        except ValueError as error:
            self._problem(number, line, str(error))
            return
        if port:
            settings.setdefault("ansible_port", Setting(int(port), self._at(number, line)))
        for host in hosts:
            self._inventory.add_host(host.strip("[]") if host.startswith("[") else host, group, settings)

    def _at(self, number: int, line: str) -> str:
        return f"{self._name}:{number}:{len(line) - len(line.lstrip()) + 1}"

    def _problem(self, number: int, line: str, message: str, hint: str = "") -> None:
        # A line of an INI may hold a password anywhere, so none is shown.
        self._problems.append(Problem(self._name, number, len(line) - len(line.lstrip()) + 1, "", message, hint))


def _typed(text: str) -> Any:
    """As Ansible reads values of an INI: a Python literal where it is one, text otherwise."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        return text


def _range(name: str, source: str, line: int) -> list[str]:
    try:
        return expand_range(name)
    except ValueError as error:
        raise DocumentError([Problem(source, line, 0, "", str(error))]) from None


# -- ~/.ssh/config -----------------------------------------------------------------------------------------------------


def _add_ssh_config(inventory: Inventory, path: Path) -> None:
    """Every `Host` that is a plain name; what it means is read from the same file when it is connected to."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DocumentError([_whole(str(path), error.strerror or str(error))]) from None
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if words and words[0].lower() == "host":
            for name in words[1:]:
                if not any(c in name for c in "*?!"):
                    at = Setting(str(path), f"{path}:{number}:1")
                    inventory.add_host(name, "ungrouped", {"retina_ssh_config": at})
