"""Everything that is needed to reach one host, as a value. Secrets in it are references (`env:NAME`, `file:PATH`), never values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Connection:
    """One host. `host` is the inventory's name for it; empty text and None mean that nothing was said.

    `jump` is OpenSSH's ProxyJump (`[user@]host[:port]`, several separated by commas), `proxy_command` its ProxyCommand
    with its tokens replaced. `host_keys` is `strict` (a host that isn't in `known_hosts` is refused) or `accept-new` (its
    key is written there at the first connection); a key that has changed is refused by both. With `become`, the agent
    runs as `become_user` by sudo(8). `connect_timeout_s` bounds each attempt in seconds.
    """

    host: str
    address: str
    connector: str = "ssh"
    port: int = 22
    user: str = ""
    key_files: tuple[str, ...] = ()
    key_passphrase: str = ""
    password: str = ""
    use_agent: bool = True
    jump: str = ""
    proxy_command: str = ""
    host_keys: str = "strict"
    known_hosts: tuple[str, ...] = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
    become: bool = False
    become_user: str = "root"
    become_password: str = ""
    python: str = "python3"
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    work_directory: str = ""


def connection_of(given: Mapping[str, Any] | None) -> Connection | None:
    """The inverse of dataclasses.asdict, also after JSON; None for this machine. Unknown fields are passed over."""
    if given is None:
        return None
    known = {f.name for f in fields(Connection)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
    return Connection(**values)
