"""OpenSSH's client configuration, ssh_config(5): for each option the first value that applies, and where it was said.

Host, Match (all, host, originalhost, user, localuser, final, canonical), Include and tokens are as OpenSSH's.
`Match exec` would run a command for each host of a fleet: such a block doesn't apply here, and `notes` says so.
"""

from __future__ import annotations

import fnmatch
import getpass
import glob
import itertools
import os
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory.host_words import port_number
from retina_runner.inventory.model import ALL, Inventory, Setting
from retina_runner.inventory.ssh_arguments import split_option

USER_FILE, SYSTEM_FILE = "~/.ssh/config", "/etc/ssh/ssh_config"
MOST_INCLUDES = 16
_MANY = ("identityfile", "certificatefile")
_COMMANDS = ("proxycommand", "localcommand", "remotecommand", "knownhostscommand")
"""The rest of their line is the command, with whatever a shell makes of a `#` in it."""


@dataclass(frozen=True)
class Line:
    """One line. `conditions` are the Host and Match lines that it stands under, all of which must hold; each is numbered."""

    key: str
    value: str
    origin: str
    conditions: tuple[tuple[str, str, int], ...]


@dataclass
class SshConfig:
    """Files that were read, in the order in which OpenSSH would."""

    files: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Hosts that are named without wildcards, and where."""
    notes: list[str] = field(default_factory=list)
    blocks: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def lookup(self, name: str, user: str = "") -> dict[str, list[Setting]]:
        """Option in lower case to its values; one, but for identity and certificate files. Tokens aren't replaced."""
        found: dict[str, list[Setting]] = {}
        final = any("final" in v.lower().split() for line in self.lines for k, v, _ in line.conditions if k == "match")
        for again in (False, True) if final else (False,):
            holds: dict[int, bool] = {}
            for line in self.lines:
                # A block applies or not as its head is read: what it says itself doesn't change that.
                for kind, value, number in line.conditions:
                    if number not in holds:
                        holds[number] = self._holds(kind, value, name, user, found, again)
                if all(holds[number] for *_, number in line.conditions):
                    known = found.setdefault(line.key, [])
                    if not known or (line.key in _MANY and line.value not in [s.value for s in known]):
                        known.append(Setting(line.value, line.origin))
        return found

    def _holds(self, kind: str, value: str, name: str, user: str, found: dict[str, list[Setting]], again: bool) -> bool:
        if kind == "host":
            return matches(_words(value), name)
        words = _words(value)
        address = found["hostname"][0].value.replace("%h", name) if "hostname" in found else name
        while words:
            word = words.pop(0)
            negated, criterion = word.startswith("!"), word.lstrip("!").lower()
            if criterion in ("all",):
                truth = True
            elif criterion in ("final", "canonical"):
                truth = again and criterion == "final"
            else:
                criterion, _, argument = criterion.partition("=") if "=" in criterion else (criterion, "", "")
                argument = argument or (words.pop(0) if words else "")
                patterns = argument.split(",")
                if criterion == "host":
                    truth = matches([p.lower() for p in patterns], address.lower())
                elif criterion == "originalhost":
                    truth = matches([p.lower() for p in patterns], name.lower())
                elif criterion == "user":
                    said = found.get("user", [Setting(user or getpass.getuser(), "")])[0].value
                    truth = matches(patterns, user or said)
                elif criterion == "localuser":
                    truth = matches(patterns, getpass.getuser())
                else:  # exec, localnetwork, tagged, …: see the module's docstring
                    return False
            if truth == negated:
                return False
        return True


def matches(patterns: list[str], name: str) -> bool:
    """PATTERNS of ssh_config(5): one must match, and none with `!`."""
    taken = False
    for pattern in patterns:
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name, plain):
            if pattern.startswith("!"):
                return False
            taken = True
    return taken


def load(paths: tuple[str, ...] | None = None) -> SshConfig:
    """Read the user's and the system's files, or those that are named, which must be there. Raises DocumentError."""
    config = SshConfig(paths or tuple(f for f in (USER_FILE, SYSTEM_FILE) if Path(f).expanduser().is_file()))
    problems: list[Problem] = []
    for path in config.files:
        _read(config, str(Path(path).expanduser()), (), problems, 0)
    if problems:
        raise DocumentError(problems)
    return config


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _without_comment(line: str) -> str:
    """What stands before a `#` that begins a word, as OpenSSH since 8.7 reads a line; not one in quotes."""
    quote = ""
    for place, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and line[place - 1 : place] in (" ", "\t"):
            return line[:place]
    return line


def _is_port(text: str) -> bool:
    try:
        return bool(port_number(text))
    except ValueError:
        return False


def _read(
    config: SshConfig, path: str, outer: tuple[tuple[str, str, int], ...], problems: list[Problem], depth: int
) -> None:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if depth == 0:
            problems.append(Problem(path, 0, 0, "", error.strerror or str(error)))
        return
    if depth > MOST_INCLUDES:
        problems.append(Problem(path, 0, 0, "", "Include goes too deep: a file includes itself"))
        return
    conditions = outer
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        key, value = split_option(line)
        if key not in _COMMANDS:
            key, value = split_option(_without_comment(line))
        if key in ("host", "match"):
            conditions = (*outer, (key, value, next(config.blocks)))
            for word in _words(value) if key == "host" else ():
                if not any(c in word for c in "*?!"):
                    config.names.setdefault(word, f"{path}:{number}:1")
            unsupported = re.search(r"(?i)(?:^|\s)!?(exec|localnetwork|tagged|sessiontype|version|command)[\s=]", value)
            if key == "match" and unsupported:
                config.notes.append(f"{path}:{number}: Match {unsupported[1]} isn't evaluated: its block doesn't apply")
        elif key == "include":
            for included in _included(value, path):
                _read(config, included, conditions, problems, depth + 1)
        elif not value:
            problems.append(Problem(path, number, 1, "", f"{key} has no value", "see ssh_config(5)", line))
        elif key == "port" and not _is_port(value):
            problems.append(Problem(path, number, 1, "", f"{value} is no port", "1 to 65535", line))
        else:
            column = len(line) - len(line.lstrip()) + 1
            config.lines.append(Line(key, value, f"{path}:{number}:{column}", conditions))


def _included(value: str, path: str) -> Iterator[str]:
    # Relative names are below ~/.ssh in a user's file and below /etc/ssh in the system's.
    folder = "/etc/ssh" if path.startswith("/etc/ssh/") else os.path.expanduser("~/.ssh")
    for word in _words(value):
        yield from sorted(glob.glob(os.path.join(folder, os.path.expanduser(word))))


def replace_tokens(text: str, *, host: str, address: str, port: int, user: str) -> str:
    """TOKENS of ssh_config(5), those that can be known before connecting; a leading `~` stays."""
    here = socket.gethostname()
    known = {
        "%": "%", "h": address, "n": host, "p": str(port), "r": user or getpass.getuser(), "u": getpass.getuser(),
        "d": os.path.expanduser("~"), "L": here.partition(".")[0], "l": here, "k": host, "i": str(os.getuid()),
    }  # fmt: skip
    return re.sub(r"%(.)", lambda found: known.get(found[1], found[0]), text)


def read_hosts(path: Path, inventory: Inventory) -> None:
    """Every host that a configuration names without wildcards; how it is reached is looked up there as for any host."""
    config = load((str(path),))
    group = inventory.group("ssh_config")
    for name, origin in config.names.items():
        inventory.add_host(name, ALL, {"retina_ssh_config": Setting(str(path), origin)})
        group.hosts.setdefault(name)
