"""From a host's variables to its connection: Ansible's names and pyinfra's, then ssh_config, then defaults.

Each value of the connection remembers where it was said (`Explained`), so that `inventory --explain` can tell.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retina_runner.errors import Problem
from retina_runner.inventory import bastions, identity, ssh_arguments, ssh_config
from retina_runner.inventory.connection import ACCEPT_NEW, CONNECT_TIMEOUT_S, STRICT, Connection
from retina_runner.inventory.host_variables import HostVariables
from retina_runner.inventory.host_words import port_number, port_or
from retina_runner.inventory.model import Host, Setting
from retina_runner.units import parse_duration

ARGUMENTS = ("ansible_ssh_extra_args", "ansible_ssh_common_args", "ansible_ssh_args")
_CONNECTORS = {
    "smart": "ssh", "ssh": "ssh", "ansible.builtin.ssh": "ssh", "paramiko": "ssh", "paramiko_ssh": "ssh",
    "ansible.netcommon.libssh": "ssh", "community.general.paramiko_ssh": "ssh", "local": "local", "ansible.builtin.local": "local",
    "docker": "docker", "community.docker.docker": "docker", "community.docker.docker_api": "docker",
    "podman": "podman", "containers.podman.podman": "podman", "chroot": "chroot", "community.general.chroot": "chroot",
}  # fmt: skip


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
    return (None if building.variables.problems else explained), building.variables.problems


_PASSWORD = re.compile(r"\bsshpass\s+(-[fdPo]\s*\S+\s+|-[ev]+\s+)*-[ev]*p")
"""An sshpass(1) that is given the password itself, behind whatever other options; not the -p of the ssh that it calls."""


class _Building:
    def __init__(self, host: Host, configurations: Configurations):
        self.host, self.configurations = host, configurations
        self.variables = HostVariables(host)

    def build(self) -> Explained:
        self.variables.refuse_unknown()
        connector = self._connector()
        arguments = self._arguments()
        file = arguments.pop("configfile", [Setting(self.variables.text("ssh_config", ""), "")])[0].value
        notes = list(self.host.notes)
        if connector == "ssh":
            config = self.configurations.of(file)
            notes += config.notes
        else:
            config = ssh_config.SshConfig(())
        name = self.variables.text("address", "")
        plain = config.lookup(name or self.host.name, self.variables.text("user", ""))
        options = {**plain, **arguments}  # as on ssh's command line: it comes before every file
        for key in ("identityfile", "certificatefile"):
            options[key] = [*arguments.get(key, []), *plain.get(key, [])]

        def option(key: str, into: str) -> str:
            """An ssh_config option, where no variable said it."""
            if into in self.variables.origins or not options.get(key):
                return ""
            self.variables.origins[into] = options[key][0].origin
            return str(options[key][0].value)

        user = (
            self.variables.text("user", "")
            or option("user", "user")
            or (getpass.getuser() if connector == "ssh" else "")
        )
        port = self.variables.number("port", port_number, None, "a port, 1 to 65535") or port_or(option("port", "port"))
        address = name
        if options.get("hostname"):
            address = ssh_config.replace_tokens(str(options["hostname"][0].value), host=name or self.host.name,
                                                address=name or self.host.name, port=port, user=user)  # fmt: skip
            self.variables.origins["address"] = options["hostname"][0].origin
        address = address or self.host.name
        told: dict[str, Any] = {"host": name or self.host.name, "address": address, "port": port, "user": user}

        said, origins = identity.of_options(options, told)
        # An inventory's key counts before those of ssh_config, as ssh's -i does; both are tried.
        key = self.variables.text("key_files", "")
        keys = identity.files_of(shlex.quote(key), told) if key else ()
        said["key_files"] = tuple(dict.fromkeys((*keys, *said.get("key_files", ()))))
        known = identity.files_of(self.variables.text("known_hosts", ""), told)
        if known:
            system = identity.of_options({k: v for k, v in options.items() if k == "globalknownhostsfile"}, told)[0]
            said["known_hosts"] = (*known, *system["known_hosts"][2:])
        for field_, origin in origins.items():
            self.variables.origins.setdefault(field_, origin)
        for setting, key, why, hint in identity.refused(options):
            self.variables.problem(setting, key, why, hint)
        base = Connection(
            host=self.host.name, address=address, connector=connector, port=port, user=user,
            key_passphrase=self.variables.secret("key_passphrase"), password=self.variables.secret("password"),
            host_keys=self._host_keys(option),
            become=self.variables.flag("become", False), become_user=self.variables.text("become_user", "root"),
            become_method=self._become_method(), become_password=self.variables.secret("become_password"),
            python=self._python(), work_directory=self._work_directory(),
            connect_timeout_s=self.variables.number("connect_timeout_s", _seconds, None, "a number of seconds above 0")
            or _seconds_or(option("connecttimeout", "connect_timeout_s")),
            ssh_config=" ".join(config.files), **said,
        )  # fmt: skip
        jump, command = option("proxyjump", "jump"), option("proxycommand", "proxy_command")
        if jump and jump.lower() != "none":
            base = self._behind(base, ssh_config.replace_tokens(jump, **told), config, "jump")
        elif command and command.lower() != "none":
            base = self._by_command(base, ssh_config.replace_tokens(command, **told), config)
        return Explained(base, dict(self.variables.origins), tuple(notes))

    def _connector(self) -> str:
        text = self.variables.text("connector", "ssh")
        if text in _CONNECTORS:
            return _CONNECTORS[text]
        if self.variables.said("connector") and self.variables.said("connector")[0] == "retina_connector":  # type: ignore[index]
            return text
        self.variables.bad(
            "connector", f"hosts with the connection {text} can't be reached", "ssh, local, docker, podman or chroot"
        )
        return text

    def _arguments(self) -> dict[str, list[Setting]]:
        found: dict[str, list[Setting]] = {}
        for name in ARGUMENTS:
            setting = self.host.setting(name)
            if setting is None or setting.value == "":
                continue
            text = str(self.variables.rendered(name, setting, ""))
            try:
                for key, value in ssh_arguments.options(text):
                    known = found.setdefault(key, [])
                    if not known or key in ("identityfile", "certificatefile"):
                        known.append(Setting(value, f"{setting.origin} {name}"))
            except ValueError as error:
                self.variables.problem(setting, name, str(error), "put it into ~/.ssh/config or leave it out")
        return found

    def _host_keys(self, option: Callable[[str, str], str]) -> str:
        value = str(self.variables.value("host_keys", option("stricthostkeychecking", "host_keys") or STRICT)).lower()
        # What asks, asks nobody here, and what trusts whoever answers is no choice of ours: both are strict.
        if value in (STRICT, "yes", "true", "ask", "no", "false", "off"):
            return STRICT
        if value == ACCEPT_NEW:
            return ACCEPT_NEW
        self.variables.bad("host_keys", f"{value} is no way to treat host keys", f"{STRICT} or {ACCEPT_NEW}")
        return STRICT

    def _become_method(self) -> str:
        method = self.variables.text("become_method", "sudo")
        if method.rpartition(".")[2] != "sudo":
            self.variables.bad("become_method", f"{method} can't be used here", "sudo, or log in as root")
        return "sudo"

    def _python(self) -> str:
        text = self.variables.text("python", "python3")
        return "python3" if text.startswith("auto") or not text else text

    def _work_directory(self) -> str:
        text = self.variables.text("work_directory", "")
        if text and not text.startswith("/"):
            # No shell reads it there: a ~ would become a folder of that name.
            self.variables.bad("work_directory", f"{text} is no absolute path", "for example /data/retina-run")
        return text

    def _behind(self, base: Connection, jump: str, config: ssh_config.SshConfig, key: str) -> Connection:
        try:
            hops = bastions.hops_of(base, jump, config)
        except ValueError as error:
            self.variables.problems.append(
                Problem(self.variables.origins.get(key, ""), 0, 0, self.host.name, str(error))
            )
            return base
        return replace(base, jump=",".join(bastions.told(h) for h in hops), hops=hops)

    def _by_command(self, base: Connection, command: str, config: ssh_config.SshConfig) -> Connection:
        """A command that is a jump is one; any other stays a command."""
        jump, key = bastions.jump_of(command)
        if not jump:
            if _PASSWORD.search(command):
                # It would be recorded with the run, and everybody on this machine could read it in the list of processes.
                self.variables.problems.append(
                    Problem(
                        self.variables.origins.get("proxy_command", ""), 0, 0, self.host.name,
                        "its ProxyCommand holds a password (not shown)",
                        "sshpass -f FILE, or -e with SSHPASS in the environment; better: ProxyJump with a key",
                    )
                )  # fmt: skip
            return replace(base, proxy_command=command)
        jumped = self._behind(base, jump, config, "proxy_command")
        self.variables.origins["jump"] = self.variables.origins.pop("proxy_command")
        if key and jumped.hops:
            last = replace(
                jumped.hops[-1], key_files=(identity.place(os.path.expanduser(key)), *jumped.hops[-1].key_files)
            )
            jumped = replace(jumped, hops=(*jumped.hops[:-1], last))
        return jumped


def _seconds(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else parse_duration(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _seconds_or(text: str) -> float:
    return float(text) if text.isdigit() and int(text) > 0 else CONNECT_TIMEOUT_S
