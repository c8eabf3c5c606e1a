"""Inventories in Ansible's INI: `[group]`, `[group:vars]`, `[group:children]`, hosts with `key=value` behind them."""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from typing import Any

from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory import host_words
from retina_runner.inventory.model import UNGROUPED, Inventory, Setting

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_GROUP = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")


def read(text: str, name: str, inventory: Inventory) -> None:
    """Add what an INI inventory says. Raises DocumentError with every line that is wrong."""
    reader = _Reader(name, text.splitlines(), inventory)
    reader.read()
    if reader.problems:
        raise DocumentError(reader.problems)


def value(text: str) -> Any:
    """A value as Ansible reads it: a Python literal where it is one (numbers, True, lists), else the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
    return text if isinstance(found, (complex, bytes)) or found is ... else found


class _Reader:
    def __init__(self, name: str, lines: list[str], inventory: Inventory):
        self._name, self._lines, self._inventory = name, lines, inventory
        self.problems: list[Problem] = []
        self._declared: set[str] = set()
        self._awaited: list[tuple[int, str, str]] = []

    def _problem(self, number: int, message: str, hint: str = "", shown: bool = True) -> None:
        line = self._lines[number - 1]
        column = len(line) - len(line.lstrip()) + 1
        # What stands behind a host may be a password: only lines without values are shown.
        excerpt = line if shown and "=" not in line else ""
        self.problems.append(Problem(self._name, number, column, "", message, hint, excerpt))

    def read(self) -> None:
        group, kind = UNGROUPED, "hosts"
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if not text or text[0] in "#;":
                continue
            section = _SECTION.fullmatch(text)
            if section:
                group, kind = section[1], section[2] or "hosts"
                if kind not in ("hosts", "vars", "children"):
                    self._problem(number, f"there is no kind of section {kind}", "hosts, vars or children")
                    kind = "vars"
                elif kind == "vars":
                    self._awaited.append((number, group, f"[{group}:vars] is of a group that isn't there"))
                else:
                    self._declared.add(group)
                self._inventory.group(group)
            elif text.startswith("[") and text.endswith("]") and (" " in text or ":" not in text):
                self._problem(number, "no section", "write [group], [group:vars] or [group:children], without blanks")
            else:
                {"hosts": self._host, "vars": self._variable, "children": self._child}[kind](number, text, group)
        there = self._declared | {"all", UNGROUPED} | {n for n, g in self._inventory.groups.items() if g.hosts}
        for number, name, message in self._awaited:
            if name not in there:
                self._problem(number, message, f"declare it: [{name}]")

    def _host(self, number: int, text: str, group: str) -> None:
        if re.match(r"\w+\s*=", text):
            where = f"[{group}:vars]" if group != UNGROUPED else "[all:vars]"
            self._problem(number, "a variable where a host should be", f"write it below {where}, or behind its host")
            return
        try:
            words = shlex.split(text, comments=True)
            names, port = host_words.read(words[0])
        except ValueError as error:
            hint = ""
            if text.endswith(":") or text == "---":
                hint = "YAML? Then give the file a name that ends in .yaml"
            message = str(error) if "quot" not in str(error) else "a quotation mark without its other one"
            self._problem(number, message, hint)
            return
        said: dict[str, Setting] = {}
        if port is not None:
            said["ansible_port"] = Setting(port, self._origin(number, words[0]))
        for word in words[1:]:
            key, equals, rest = word.partition("=")
            if not equals:
                self._problem(number, f"{words[0]}: expected key=value behind the host, found a word without =",
                              "one host a line; a value with blanks goes in quotation marks", shown=False)  # fmt: skip
                return
            said[key] = Setting(value(rest), self._origin(number, key + "="))
        for name in names:
            self._inventory.add_host(name, group, said)

    def _variable(self, number: int, text: str, group: str) -> None:
        key, equals, rest = text.partition("=")
        if not equals:
            self._problem(number, "expected key=value", "for example ansible_user=ops")
            return
        self._inventory.group(group).settings[key.strip()] = Setting(value(rest.strip()), self._origin(number, ""))

    def _child(self, number: int, text: str, group: str) -> None:
        found = _GROUP.fullmatch(text)
        if not found:
            self._problem(number, "expected the name of a group")
            return
        self._inventory.group(group).children.setdefault(found[1])
        self._inventory.group(found[1])
        self._awaited.append((number, found[1], f"[{group}:children] has a group that isn't there: {found[1]}"))

    def _origin(self, number: int, word: str) -> str:
        line = self._lines[number - 1]
        found = line.find(word) if word else len(line) - len(line.lstrip())
        return f"{self._name}:{number}:{max(found, 0) + 1}"
