"""pyinfra's inventories: Python files whose lists are groups, with group_data/ beside them, and connectors (`@vagrant`).

A file is executed, as pyinfra does it: it is the user's own program. Connectors are asked through pyinfra, so that what
it can reach can be named here in the same words.
"""

from __future__ import annotations

import ast
import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_runner.agent import process
from retina_runner.documents import nearest
from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory.model import ALL, Inventory, Setting, Settings

LIMIT_S = 120.0
"""For what a connector asks: `vagrant status` alone takes seconds."""


def read_words(words: Sequence[str], inventory: Inventory) -> None:
    """Hosts of `@connector` or `@connector/argument`, asked all at once. Raises DocumentError."""
    asked = _ask(list(words), ",".join(words))
    for word in words:
        _add(word, {}, [ALL], inventory, asked)


def read_file(path: Path, inventory: Inventory) -> None:
    """Hosts of a Python inventory. Raises DocumentError with the line at which it fails."""
    found = {k: v for k, v in _executed(path).items() if not k.startswith("_") and isinstance(v, (list, tuple))}
    groups = {key: _split(value) for key, value in found.items()}
    groups = {key: (hosts, data) for key, (hosts, data) in groups.items() if hosts and all(map(_is_host, hosts))}
    if not groups:
        raise DocumentError(
            [Problem(str(path), 0, 0, "", "has no list of hosts", 'for example web = ["web1", "web2"]')]
        )
    places = _places(path)
    data_of = {f.stem: _group_data(f) for f in sorted((path.parent / "group_data").glob("*.py"))}
    named = {ALL, path.stem, *groups}
    for group in named:
        # group_data/ is the narrower word, as for Ansible's group_vars/.
        inventory.group(group).file_settings.update(data_of.get(group, {}))
    words = dict.fromkeys(n for hosts, _ in groups.values() for n in map(_name, hosts) if n.startswith("@"))
    asked = _ask(list(words), str(path))
    for group, (hosts, data) in groups.items():
        origin = f"{path}:{places.get(group, 1)}:1"
        inventory.group(group).settings.update({k: Setting(v, origin) for k, v in data.items()})
        for host in hosts:
            own = host[1] if isinstance(host, tuple) else {}
            _add(_name(host), {k: Setting(v, origin) for k, v in own.items()}, [group, path.stem], inventory, asked)


def _is_host(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)
    )


def _name(host: Any) -> str:
    return str(host[0] if isinstance(host, tuple) else host)


def _split(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """(hosts, the group's data) of `[hosts]` or `([hosts], {data})`."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (list, tuple)):
        return list(value[0]), dict(value[1]) if isinstance(value[1], dict) else {}
    return list(value), {}


def _executed(path: Path) -> Mapping[str, Any]:
    try:
        return runpy.run_path(str(path), run_name="retina_inventory")
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", 0)
        raise DocumentError([
            Problem(str(path), line or 0, 1, "", f"the inventory's program failed: {type(error).__name__}: {error}",
                    f"try: python3 {path}")
        ]) from None  # fmt: skip


def _group_data(path: Path) -> dict[str, Setting]:
    places = _places(path)
    return {k: Setting(v, f"{path}:{places[k]}:1") for k, v in _executed(path).items() if k in places and k[0] != "_"}


def _places(path: Path) -> dict[str, int]:
    """Names that a file assigns at its top, and the line of each."""
    found: dict[str, int] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = statement.lineno
    return found


_Asked = Mapping[str, Mapping[str, Any]]


def _add(name: str, own: Settings, groups: list[str], inventory: Inventory, asked: _Asked) -> None:
    """One host, or the hosts that a connector makes of its word; the host's own data is the last word, as in pyinfra."""
    answer = asked.get(name, {"hosts": [(name, {}, [])], "reached_by": "ssh"})
    for host, data, more in answer["hosts"]:
        said = {k: Setting(v, f"pyinfra's {name}") for k, v in data.items() if v is not None}
        if answer["reached_by"] != "ssh":
            said["retina_connector"] = Setting(answer["reached_by"], f"pyinfra's {name}")
        for group in [*groups, *more]:
            inventory.add_host(host, group, {**said, **own})


def _ask(words: list[str], origin: str) -> _Asked:
    """What pyinfra makes of each `@word`. Raises DocumentError."""
    if not words:
        return {}
    argv = [sys.executable, "-m", "retina_runner.inventory.pyinfra_connectors", *words]
    # With the user's own environment: terraform and vagrant are the user's programs.
    outcome = process.run(argv, limit_s=LIMIT_S, env=os.environ)
    if not outcome.ok:
        raise DocumentError([Problem(origin, 0, 0, "", f"{' '.join(words)}: pyinfra: {outcome.why()}")])
    answers: _Asked = json.loads(outcome.stdout.splitlines()[-1])
    problems = []
    for word, answer in answers.items():
        if "unknown" in answer:
            hint = nearest(answer["unknown"], answer["known"])
            problems.append(Problem(origin, 0, 0, "", f"pyinfra has no connector @{answer['unknown']}", hint))
        elif "why" in answer:
            hint = f"try: pyinfra {word} fact server.Hostname"
            problems.append(Problem(origin, 0, 0, "", f"{word}: {answer['why']}", hint))
    if problems:
        raise DocumentError(problems)
    return answers
