"""Each way in which a handshake can end before there is a host key, told apart by what the other side said and did."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.ssh_connect import open_transport
from retina_runner.executors.ssh_transport import handshake
from retina_runner.inventory.connection import Connection


def closes(line: bytes) -> Callable[[socket.socket], None]:
    def answer(other: socket.socket) -> None:
        other.recv(255)  # the client's own first line
        other.sendall(line)
        other.close()

    return answer


def is_silent(other: socket.socket) -> None:
    while other.recv(4096):
        pass


def falls_silent(other: socket.socket) -> None:
    other.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    is_silent(other)


ENDS = [
    (closes(b""), "closed before its sshd said a word", "MaxStartups", True),
    (closes(b"Exceeded MaxStartups\r\n"), "as many logins under way as it takes (MaxStartups)", "--forks", True),
    (closes(b"Not allowed at this time\r\n"), "takes nothing from this address for a while", "wait", True),
    (
        closes(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "no sshd answers there; it says: HTTP/1.1 400",
        "is that sshd's port?",
        False,
    ),
    (closes(b"SSH-2.0-OpenSSH_9.2\r\n"), "broke in the handshake", "sshd's log", True),
    (is_silent, "connected, and no word from sshd in ", "overloaded", True),
    (falls_silent, "fell silent in the handshake", "overloaded", True),
]


@pytest.mark.parametrize(("answer", "why", "hint", "passing"), ENDS, ids=[why for _, why, _, _ in ENDS])
def test_how_a_handshake_ends_is_told_apart(
    answer: Callable[[socket.socket], None], why: str, hint: str, passing: bool, tmp_path: Path
) -> None:
    """`passing`: another attempt may go better; otherwise the node is given up at its first one."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=answer, args=(theirs,), daemon=True).start()
    limit_s = 0.5 if answer in (is_silent, falls_silent) else 5.0  # of those that do something it is never waited for
    to = Connection("web1", "192.0.2.1", known_hosts=(str(tmp_path / "none"),), connect_timeout_s=limit_s)
    with pytest.raises((LinkLost, LinkRefused)) as caught:
        handshake(to, ours, "192.0.2.1 port 22")
    error = caught.value
    assert isinstance(error, LinkLost)
    assert isinstance(error, LinkRefused) == (not passing)
    assert (error.what, why in error.why, hint in error.hint) == ("192.0.2.1 port 22", True, True), vars(error)
    theirs.close()


def test_a_proxy_command_that_fails_says_why_itself(tmp_path: Path) -> None:
    command = "sh -c 'echo no route to the proxy >&2; exit 7'"
    to = Connection(
        "web1", "192.0.2.1", proxy_command=command, known_hosts=(str(tmp_path / "none"),), connect_timeout_s=5.0
    )
    with pytest.raises((LinkLost, LinkRefused)) as caught:
        open_transport(to)
    assert "status 7: no route to the proxy" in str(caught.value)


def test_small_requests_never_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_NODELAY, as ssh(1) has it: a request behind another one waited 40 ms for that one's acknowledgement."""
    found: list[int] = []

    def look(to: Connection, sock: socket.socket, where: str) -> None:
        found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        sock.close()
        raise LinkLost("seen enough")

    monkeypatch.setattr("retina_runner.executors.ssh_connect.handshake", look)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(LinkLost):
        open_transport(Connection("h", "127.0.0.1", port=server.getsockname()[1]))
    assert found == [1]
