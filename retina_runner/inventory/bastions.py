"""The bastions on the way to a host: of a ProxyJump, or of a ProxyCommand that is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retina_runner.inventory import identity, ssh_arguments, ssh_config
from retina_runner.inventory.connection import ACCEPT_NEW, STRICT, Connection
from retina_runner.inventory.host_words import port_or, split_port
from retina_runner.inventory.model import Setting

MOST_HOPS = 8


def hops_of(behind: Connection, jump: str, config: ssh_config.SshConfig, depth: int = 0) -> tuple[Connection, ...]:
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
        number_ = port or port_or(first("port"))
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
            hops[:0] = hops_of(behind, own, config, depth + 1)
    return tuple(hops)


def told(hop: Connection) -> str:
    address = f"[{hop.address}]" if ":" in hop.address else hop.address
    return (f"{hop.user}@" if hop.user else "") + address + (f":{hop.port}" if hop.port != 22 else "")


def jump_of(command: str) -> tuple[str, str]:
    """`ssh -W %h:%p bastion` is a jump, the form that Ansible's own documentation shows: as ProxyJump would say it, and the
    bastion's key, empty when it names none. ("", "") for any other command."""
    found = re.fullmatch(r"ssh\s+(.*)", command.strip())
    words = found[1].split() if found else []
    if "-W" not in words or any(c in command for c in "|;&<>$`"):
        return "", ""
    place = words.index("-W")
    rest = words[:place] + words[place + 2 :]
    valued = ("-o", "-i", "-p", "-l", "-F")
    target = [w for n, w in enumerate(rest) if w[0] != "-" and (n == 0 or rest[n - 1] not in valued)]
    rest = [w for w in rest if w not in target[:1]]
    try:
        options = dict(reversed(ssh_arguments.options(" ".join(w.strip("'\"") for w in rest))))
    except ValueError:
        return "", ""
    if len(target) != 1 or not set(options) <= {"user", "port", "identityfile", "stricthostkeychecking"}:
        return "", ""
    user, _, name = target[0].rpartition("@")
    user = user or options.get("user", "")
    port = f":{options['port']}" if "port" in options else ""
    return f"{user}@{name}{port}" if user else name + port, options.get("identityfile", "")
