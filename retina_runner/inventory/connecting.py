"""From a host's variables to its connection: Ansible's names and pyinfra's, then ssh_config, then defaults.

Each value of the connection remembers where it was said (`Explained`), so that `inventory --explain` can tell. Secrets
are references; a variable that holds a password itself is refused, and never shown.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retina_runner.documents import VaultText
from retina_runner.errors import Problem
from retina_runner.inventory import identity, ssh_arguments, ssh_config, templates
from retina_runner.inventory.connection import ACCEPT_NEW, CONNECT_TIMEOUT_S, STRICT, Connection
from retina_runner.inventory.host_words import split_port
from retina_runner.inventory.model import Host, Setting
from retina_runner.units import parse_duration

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
ARGUMENTS = ("ansible_ssh_extra_args", "ansible_ssh_common_args", "ansible_ssh_args")
SECRETS = ("key_passphrase", "password", "become_password")
_REFERENCE = re.compile(r"env:[A-Za-z_]\w*|file:.+")
_CONNECTORS = {
    "smart": "ssh", "ssh": "ssh", "ansible.builtin.ssh": "ssh", "paramiko": "ssh", "paramiko_ssh": "ssh",
    "ansible.netcommon.libssh": "ssh", "community.general.paramiko_ssh": "ssh", "local": "local", "ansible.builtin.local": "local",
    "docker": "docker", "community.docker.docker": "docker", "community.docker.docker_api": "docker",
    "podman": "podman", "containers.podman.podman": "podman", "chroot": "chroot", "community.general.chroot": "chroot",
}  # fmt: skip
MOST_HOPS = 8


@dataclass
class Explained:
    """A connection and, for each of its fields that isn't a default, where it was said."""

    connection: Connection
    origins: Mapping[str, str]
    """Field to `file:line:column variable`."""
    notes: tuple[str, ...] = ()


class Configurations:
    """The ssh_config files of a resolution, each read once. `files` None: the user's and the system's."""

    def __init__(self, files: tuple[str, ...] | None = None):
        self._default = files
        self._read: dict[tuple[str, ...] | None, ssh_config.SshConfig] = {}

    def of(self, file: str) -> ssh_config.SshConfig:
        """Raises DocumentError for a file that isn't there. `none` is no file at all, as for ssh's -F."""
        wanted = (file,) if file else self._default
        if file == "none" or wanted == ():
            return ssh_config.SshConfig(())
        if wanted not in self._read:
            self._read[wanted] = ssh_config.load(wanted)
        return self._read[wanted]


def connect(host: Host, configurations: Configurations) -> tuple[Explained | None, list[Problem]]:
    """The connection, or everything that is wrong with it. Raises DocumentError for a bad ssh_config."""
    building = _Building(host, configurations)
    explained = building.build()
    return (None if building.problems else explained), building.problems


@dataclass
class _Building:
    host: Host
    configurations: Configurations
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)

    def _problem(self, setting: Setting, name: str, message: str, hint: str = "") -> None:
        # The origin is file:line:column for everything that stands in a file; its line may be the secret: not shown.
        found = re.fullmatch(r"(.+):(\d+):(\d+)", setting.origin)
        file, line, column = (found[1], int(found[2]), int(found[3])) if found else (setting.origin, 0, 0)
        self.problems.append(Problem(file, line, column, name, message, hint))

    def _said(self, key: str) -> tuple[str, Setting] | None:
        for name in VARIABLES[key]:
            found = self.host.setting(name)
            if found is not None:
                return name, found
        return None

    def _value(self, key: str, default: Any) -> Any:
        """The variable's value with templates put in."""
        said = self._said(key)
        if said is None:
            return default
        name, setting = said
        self.origins[key] = f"{setting.origin} {name}"
        return self._rendered(name, setting, default)

    def _rendered(self, name: str, setting: Setting, default: Any) -> Any:
        if isinstance(setting.value, VaultText):
            self._problem(
                setting, name, "is encrypted by ansible-vault, so that it can't be known here",
                "give it plain; secrets as env:NAME or file:PATH",
            )  # fmt: skip
            return default
        try:
            return templates.render(setting.value, self.host)
        except templates.CannotRender as error:
            self._problem(setting, name, str(error), "only {{ variable }} is put in; write the value itself")
            return default

    def _text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if isinstance(value, (dict, list)):
            self._bad(key, "expected text, found a " + ("mapping" if isinstance(value, dict) else "list"))
            return default
        return str(value)

    def _bad(self, key: str, message: str, hint: str = "") -> None:
        said = self._said(key)
        if said is not None:
            self._problem(said[1], said[0], message, hint)

    def _number(self, key: str, read: Callable[[str], Any], default: Any, expected: str) -> Any:
        text = self._text(key, "")
        if not text:
            return default
        try:
            return read(text)
        except ValueError:
            self._bad(key, f"{text} is not {expected}")
            return default

    def _flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        text = str(value).strip().lower()
        if text in ("true", "yes", "on", "1", "y", "t"):
            return True
        if text in ("false", "no", "off", "0", "n", "f", ""):
            return False
        self._bad(key, f"{text} is neither yes nor no")
        return default

    def _secret(self, key: str) -> str:
        said = self._said(key)
        if said is None or said[1].value == "":
            return ""
        name, setting = said
        self.origins[key] = f"{setting.origin} {name}"
        way = f"{VARIABLES[key][0]}: env:NAME or file:PATH; \"{{{{ lookup('env', 'NAME') }}}}\" does for Ansible too"
        if isinstance(setting.value, VaultText):
            self._problem(
                setting, name, "is encrypted by ansible-vault, whose password isn't known here", f"give {way}"
            )
            return ""
        text = str(setting.value)
        seen = 0
        while templates.is_template(text) and not templates.reference(text):
            inner = re.fullmatch(r"\{\{\s*(\w+)\s*\}\}", text.strip())
            found = self.host.setting(inner[1]) if inner else None
            seen += 1
            if found is None or seen > templates.MOST_DEPTH:
                self._problem(setting, name, "a template that only Ansible can evaluate", f"give {way}")
                return ""
            if isinstance(found.value, VaultText):
                self._problem(setting, name, "stands for what ansible-vault has encrypted", f"give {way}")
                return ""
            text, setting = str(found.value), found
        text = templates.reference(text) or text
        if not _REFERENCE.fullmatch(text):
            self._problem(
                setting, name, "holds the secret itself (not shown); here a secret is given by reference", f"give {way}"
            )
            return ""
        return text

    # -- the whole ---------------------------------------------------------------------------------------------------

    def build(self) -> Explained:
        connector = self._connector()
        arguments = self._arguments()
        file = arguments.pop("configfile", [Setting(self._text("ssh_config", ""), "")])[0].value
        notes = list(self.host.notes)
        if connector == "ssh":
            config = self.configurations.of(file)
            notes += config.notes
        else:
            config = ssh_config.SshConfig(())
        name = self._text("address", "")
        plain = config.lookup(name or self.host.name, self._text("user", ""))
        options = {**plain, **arguments}  # as on ssh's command line: it comes before every file
        for key in ("identityfile", "certificatefile"):
            options[key] = [*arguments.get(key, []), *plain.get(key, [])]

        def option(key: str, into: str) -> str:
            """An ssh_config option, where no variable said it."""
            if into in self.origins or not options.get(key):
                return ""
            self.origins[into] = options[key][0].origin
            return str(options[key][0].value)

        user = self._text("user", "") or option("user", "user") or (getpass.getuser() if connector == "ssh" else "")
        port = self._number("port", _port, None, "a port, 1 to 65535") or _port_or(option("port", "port"))
        address = name
        if options.get("hostname"):
            address = ssh_config.replace_tokens(str(options["hostname"][0].value), host=name or self.host.name,
                                                address=name or self.host.name, port=port, user=user)  # fmt: skip
            self.origins["address"] = options["hostname"][0].origin
        address = address or self.host.name
        told: dict[str, Any] = {"host": name or self.host.name, "address": address, "port": port, "user": user}

        said, origins = identity.of_options(options, told)
        # An inventory's key counts before those of ssh_config, as ssh's -i does; both are tried.
        keys = identity.files_of(shlex.quote(self._text("key_files", "")), told) if self._said("key_files") else ()
        said["key_files"] = tuple(dict.fromkeys((*keys, *said.get("key_files", ()))))
        known = identity.files_of(self._text("known_hosts", ""), told)
        if known:
            system = identity.of_options({k: v for k, v in options.items() if k == "globalknownhostsfile"}, told)[0]
            said["known_hosts"] = (*known, *system["known_hosts"][2:])
        for field_, origin in origins.items():
            self.origins.setdefault(field_, origin)
        for setting, key, why, hint in identity.refused(options):
            self._problem(setting, key, why, hint)
        base = Connection(
            host=self.host.name, address=address, connector=connector, port=port, user=user,
            key_passphrase=self._secret("key_passphrase"), password=self._secret("password"),
            host_keys=self._host_keys(option),
            become=self._flag("become", False), become_user=self._text("become_user", "root"),
            become_method=self._become_method(), become_password=self._secret("become_password"),
            python=self._python(), work_directory=self._text("work_directory", ""),
            connect_timeout_s=self._number("connect_timeout_s", _seconds, None, "a number of seconds above 0")
            or _seconds_or(option("connecttimeout", "connect_timeout_s")),
            ssh_config=" ".join(config.files), **said,
        )  # fmt: skip
        jump, command = option("proxyjump", "jump"), option("proxycommand", "proxy_command")
        if jump and jump.lower() != "none":
            base = self._behind(base, ssh_config.replace_tokens(jump, **told), config, "jump")
        elif command and command.lower() != "none":
            base = self._by_command(base, ssh_config.replace_tokens(command, **told), config)
        return Explained(base, dict(self.origins), tuple(notes))

    def _connector(self) -> str:
        text = self._text("connector", "ssh")
        if text in _CONNECTORS:
            return _CONNECTORS[text]
        if self._said("connector") and self._said("connector")[0] == "retina_connector":  # type: ignore[index]
            return text
        self._bad(
            "connector", f"hosts with the connection {text} can't be reached", "ssh, local, docker, podman or chroot"
        )
        return text

    def _arguments(self) -> dict[str, list[Setting]]:
        found: dict[str, list[Setting]] = {}
        for name in ARGUMENTS:
            setting = self.host.setting(name)
            if setting is None or setting.value == "":
                continue
            text = str(self._rendered(name, setting, ""))
            try:
                for key, value in ssh_arguments.options(text):
                    known = found.setdefault(key, [])
                    if not known or key in ("identityfile", "certificatefile"):
                        known.append(Setting(value, f"{setting.origin} {name}"))
            except ValueError as error:
                self._problem(setting, name, str(error), "put it into ~/.ssh/config or leave it out")
        return found

    def _host_keys(self, option: Callable[[str, str], str]) -> str:
        value = str(self._value("host_keys", option("stricthostkeychecking", "host_keys") or STRICT)).lower()
        # What asks, asks nobody here, and what trusts whoever answers is no choice of ours: both are strict.
        if value in (STRICT, "yes", "true", "ask", "no", "false", "off"):
            return STRICT
        if value == ACCEPT_NEW:
            return ACCEPT_NEW
        self._bad("host_keys", f"{value} is no way to treat host keys", f"{STRICT} or {ACCEPT_NEW}")
        return STRICT

    def _become_method(self) -> str:
        method = self._text("become_method", "sudo")
        if method.rpartition(".")[2] != "sudo":
            self._bad("become_method", f"{method} can't be used here", "sudo, or log in as root")
        return "sudo"

    def _python(self) -> str:
        text = self._text("python", "python3")
        return "python3" if text.startswith("auto") or not text else text

    def _behind(self, base: Connection, jump: str, config: ssh_config.SshConfig, key: str) -> Connection:
        try:
            hops = _hops(base, jump, config)
        except ValueError as error:
            self.problems.append(Problem(self.origins.get(key, ""), 0, 0, self.host.name, str(error)))
            return base
        return replace(base, jump=",".join(_told(h) for h in hops), hops=hops)

    def _by_command(self, base: Connection, command: str, config: ssh_config.SshConfig) -> Connection:
        """`ssh -W %h:%p bastion` is a jump, the form that Ansible's own documentation shows; any other stays a command."""
        found = re.fullmatch(r"ssh\s+(.*)", command.strip())
        words = found[1].split() if found else []
        if "-W" in words and not any(c in command for c in "|;&<>$`"):
            place = words.index("-W")
            rest = words[:place] + words[place + 2 :]
            valued = ("-o", "-i", "-p", "-l", "-F")
            target = [w for n, w in enumerate(rest) if w[0] != "-" and (n == 0 or rest[n - 1] not in valued)]
            rest = [w for w in rest if w not in target[:1]]
            try:
                options = dict(reversed(ssh_arguments.options(" ".join(w.strip("'\"") for w in rest))))
            except ValueError:
                options = {"other": ""}
            if len(target) == 1 and set(options) <= {"user", "port", "identityfile", "stricthostkeychecking"}:
                user, _, name = target[0].rpartition("@")
                user = user or options.get("user", "")
                port = f":{options['port']}" if "port" in options else ""
                jumped = self._behind(base, f"{user}@{name}{port}" if user else name + port, config, "proxy_command")
                if "identityfile" in options and jumped.hops:
                    key = os.path.expanduser(options["identityfile"])
                    last = replace(jumped.hops[-1], key_files=(key, *jumped.hops[-1].key_files))
                    jumped = replace(jumped, hops=(*jumped.hops[:-1], last))
                return jumped
        return replace(base, proxy_command=command)


def _hops(behind: Connection, jump: str, config: ssh_config.SshConfig, depth: int = 0) -> tuple[Connection, ...]:
    """The bastions of a ProxyJump, each looked up in ssh_config as a host of its own. Raises ValueError."""
    hops: list[Connection] = []
    for number, word in enumerate(w.strip() for w in jump.split(",")):
        user, _, place = word.removeprefix("ssh://").rpartition("@")
        name, port = split_port(place.rstrip("/"))
        if not name:
            raise ValueError(f"{jump!r} is no ProxyJump: [user@]host[:port]")
        options = config.lookup(name, user)

        def first(key: str, options: Mapping[str, list[Setting]] = options) -> str:
            return str(options[key][0].value) if options.get(key) else ""

        address = first("hostname").replace("%h", name) or name
        number_ = port or _port_or(first("port"))
        who = user or first("user") or behind.user
        told: dict[str, Any] = {"host": name, "address": address, "port": number_, "user": who}
        checking = first("stricthostkeychecking").lower()
        said, origins = identity.of_options(options, told)
        for setting, key, why, _ in identity.refused(options):
            raise ValueError(f"{name}, a bastion: {key} ({setting.origin}): {why}")
        if not said.get("key_files"):
            said.update(key_files=behind.key_files, certificate_files=behind.certificate_files)
            said.setdefault("identities_only", behind.identities_only)
        if "known_hosts" not in origins:
            said["known_hosts"] = behind.known_hosts
        hops.append(
            Connection(
                host=name, address=address, port=number_, user=who, key_passphrase=behind.key_passphrase,
                host_keys=ACCEPT_NEW if checking == ACCEPT_NEW else behind.host_keys if not checking else STRICT,
                connect_timeout_s=behind.connect_timeout_s, ssh_config=behind.ssh_config, **said,
            )
        )  # fmt: skip
        own = first("proxyjump")
        if number == 0 and own and own.lower() != "none":
            if depth >= MOST_HOPS:
                raise ValueError(f"{name}: its ProxyJump leads to itself, or over more than {MOST_HOPS} bastions")
            hops[:0] = _hops(behind, own, config, depth + 1)
    return tuple(hops)


def _told(hop: Connection) -> str:
    address = f"[{hop.address}]" if ":" in hop.address else hop.address
    return (f"{hop.user}@" if hop.user else "") + address + (f":{hop.port}" if hop.port != 22 else "")


def _port(text: str) -> int:
    if not 0 < int(text) < 65536:
        raise ValueError(text)
    return int(text)


def _port_or(text: str) -> int:
    return _port(text) if text.isdigit() and 0 < int(text) < 65536 else 22


def _seconds(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else parse_duration(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _seconds_or(text: str) -> float:
    return float(text) if text.isdigit() and int(text) > 0 else CONNECT_TIMEOUT_S
