"""Reaching a host over SSH: keys and passwords, host keys without a prompt, bastions that are shared, and why it failed.

paramiko connects; every way of failing becomes a `LinkRefused` that says which one it was (trying again won't help), or
a `LinkLost` (it may). A bastion is connected to once for all hosts behind it, so that its MaxStartups (sshd_config(5))
is never met; the hosts' own connections are channels of that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.inventory.connection import Connection
from retina_runner.secrets import SecretError, read_secret

PATIENCE = 6
"""An sshd that has taken the connection gets this many times the limit for connecting, for its banner and for each step
of the login: a host that starts a hundred logins at once is slow, not dead."""
KEEPALIVE_S, DEAD_AFTER_S = 5, 20
BASTION_TRIES = 6
SLOW_CIPHERS = ("aes128-ctr", "aes192-ctr", "aes256-ctr", "aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc")
"""paramiko computes their MACs in Python; without them AES-GCM is agreed on, several times faster. Tried again with
them when the server has nothing else."""
_appending = threading.Lock()


class Connector:
    """Makes connections for one run; `forks` bounds how many are being made at a time."""

    def __init__(self, forks: int):
        self._gate = threading.BoundedSemaphore(forks)
        self._lock = threading.Lock()
        self._bastions: dict[tuple[Connection, ...] | str, _Bastion] = {}

    def connect(self, to: Connection) -> Any:
        """A connected paramiko.SSHClient. Raises LinkRefused, LinkLost."""
        with self._gate:
            sock = self._bastion(to).channel(to) if to.jump else None
            return open_client(to, sock)

    def _bastion(self, to: Connection) -> _Bastion:
        with self._lock:
            # The same words with other keys or another user are another connection.
            return self._bastions.setdefault(to.hops or to.jump, _Bastion(hops_of(to)))

    def close(self) -> None:
        """Let go of the bastions."""
        with self._lock:
            for bastion in self._bastions.values():
                bastion.close()
            self._bastions.clear()


class _Bastion:
    """One connection, shared; made at the first use and again when it has gone."""

    def __init__(self, hops: tuple[Connection, ...]):
        self._hops, self._lock = hops, threading.Lock()
        self._clients: list[Any] = []

    def channel(self, to: Connection) -> Any:
        """A way to the host behind. Raises LinkRefused, LinkLost."""
        import paramiko

        with self._lock:
            transport = self._transport()
        try:
            return transport.open_channel(
                "direct-tcpip", (to.address, to.port), ("127.0.0.1", 0), timeout=to.connect_timeout_s + 5
            )
        except paramiko.ChannelException as error:
            raise LinkRefused(
                f"{to.address} port {to.port}", f"the bastion {to.jump} can't reach it: {error.text or error}",
                "is the address right as the bastion sees it?",
            ) from error  # fmt: skip
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise LinkLost(f"the bastion {to.jump}: {error or type(error).__name__}") from error

    def _transport(self) -> Any:
        if self._clients and self._clients[-1].get_transport() and self._clients[-1].get_transport().is_active():
            return self._clients[-1].get_transport()
        self.close()
        for number in range(BASTION_TRIES):
            try:
                sock = None
                for hop, following in zip(self._hops, (*self._hops[1:], None), strict=True):
                    client = open_client(hop, sock)
                    self._clients.append(client)
                    if following is not None:
                        sock = client.get_transport().open_channel(
                            "direct-tcpip", (following.address, following.port), ("127.0.0.1", 0), timeout=20
                        )
                return self._clients[-1].get_transport()
            except LinkLost:
                self.close()
                if number == BASTION_TRIES - 1:
                    raise
                # Beyond MaxStartups sshd drops connections at random; somebody else's fleet may be knocking too.
                time.sleep(random.uniform(0.2, 1.0) * (number + 1))
        raise AssertionError("unreachable")

    def close(self) -> None:
        for client in reversed(self._clients):
            client.close()
        self._clients = []


def hops_of(to: Connection) -> tuple[Connection, ...]:
    """The bastions in `[user@]host[:port],…`, each reached with the host's own keys and host key policy."""
    if to.hops:
        return to.hops
    hops = []
    for text in to.jump.split(","):
        user, _, place = text.strip().rpartition("@")
        address, port = place, ""
        if place.startswith("["):
            address, _, port = place[1:].partition("]")
            port = port.removeprefix(":")
        elif place.count(":") == 1:
            address, _, port = place.partition(":")
        hops.append(
            replace(
                to, host=address, address=address, port=int(port or 22), user=user or to.user, jump="", proxy_command=""
            )
        )
    return tuple(hops)


def open_client(to: Connection, sock: Any = None) -> Any:
    """Connect and authenticate. Raises LinkRefused, LinkLost."""
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its tracebacks of lost links are no news to anybody
    where = f"{to.address} port {to.port}"
    try:
        password = read_secret(to.password).reveal() if to.password else None
        passphrase = read_secret(to.key_passphrase).reveal() if to.key_passphrase else None
    except SecretError as error:
        raise LinkRefused("credentials", str(error), "it is named in the inventory") from None
    keys: Any = [os.path.expanduser(k) for k in to.key_files]  # a list does as well as a name, whatever its stub says
    there = [k for k in keys if os.access(k, os.R_OK)]  # as ssh(1): those that aren't there are passed over
    if keys and not there and not password:
        why = "it can't be read" if os.path.exists(keys[0]) else "No such file or directory"
        raise LinkRefused(f"key {keys[0]}", why, "ansible_ssh_private_key_file or IdentityFile names it")
    keys = there
    for slow in (False, True):
        client = paramiko.SSHClient()
        _host_keys(client, to)
        if sock is None and to.proxy_command:
            sock = paramiko.ProxyCommand(to.proxy_command)
        try:
            client.connect(
                to.address, to.port, to.user or None, password=password, passphrase=passphrase,
                key_filename=keys or None,
                allow_agent=to.use_agent and not password, look_for_keys=not to.key_files and not password,
                timeout=to.connect_timeout_s, banner_timeout=to.connect_timeout_s * PATIENCE, auth_timeout=to.connect_timeout_s * PATIENCE,
                channel_timeout=30, sock=sock, disabled_algorithms={} if slow else {"ciphers": list(SLOW_CIPHERS)},
            )  # fmt: skip
        except paramiko.BadHostKeyException as error:
            client.close()
            raise LinkRefused(
                f"host key of {where}", f"it has changed: known_hosts has {_fingerprint(error.expected_key)}, "
                f"the host says {_fingerprint(error.key)}",
                f"if that is expected: ssh-keygen -R {_known_as(to)}",
            ) from error  # fmt: skip
        except _UnknownHostKey as error:
            client.close()
            raise LinkRefused(
                f"host key of {where}", f"it isn't known ({error})",
                f"compare, then: ssh-keyscan -p {to.port} {to.address} >> {to.known_hosts[0]}; "
                "or set retina_host_keys: accept-new in the inventory",
            ) from error  # fmt: skip
        except (paramiko.PasswordRequiredException, paramiko.AuthenticationException) as error:
            client.close()
            raise LinkRefused(
                f"authentication at {where}", f"refused for user {to.user or os.environ.get('USER', '?')}: {error}",
                "keys: " + (", ".join(to.key_files) or "the agent's and those in ~/.ssh"),
            ) from error  # fmt: skip
        except paramiko.SSHException as error:
            client.close()
            if "no acceptable ciphers" in str(error).lower() or "incompatible ssh peer" in str(error).lower():
                if not slow and sock is None:
                    continue
                raise LinkRefused(where, str(error), "an algorithm that both sides know is missing") from error
            if "not a valid" in str(error) or ("encountered" in str(error) and "key" in str(error)):
                raise LinkRefused(
                    f"authentication at {where}", str(error), "keys: " + ", ".join(to.key_files)
                ) from error
            raise LinkLost(f"{where}: {error}") from error
        except (ConnectionResetError, BrokenPipeError, EOFError) as error:
            client.close()
            raise LinkLost(
                f"{where}: closed by the other side before the login; beyond MaxStartups sshd does so"
            ) from error
        except OSError as error:
            client.close()
            raise _network_trouble(where, error) from error
        _keep_alive(client)
        return client
    raise AssertionError("unreachable")


class NotReached(LinkLost, LinkRefused):
    """Never was there: the first attempt failed. To a fleet that hasn't met the node it is final; later it isn't."""

    def __init__(self, what: str, why: str, hint: str):
        LinkRefused.__init__(self, what, why, hint)


def _network_trouble(where: str, error: BaseException) -> LinkLost:
    import paramiko

    if isinstance(error, socket.gaierror):
        return NotReached(where, f"the name isn't known: {error.strerror}", "ansible_host gives an address")
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        inner: list[Any] = list(error.errors.values())
        if inner and all(isinstance(e, ConnectionRefusedError) for e in inner):
            return NotReached(where, "connection refused", "does sshd run there, on that port?")
        return NotReached(
            where, f"unreachable: {inner[0].strerror if inner else error}", "is there a route, or a firewall?"
        )
    if isinstance(error, TimeoutError):
        return NotReached(where, "unreachable: no answer in time", "is it up, and is there a route to it?")
    if isinstance(error, ConnectionRefusedError):
        return NotReached(where, "connection refused", "does sshd run there, on that port?")
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return NotReached(where, f"unreachable: {why}", "is it up, and is there a route to it?")


class _UnknownHostKey(Exception):
    pass


def _host_keys(client: Any, to: Connection) -> None:
    """Give paramiko only this host's lines: it reads a known_hosts in quadratic time, and compares one by one."""
    import paramiko

    keys = client.get_host_keys()
    name = _known_as(to)
    revoked = {k for path in to.known_hosts for k in _revoked(Path(path).expanduser())}
    for path in to.known_hosts:
        for line in _lines_for(Path(path).expanduser(), name):
            if revoked.intersection(line.split()):
                continue
            try:
                entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
            except (paramiko.SSHException, paramiko.hostkeys.InvalidHostKey):
                continue
            if entry is not None and entry.key is not None:
                keys.add(name, entry.key.get_name(), entry.key)

    class Policy(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            if key.get_base64() in revoked:
                raise _UnknownHostKey(f"{key.get_name()} {_fingerprint(key)} is marked @revoked")
            if to.host_keys != "accept-new":
                raise _UnknownHostKey(f"{key.get_name()} {_fingerprint(key)}")
            path = Path(to.known_hosts[0]).expanduser()
            with _appending:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                with os.fdopen(descriptor, "a") as file:
                    file.write(f"{name} {key.get_name()} {key.get_base64()}\n")

    client.set_missing_host_key_policy(Policy())


def _known_as(to: Connection) -> str:
    return to.address if to.port == 22 else f"[{to.address}]:{to.port}"


def _lines_for(path: Path, name: str) -> Iterator[str]:
    import paramiko

    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) < 3 or words[0].startswith(("#", "@")):
                continue
            if words[0].startswith("|1|"):
                if paramiko.HostKeys.hash_host(name, words[0]) == words[0]:
                    yield line
            elif name in words[0].split(","):
                yield line


def _revoked(path: Path) -> Iterator[str]:
    """Keys that sshd(8)'s known_hosts marks @revoked, for whatever host: base64."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) >= 4 and words[0] == "@revoked":
                yield words[3]


def _fingerprint(key: Any) -> str:
    import base64

    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _keep_alive(client: Any) -> None:
    """A link that was cut silently is noticed in seconds, not in the kernel's quarter of an hour."""
    transport = client.get_transport()
    transport.set_keepalive(KEEPALIVE_S)
    if isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
