"""Which kind of inventory a word or a file is, and reading several of them into one, with group_vars/ and host_vars/.

Several inventories are one: what a later one says overrides, as with Ansible's repeated `-i`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retina_runner.agent import process
from retina_runner.documents import Dialect, Document, nearest, parse_document
from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory import ansible_ini, ansible_yaml, host_words
from retina_runner.inventory.model import ALL, Inventory, Setting

MOST_BYTES = 64 << 20
SCRIPT_LIMIT_S = 60.0
_SKIPPED = (".orig", ".bak", ".rpm", ".deb", ".pyc", ".pyo", ".cfg", ".retry", ".md", ".txt", ".rst", ".swp")
"""Ansible's INVENTORY_IGNORE_EXTS, and Debian's packages."""
_VARIABLE_SUFFIXES = ("", ".yml", ".yaml", ".json")
_VARIABLE_FOLDERS = ("group_vars", "host_vars", "vars_plugins")
_SSH_CONFIG = re.compile(r"(?i)(host|match|include)[ \t=]+\S")
_SECTION = re.compile(r"\[[^\[\],]+\]")
_VAULT = b"$ANSIBLE_VAULT"


def read(words: Sequence[str]) -> Inventory:
    """Read inventories: files, folders, `host1,host2`, `@connector`. Raises DocumentError with every problem of all."""
    inventory = Inventory()
    inventory.group(ALL)
    problems: list[Problem] = []
    folders: dict[Path, None] = {}
    for word in words:
        try:
            _source(word, inventory, folders)
        except DocumentError as error:
            problems += error.problems
    for folder in folders:
        try:
            _variables(folder, inventory, problems)
        except DocumentError as error:
            problems += error.problems
        except OSError as error:
            problems.append(_whole(str(error.filename or folder), error.strerror or str(error)))
    circle = inventory.circle()
    if circle:
        problems.append(_whole(" ".join(words), f"groups contain each other: {' > '.join(circle)}"))
    if problems:
        raise DocumentError(problems)
    return inventory


def _whole(name: str, message: str, hint: str = "") -> Problem:
    return Problem(name, 0, 0, "", message, hint)


def _source(word: str, inventory: Inventory, folders: dict[Path, None]) -> None:
    if not word:
        # Path("") is the folder that one is in; a variable of a shell script that isn't set must not mean that.
        raise DocumentError([_whole("-i", "it is empty", "a file or folder, host1,host2, or @connector")])
    if "," in word:
        _listed(word, inventory)
    elif word.startswith("@"):
        from retina_runner.inventory.pyinfra_source import read_words

        read_words([word], inventory)
    else:
        path = Path(os.path.expanduser(word))
        if os.path.isdir(path):
            folders.setdefault(path)
            for inner in _inner(path):
                ignored = inner.name in _VARIABLE_FOLDERS or inner.name.startswith(".") or inner.name.endswith("~")
                if not ignored and not inner.name.endswith(_SKIPPED):
                    _source(str(inner), inventory, {})  # variables lie beside what was named
        else:
            folders.setdefault(path.parent)
            _file(path, inventory)


def _inner(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DocumentError([_whole(str(folder), error.strerror or str(error))]) from None


def _listed(word: str, inventory: Inventory) -> None:
    """`host1,user@host2:2222,`: a comma makes a list of hosts of any word."""
    problems: list[Problem] = []
    connectors: list[str] = []
    for number, part in enumerate(p.strip() for p in word.split(",")):
        if not part:
            continue
        if part.startswith("@"):
            connectors.append(part)
            continue
        user, _, rest = part.rpartition("@")
        origin = f"word {number + 1} of {word}"
        try:
            names, port = host_words.read(rest)
        except ValueError as error:
            problems.append(_whole(word, str(error)))
            continue
        said = {"ansible_user": Setting(user, origin)} if user else {}
        if port is not None:
            said["ansible_port"] = Setting(port, origin)
        for name in names:
            inventory.add_host(name, ALL, said)
    if connectors:
        from retina_runner.inventory.pyinfra_source import read_words

        read_words(connectors, inventory)
    if problems:
        raise DocumentError(problems)


def _file(path: Path, inventory: Inventory) -> None:
    name = str(path)
    content, mode = _content(path)
    if content.startswith(_VAULT):
        raise DocumentError([_whole(name, "is encrypted by ansible-vault, so that its hosts can't be known",
                                    "keep hosts in plain files and secrets in env:NAME or file:PATH")])  # fmt: skip
    if mode & 0o111 and content.startswith(b"#!"):
        ansible_yaml.read(_script(path), inventory)
    elif path.suffix == ".py":
        from retina_runner.inventory.pyinfra_source import read_file

        read_file(path, inventory)
    elif _is_ssh_config(path, content):
        from retina_runner.inventory.ssh_config import read_hosts

        read_hosts(path, inventory)
    elif path.suffix == ".toml":
        hint = f"ansible-inventory -i {name} --list --export --yaml > hosts.yaml, and use that"
        raise DocumentError([_whole(name, "TOML isn't read here", hint)])
    elif path.suffix in (".yaml", ".yml", ".json") or (not path.suffix and _looks_like_yaml(content)):
        ansible_yaml.read(_document(content, name), inventory)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise DocumentError([Problem(name, line, 1, "", "not UTF-8 text", "save the file as UTF-8")]) from None
        ansible_ini.read(text, name, inventory)


def _document(content: bytes, name: str) -> Document:
    try:
        return parse_document(content, name, Dialect.ANSIBLE)
    except DocumentError as error:
        if not _SECTION.fullmatch(next(iter(_lines(content)), "")):
            raise
        hint = "Ansible's INI? Then give the file a name that ends in .ini"
        raise DocumentError([replace(p, hint=p.hint or hint) for p in error.problems]) from None


def _content(path: Path) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        if not hint.startswith("did"):
            hint = f"for a host of that name write {path}, with the comma" if len(path.parts) == 1 else ""
        raise DocumentError([_whole(str(path), "no such inventory", hint)]) from None
    except OSError as error:
        raise DocumentError([_whole(str(path), error.strerror or str(error))]) from None
    if len(content) > MOST_BYTES:
        raise DocumentError([_whole(str(path), f"is larger than {MOST_BYTES} bytes, so it is hardly an inventory")])
    return content, mode if stat.S_ISREG(mode) else 0


def _lines(content: bytes) -> list[str]:
    text = content[: 1 << 16].decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;"]


def _looks_like_yaml(content: bytes) -> bool:
    first = next(iter(_lines(content)), "")
    return first == "---" or first.startswith("{") or first.split(" #")[0].rstrip().endswith(":")


def _is_ssh_config(path: Path, content: bytes) -> bool:
    if path.name in ("ssh_config", "config") or path.suffix == ".ssh_config":
        return True
    return not path.suffix and _SSH_CONFIG.match(next(iter(_lines(content)), "")) is not None


def _script(path: Path) -> Document:
    """What an Ansible inventory script says to `--list`. Raises DocumentError."""
    try:
        # With the user's own environment: such scripts ask a cloud, with credentials that are there.
        outcome = process.run(
            [os.path.abspath(path), "--list"], limit_s=SCRIPT_LIMIT_S, output_limit_bytes=MOST_BYTES, env=os.environ
        )
    except OSError as error:
        raise DocumentError([_whole(str(path), f"the inventory script can't be run: {error.strerror}")]) from None
    if not outcome.ok:
        raise DocumentError([_whole(str(path), f"the inventory script: {outcome.why()}", f"try: {path} --list")])
    try:
        json.loads(outcome.stdout)
    except ValueError:
        raise DocumentError(
            [_whole(str(path), "the inventory script printed no JSON", f"try: {path} --list")]
        ) from None
    return parse_document(outcome.stdout, f"{path} --list", Dialect.ANSIBLE)


def _variables(folder: Path, inventory: Inventory, problems: list[Problem]) -> None:
    """group_vars/ and host_vars/ beside an inventory: `NAME`, `NAME.yml`, `NAME/…`, for groups and hosts that are there."""
    for group in inventory.groups.values():
        for file in _variable_files(folder / "group_vars", group.name):
            group.file_settings.update(_variable_file(file, inventory, problems))
    if (folder / "host_vars").is_dir():
        for host in inventory.names:
            for file in _variable_files(folder / "host_vars", host):
                inventory.host_file_settings.setdefault(host, {}).update(_variable_file(file, inventory, problems))


def _variable_files(folder: Path, name: str) -> list[Path]:
    """The first of these that is there, as Ansible's DataLoader.find_vars_files: a folder hides a file of the same name."""
    if "/" in name or name.startswith("."):
        return []
    for suffix in _VARIABLE_SUFFIXES:
        path = folder / (name + suffix)
        if path.is_dir():
            return _variable_files_in(path)
        if path.is_file():
            return [path]
    return []


def _variable_files_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in _inner(folder):
        if path.name.startswith(".") or path.name.endswith("~"):
            continue
        if path.is_dir():
            found += [] if path.suffix else _variable_files_in(path)
        elif path.is_file() and path.suffix in _VARIABLE_SUFFIXES:
            found.append(path)
    return found


def _variable_file(path: Path, inventory: Inventory, problems: list[Problem]) -> dict[str, Setting]:
    try:
        content, _ = _content(path)
        if content.startswith(_VAULT):
            inventory.notes.append(f"{path} was not read: it is encrypted by ansible-vault")
            return {}
        document = parse_document(content, str(path), Dialect.ANSIBLE)
    except DocumentError as error:
        problems += [p for p in error.problems if p.message != "is empty" and p not in problems]
        return {}
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        problem = document.problem((), "expected variables: name: value")
        problems += [problem] if problem not in problems else []
        return {}
    return ansible_yaml.settings(document, document.value, ())
