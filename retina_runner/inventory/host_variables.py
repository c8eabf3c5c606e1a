"""What a host's variables say of its connection, by Ansible's names and pyinfra's, and where they say it.

Secrets are references; a variable that holds a password itself is refused, and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retina_runner.documents import VaultText, nearest
from retina_runner.errors import Problem
from retina_runner.inventory import identity, templates
from retina_runner.inventory.model import Host, Setting

VARIABLES: dict[str, tuple[str, ...]] = {
    "connector": ("ansible_connection", "retina_connector"),
    "address": ("ansible_ssh_host", "ansible_host", "ssh_hostname"),
    "port": ("ansible_ssh_port", "ansible_port", "ssh_port"),
    "user": ("ansible_ssh_user", "ansible_user", "ssh_user"),
    "key_files": ("ansible_ssh_private_key_file", "ansible_private_key_file", "ssh_key"),
    "key_passphrase": ("retina_key_passphrase", "ansible_ssh_private_key_passphrase", "ansible_private_key_passphrase", "ssh_key_password"),
    "password": ("retina_password", "ansible_ssh_password", "ansible_ssh_pass", "ansible_password", "ssh_password"),
    "become": ("ansible_become", "ansible_sudo", "_sudo"),
    "become_user": ("ansible_become_user", "ansible_sudo_user", "_sudo_user"),
    "become_method": ("ansible_become_method",),
    "become_password": (
        "retina_become_password", "ansible_become_password", "ansible_become_pass", "ansible_sudo_pass", "_sudo_password"
    ),
    "python": ("ansible_python_interpreter", "retina_python"),
    "connect_timeout_s": ("ansible_ssh_timeout", "ansible_timeout", "ssh_connect_timeout"),
    "host_keys": ("retina_host_keys", "ansible_ssh_host_key_checking", "ansible_host_key_checking",
                  "ssh_strict_host_key_checking"),
    "known_hosts": ("retina_known_hosts", "ssh_known_hosts_file"),
    "work_directory": ("retina_work_dir",),
    "ssh_config": ("retina_ssh_config", "ssh_config_file"),
}  # fmt: skip
"""A connection's field to the variables that may say it; the first that is set counts, as in Ansible."""
_OURS = "retina_"
_KNOWN = tuple(n for names in VARIABLES.values() for n in names if n.startswith(_OURS))
_REFERENCE = re.compile(r"env:[A-Za-z_]\w*|file:.+")


@dataclass
class HostVariables:
    """Those of one host. What is wrong with one is a problem, and its default stands for it; `origins` tells where each field
    that was asked for has been said."""

    host: Host
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)

    def problem(self, setting: Setting, name: str, message: str, hint: str = "") -> None:
        """Note what is wrong with a variable of that name; its value is never part of the message."""
        # The origin is file:line:column for everything that stands in a file; its line may be the secret: not shown.
        found = re.fullmatch(r"(.+):(\d+):(\d+)", setting.origin)
        file, line, column = (found[1], int(found[2]), int(found[3])) if found else (setting.origin, 0, 0)
        self.problems.append(Problem(file, line, column, name, message, hint))

    def refuse_unknown(self) -> None:
        """A problem for each variable that is called like ours and is none: `retina_host_key: accept-new` would do nothing."""
        for name, setting in self.host.settings.items():
            if name.startswith(_OURS) and name not in _KNOWN:
                self.problem(setting, name, "there is no such variable", nearest(name, _KNOWN))

    def said(self, key: str) -> tuple[str, Setting] | None:
        """The variable that says a field, with its name; None where none does."""
        for name in VARIABLES[key]:
            found = self.host.setting(name)
            if found is not None:
                return name, found
        return None

    def value(self, key: str, default: Any) -> Any:
        """The variable's value with templates put in."""
        said = self.said(key)
        if said is None:
            return default
        name, setting = said
        self.origins[key] = f"{setting.origin} {name}"
        return self.rendered(name, setting, default)

    def rendered(self, name: str, setting: Setting, default: Any) -> Any:
        """A setting with templates put in; the default, and a problem, where they can't be."""
        if isinstance(setting.value, VaultText):
            self.problem(
                setting, name, "is encrypted by ansible-vault, so that it can't be known here",
                "give it plain; secrets as env:NAME or file:PATH",
            )  # fmt: skip
            return default
        try:
            return templates.render(setting.value, self.host)
        except templates.CannotRender as error:
            why = f"{error}{self._unread()}"
            self.problem(setting, name, why, "only {{ variable }} is put in; write the value itself")
            return default

    def text(self, key: str, default: str) -> str:
        """As text; `number`, `flag` and `secret` likewise."""
        value = self.value(key, default)
        if isinstance(value, (dict, list)):
            self.bad(key, "expected text, found a " + ("mapping" if isinstance(value, dict) else "list"))
            return default
        return str(value)

    def bad(self, key: str, message: str, hint: str = "") -> None:
        """What a field says is wrong: a problem of the variable that says it."""
        said = self.said(key)
        if said is not None:
            self.problem(said[1], said[0], message, hint)

    def number(self, key: str, read: Callable[[str], Any], default: Any, expected: str) -> Any:
        """`read` raises ValueError for what isn't `expected`."""
        text = self.text(key, "")
        if not text:
            return default
        try:
            return read(text)
        except ValueError:
            self.bad(key, f"{text} is not {expected}")
            return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, default)
        text = str(value).strip().lower()
        if text in ("true", "yes", "on", "1", "y", "t"):
            return True
        if text in ("false", "no", "off", "0", "n", "f", ""):
            return False
        self.bad(key, f"{text} is neither yes nor no")
        return default

    def _unread(self) -> str:
        """What may be why a variable is missing: files that only Ansible can read."""
        notes = self.host.notes
        return f"; {notes[0]}" + (f", and {len(notes) - 1} more" if len(notes) > 1 else "") if notes else ""

    def secret(self, key: str) -> str:
        """A reference, `env:NAME` or `file:PATH`; empty where nothing, or the secret itself, is given."""
        said = self.said(key)
        if said is None or said[1].value == "":
            return ""
        name, setting = said
        self.origins[key] = f"{setting.origin} {name}"
        way = f"{VARIABLES[key][0]}: env:NAME or file:PATH; \"{{{{ lookup('env', 'NAME') }}}}\" does for Ansible too"
        if isinstance(setting.value, VaultText):
            self.problem(setting, name, "is encrypted by ansible-vault, whose password isn't known here", f"give {way}")
            return ""
        text = str(setting.value)
        seen = 0
        while templates.is_template(text) and not templates.reference(text):
            inner = re.fullmatch(r"\{\{\s*(\w+)\s*\}\}", text.strip())
            found = self.host.setting(inner[1]) if inner else None
            seen += 1
            if found is None or seen > templates.MOST_DEPTH:
                why = "a template that only Ansible can evaluate"
                if inner and found is None:
                    why = f"stands for {inner[1]}, which is said nowhere that can be read here{self._unread()}"
                self.problem(setting, name, why, f"give {way}")
                return ""
            if isinstance(found.value, VaultText):
                self.problem(setting, name, "stands for what ansible-vault has encrypted", f"give {way}")
                return ""
            text, setting = str(found.value), found
        text = templates.reference(text) or text
        if not _REFERENCE.fullmatch(text):
            self.problem(
                setting, name, "holds the secret itself (not shown); here a secret is given by reference", f"give {way}"
            )
            return ""
        kind, _, path = text.partition(":")
        return f"file:{identity.place(path)}" if kind == "file" else text
