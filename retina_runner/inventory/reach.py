"""From a host's variables, and what ~/.ssh/config says of it, to a `Connection`. Ansible's names mean what they mean there.

The inventory goes before ~/.ssh/config, as the command line of ssh(1) does. A password that stands in an inventory as
text is refused and not shown: it is named by reference, `env:NAME` or `file:PATH`.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
from pathlib import Path
from typing import Any

from retina_runner.documents import VaultText
from retina_runner.errors import Problem
from retina_runner.inventory.connection import CONNECT_TIMEOUT_S, Connection
from retina_runner.inventory.model import Host, Setting

PASSWORDS = {
    "password": ("retina_password", "ansible_password", "ansible_ssh_pass", "ansible_ssh_password"),
    "become_password": (
        "retina_become_password",
        "ansible_become_password",
        "ansible_become_pass",
        "ansible_sudo_pass",
    ),
    "key_passphrase": ("retina_key_passphrase", "ansible_ssh_private_key_passphrase"),
}
_REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)\Z")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")


def connection(host: Host) -> tuple[Connection | None, list[Problem]]:
    """How to reach the host, or what is wrong with what the inventory says about that."""
    problems: list[Problem] = []

    def wrong(name: str, message: str, hint: str = "") -> None:
        problems.append(_problem(host.settings[name], f"{host.name}: {name}", message, hint))

    def flag(*names: str, default: bool) -> bool:
        for name in names:
            if name in host.settings:
                text = str(host.settings[name].value).lower()
                if text in _TRUE or text in _FALSE:
                    return text in _TRUE
                wrong(name, "expected true or false")
        return default

    def number(*names: str, default: float) -> float:
        for name in names:
            if name in host.settings:
                try:
                    return float(str(host.settings[name].value))
                except ValueError:
                    wrong(name, f"expected a number, found {str(host.settings[name].value)!r}")
        return default

    secrets = {field: _secret(host, names, wrong) for field, names in PASSWORDS.items()}
    connector = str(host.value("ansible_connection", default="ssh"))
    connector = {"smart": "ssh", "paramiko": "ssh", "paramiko_ssh": "ssh", "ansible.builtin.ssh": "ssh"}.get(
        connector, connector
    )
    connector = "local" if connector in ("local", "ansible.builtin.local") else connector
    if connector not in ("ssh", "local"):
        wrong("ansible_connection", f"{connector} can't be used here", "ssh and local can")
    method = str(host.value("ansible_become_method", default="sudo"))
    if method not in ("sudo", "ansible.builtin.sudo"):
        wrong("ansible_become_method", f"{method} can't be used here", "sudo can; or log in as root")
    options, unknown = ssh_arguments(
        " ".join(str(host.value(n, default="")) for n in ("ansible_ssh_common_args", "ansible_ssh_extra_args"))
    )
    if unknown:
        name = "ansible_ssh_common_args" if "ansible_ssh_common_args" in host.settings else "ansible_ssh_extra_args"
        wrong(name, f"{unknown} can't be used here", "-o ProxyJump=, ProxyCommand=, StrictHostKeyChecking=, "
              "UserKnownHostsFile=, -J, -F, -i, -p, -l can")  # fmt: skip
    config = _ssh_config(host, options)
    policy = str(host.value("retina_host_keys", default=_policy(options.get("stricthostkeychecking"), config)))
    if policy not in ("strict", "accept-new"):
        wrong("retina_host_keys", f"{policy} can't be used here", "strict, or accept-new for hosts that are new")
    address = str(host.value("ansible_host", "ansible_ssh_host", default=config.get("hostname", host.name)))
    port = int(
        number("ansible_port", "ansible_ssh_port", default=float(options.get("port") or config.get("port") or 22))
    )
    user = str(
        host.value(
            "ansible_user", "ansible_ssh_user", default=options.get("user") or config.get("user") or getpass.getuser()
        )
    )
    key = host.value("ansible_ssh_private_key_file", "ansible_private_key_file", default=options.get("identityfile"))
    timeout_s = number("ansible_ssh_timeout", "ansible_timeout",
                       default=float(config.get("connecttimeout") or CONNECT_TIMEOUT_S))  # fmt: skip
    become = flag("ansible_become", "ansible_sudo", default=False)
    known = host.value(
        "retina_known_hosts", default=options.get("userknownhostsfile") or config.get("userknownhostsfile")
    )
    if problems:
        return None, problems
    jump = options.get("proxyjump") or (config.get("proxyjump", "") if "proxycommand" not in options else "")
    command = options.get("proxycommand") or ("" if jump else config.get("proxycommand", ""))
    return Connection(
        host=host.name,
        address=address,
        connector=connector,
        port=port,
        user=user,
        key_files=tuple([str(key)] if key else config.get("identityfile", [])),
        use_agent=str(options.get("identitiesonly") or config.get("identitiesonly", "no")).lower() != "yes",
        jump="" if jump.lower() == "none" else jump,
        proxy_command="" if command.lower() == "none" else _tokens(command, address, port, user),
        host_keys=policy,
        known_hosts=tuple(str(known).split()) if known else Connection.known_hosts,
        become=become,
        become_user=str(host.value("ansible_become_user", "ansible_sudo_user", default="root")),
        python=_python(host.value("ansible_python_interpreter")),
        connect_timeout_s=timeout_s,
        work_directory=str(host.value("retina_work_dir", default="")),
        **secrets,
    ), []


def _problem(setting: Setting, path: str, message: str, hint: str) -> Problem:
    found = re.fullmatch(r"(.*):(\d+):(\d+)", setting.origin)
    file, line, column = (found[1], int(found[2]), int(found[3])) if found else (setting.origin, 0, 0)
    return Problem(file, line, column, path, message, hint)


def _secret(host: Host, names: tuple[str, ...], wrong: Any) -> str:
    for name in names:
        if name not in host.settings:
            continue
        value = host.settings[name].value
        text = str(value)
        lookup = re.fullmatch(r"\{\{\s*lookup\(\s*['\"]env['\"]\s*,\s*['\"](\w+)['\"]\s*\)\s*\}\}", text)
        if lookup:
            return f"env:{lookup[1]}"
        if isinstance(value, VaultText):
            wrong(name, "is encrypted by ansible-vault, which isn't opened here", f"{names[0]}: env:NAME or file:PATH")
        elif _REFERENCE.match(text):
            return text
        else:
            wrong(name, "a secret stands here as text (it isn't shown)", f"{names[0]}: env:NAME or file:PATH")
        return ""
    return ""


def _python(value: Any) -> str:
    text = str(value or "python3")
    return "python3" if text.startswith("auto") else text


def _policy(option: str | None, config: dict[str, Any]) -> str:
    """accept-new only where it is said. `no` and `ask` (and ansible_host_key_checking: false) would trust whoever answers,
    or ask where nobody is: both are strict here."""
    return "accept-new" if str(option or config.get("stricthostkeychecking")).lower() == "accept-new" else "strict"


def ssh_arguments(text: str) -> tuple[dict[str, str], str]:
    """(options by lower-case name, the first word that isn't known) of ssh(1)'s own arguments as Ansible takes them."""
    short = {"-J": "proxyjump", "-F": "config", "-i": "identityfile", "-p": "port", "-l": "user"}
    harmless = ("controlmaster", "controlpersist", "controlpath", "forwardagent", "compression", "serveraliveinterval",
                "serveralivecountmax", "connecttimeout", "preferredauthentications", "loglevel", "batchmode",
                "pubkeyauthentication", "passwordauthentication", "addressfamily", "tcpkeepalive")  # fmt: skip
    known = ("proxyjump", "proxycommand", "stricthostkeychecking", "userknownhostsfile", "identitiesonly", "identityfile",
             "port", "user")  # fmt: skip
    found: dict[str, str] = {}
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        return {}, str(error)
    for word in words:
        if word in ("-C", "-A", "-a", "-q", "-4", "-6", "-T", "-x"):
            continue
        option = word[:2]
        value = word[2:] or next(words, "")
        if option in short and value:
            found[short[option]] = value
        elif option == "-o" and value:
            name, _, content = value.replace(" ", "=", 1).partition("=") if "=" not in value else value.partition("=")
            if name.strip().lower() in known:
                found[name.strip().lower()] = content.strip().strip('"')
            elif name.strip().lower() not in harmless:
                return found, f"-o {name}"
        else:
            return found, word
    return found, ""


def _ssh_config(host: Host, options: dict[str, str]) -> dict[str, Any]:
    import paramiko

    given = options.get("config") or host.value("retina_ssh_config")
    path = Path(str(given or "~/.ssh/config")).expanduser()
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = paramiko.SSHConfig.from_path(str(path)).lookup(
            str(host.value("ansible_host", default=host.name))
        )
        if "ansible_host" in host.settings:
            by_name = paramiko.SSHConfig.from_path(str(path)).lookup(host.name)
            # An entry for the inventory's name counts too; what it says of the address doesn't, the inventory's does.
            found = {**found, **{k: v for k, v in by_name.items() if k not in ("hostname",)}}
        return dict(found)
    except (paramiko.SSHException, OSError, UnicodeDecodeError):
        return {}


def _tokens(command: str, address: str, port: int, user: str) -> str:
    """ssh_config(5), TOKENS: the ones that a ProxyCommand takes."""
    values = {"%h": address, "%p": str(port), "%r": user, "%n": address, "%%": "%", "%d": os.path.expanduser("~")}
    return re.sub(r"%[hprnd%]", lambda m: values[m[0]], command)
