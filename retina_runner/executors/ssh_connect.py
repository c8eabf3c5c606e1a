"""Reaching a host over SSH: sockets, bastions that are shared, and why it failed.

The host's key is judged in `ssh_transport`, the login done in `ssh_login`; every way of failing becomes a `LinkRefused` that says which one
it was (trying again won't help), or a `LinkLost` (it may). A bastion is connected to once for all hosts behind it, so
that its MaxStartups (sshd_config(5)) is never met; the hosts' own connections are channels of that one.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.ssh_login import login
from retina_runner.executors.ssh_proxy import ProxySocket
from retina_runner.executors.ssh_transport import Dropped, NotReached, handshake
from retina_runner.inventory.connection import Connection

KEEPALIVE_S, DEAD_AFTER_S = 5, 20
BASTION_TRIES = 6
CHANNEL_LIMIT_S = 5.0
"""Beyond a host's own limit for connecting: the bastion tells of a host that it can't reach as late as that."""
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def _load() -> None:
    """Import paramiko, without what it would import for `Match exec` of ssh_config(5): that costs more than all the rest,
    and ssh_config is read by `inventory/`."""
    if "paramiko" in sys.modules:
        return
    absent: Any = None
    known = sys.modules.get("invoke", absent)
    sys.modules["invoke"] = absent
    try:
        import paramiko  # noqa: F401
    finally:
        if known is None:
            del sys.modules["invoke"]
        else:
            sys.modules["invoke"] = known


class Connector:
    """Makes connections for one run; `forks` bounds how many are being made at a time."""

    def __init__(self, forks: int):
        _load()  # here, and not by the first of many threads while the others wait for it
        self._gate = threading.BoundedSemaphore(forks)
        self._lock = threading.Lock()
        self._bastions: dict[tuple[Connection, ...] | str, _Bastion] = {}

    def connect(self, to: Connection) -> Any:
        """A paramiko.Transport that is logged in. Raises LinkRefused, LinkLost."""
        with self._gate:
            return open_transport(to, self._bastion(to).channel(to) if to.jump else None)

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
        self._transports: list[Any] = []

    def channel(self, to: Connection) -> Any:
        """A way to the host behind. Raises LinkRefused, LinkLost."""
        with self._lock:
            transport = self._transport()
        return _through(transport, to, f"the bastion {to.jump}")

    def _transport(self) -> Any:
        if self._transports and self._transports[-1].is_active():
            return self._transports[-1]
        self.close()
        for number in range(BASTION_TRIES):
            try:
                sock = None
                for hop, following in zip(self._hops, (*self._hops[1:], None), strict=True):
                    transport = open_transport(hop, sock)
                    self._transports.append(transport)
                    if following is not None:
                        sock = _through(transport, following, f"the bastion {hop.address}")
                return self._transports[-1]
            except LinkRefused:
                self.close()
                raise
            except LinkLost:
                self.close()
                if number == BASTION_TRIES - 1:
                    raise
                # Beyond MaxStartups sshd drops connections at random; somebody else's fleet may be knocking too.
                time.sleep(random.uniform(0.2, 1.0) * (number + 1))
        raise AssertionError("unreachable")

    def close(self) -> None:
        for transport in reversed(self._transports):
            transport.close()
        self._transports = []


def _through(transport: Any, to: Connection, bastion: str) -> Any:
    """A channel of the bastion's connection that leads to the host. Raises LinkRefused, LinkLost."""
    import paramiko

    where = f"{to.address} port {to.port}"
    try:
        return transport.open_channel(
            "direct-tcpip", (to.address, to.port), ("127.0.0.1", 0), timeout=to.connect_timeout_s + CHANNEL_LIMIT_S
        )
    except paramiko.ChannelException as error:
        if error.code == _PROHIBITED:
            raise LinkRefused(where, f"{bastion} lets nobody through: {error.text}",
                              "AllowTcpForwarding and PermitOpen in its sshd_config") from error  # fmt: skip
        raise NotReached(where, f"{bastion} can't reach it: {error.text or error}",
                         "is the address right as the bastion sees it, and is the host up?") from error  # fmt: skip
    except (paramiko.SSHException, EOFError, OSError) as error:
        if transport.is_active() and "imeout" in f"{error}{type(error).__name__}":
            raise NotReached(where, f"{bastion} didn't reach it in {to.connect_timeout_s + CHANNEL_LIMIT_S:.0f} s",
                             "is the host up, and is there a route to it from the bastion?") from error  # fmt: skip
        raise Dropped(where, f"{bastion} was lost: {error or type(error).__name__}", "it is connected to again") from error  # fmt: skip


_PROHIBITED = 1
"""SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254, 5.1)."""


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


def open_transport(to: Connection, sock: Any = None) -> Any:
    """Connect, shake hands and log in; by that socket, where there is one. Raises LinkRefused, LinkLost."""
    where = f"{to.address} port {to.port}"
    proxy = None
    if sock is None and to.proxy_command:
        sock = proxy = ProxySocket(to.proxy_command)
    elif sock is None:
        sock = _socket(to, where)
        # A link that was cut silently is noticed in seconds, not in the kernel's quarter of an hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
    try:
        transport = handshake(to, sock, where)
    except Dropped as dropped:
        said = proxy.why_ended() if proxy is not None else ""
        if said:
            raise NotReached(where, f"its ProxyCommand {said}", f"try: {to.proxy_command}") from dropped
        raise
    try:
        login(transport, to, where)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(KEEPALIVE_S)
    return transport


def _socket(to: Connection, where: str) -> socket.socket:
    """Raises NotReached, with what was wrong at each of the host's addresses."""
    try:
        places = socket.getaddrinfo(to.address, to.port, _FAMILIES.get(to.address_family, 0), socket.SOCK_STREAM)
    except OSError as error:
        raise NotReached(where, f"the name isn't known: {error.strerror}", "ansible_host gives an address") from error
    failed: list[OSError] = []
    for family, kind, protocol, _, place in places:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(to.connect_timeout_s)
            # A small request behind another waits for that one's acknowledgement otherwise, which sshd's side holds back for 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if to.bind_address:
                sock.bind((to.bind_address, 0))
            sock.connect(place)
            return sock
        except OSError as error:
            sock.close()
            failed.append(error)
    if all(isinstance(e, ConnectionRefusedError) for e in failed):
        raise NotReached(where, "connection refused", "does sshd run there, on that port?")
    worst = next(e for e in failed if not isinstance(e, ConnectionRefusedError))
    if isinstance(worst, TimeoutError):
        raise NotReached(
            where, f"unreachable: no answer in {to.connect_timeout_s:g} s", "is it up, and is there a route to it?"
        )
    raise NotReached(where, f"unreachable: {worst.strerror or worst}", "is there a route, or a firewall?")
