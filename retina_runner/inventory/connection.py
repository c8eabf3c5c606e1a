"""Everything that is needed to reach one host, as a value. Secrets in it are references (`env:NAME`, `file:PATH`), never values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CONNECT_TIMEOUT_S = 10.0
KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
STRICT, ACCEPT_NEW = "strict", "accept-new"


@dataclass(frozen=True)
class Connection:
    """One host. `host` is the inventory's name for it; empty text and None mean that nothing was said.

    `connector` is `ssh`, `local`, or the name of another of pyinfra's connectors (`docker`, `chroot`, …), for which
    `address` is what comes after its slash. `hops` are the bastions on the way, the first to be reached first, each with
    its own user, keys and policy; equal hops are one bastion, so that a connection to it can be shared. `jump` is the
    same as OpenSSH's ProxyJump would say it, for messages. `proxy_command` is ProxyCommand with its tokens replaced.

    `host_keys` is `strict` (a host that isn't in `known_hosts` is refused) or `accept-new` (its key is written to the
    first of `known_hosts` when it is met); a key that has changed is refused by both. A host is looked up there as
    `host_key_alias` where that is set. With `become`, the agent runs as `become_user` by `become_method`, which is sudo(8).
    `connect_timeout_s` bounds each attempt, in seconds. `ssh_config` is the file that was read for it.

    With `identities_only`, of the agent (`identity_agent`, or SSH_AUTH_SOCK's) only keys that `key_files` or
    `certificate_files` name are offered. The fields that end in `algorithms`, `ciphers` and `macs` are ssh_config(5)'s
    lists as they were written; empty for OpenSSH's own. `required_rsa_size` is in bits, 0 for OpenSSH's own.
    """

    host: str
    address: str
    connector: str = "ssh"
    port: int = 22
    user: str = ""
    key_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    key_passphrase: str = ""
    password: str = ""
    identities_only: bool = False
    identity_agent: str = ""
    jump: str = ""
    hops: tuple[Connection, ...] = ()
    proxy_command: str = ""
    host_keys: str = STRICT
    host_key_alias: str = ""
    known_hosts: tuple[str, ...] = KNOWN_HOSTS
    hash_known_hosts: bool = False
    host_key_algorithms: str = ""
    ca_signature_algorithms: str = ""
    pubkey_algorithms: str = ""
    ciphers: str = ""
    macs: str = ""
    kex_algorithms: str = ""
    revoked_host_keys: str = ""
    required_rsa_size: int = 0
    address_family: str = ""
    bind_address: str = ""
    become: bool = False
    become_user: str = "root"
    become_method: str = "sudo"
    become_password: str = ""
    python: str = "python3"
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    work_directory: str = ""
    ssh_config: str = ""


REACHED: dict[str, tuple[str, ...]] = {
    "local": ("host", "connector"),
    "ssh": tuple(f.name for f in fields(Connection)),
}
"""By connector: which fields say anything about how a host is reached. Of any other connector, the fields of ENTERED."""
ENTERED = ("host", "address", "connector", "user", "become", "become_user", "python", "work_directory")


def reached_by(to: Connection) -> dict[str, Any]:
    """The fields that apply to this connection, with their values; not the bastions."""
    return {n: getattr(to, n) for n in REACHED.get(to.connector, ENTERED) if n != "hops"}


def connection_of(given: Mapping[str, Any] | None) -> Connection | None:
    """The inverse of dataclasses.asdict, also after JSON; None for this machine. Unknown fields are passed over."""
    if given is None:
        return None
    known = {f.name for f in fields(Connection)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
    values["hops"] = tuple(c for c in map(connection_of, given.get("hops", ())) if c is not None)
    return Connection(**values)
