"""Hosts over SSH: the agent is one file put there once, and one process of it serves all that is asked over a connection.

Nothing on the node depends on the connection. With `become`, everything runs by sudo(8); its password goes by standard
input and only when sudo asks for one, never by argv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.served import LimitReached
from retina_runner.executors.serving import ServedLink, last_line
from retina_runner.executors.ssh_channel import Channel, Finished, run
from retina_runner.executors.ssh_connect import Connector
from retina_runner.inventory.connection import Connection
from retina_runner.secrets import SecretError, read_secret


def default_work_directory(user: str) -> str:
    """Where agents of that user work on a host: /var/tmp outlives a reboot and is a disk."""
    return f"/var/tmp/retina-run-{user or 'self'}"


class SshLink(ServedLink):
    """A link to one host; see `executors.Link`. `work` is the folder for agents there."""

    def __init__(self, to: Connection, work: str, connector: Connector):
        super().__init__(work, to.python)
        self._to, self._connector = to, connector
        self._client: Any = None
        self._sudo: tuple[str, ...] = ()

    def connect(self) -> None:
        self.close()
        self._client = self._connector.connect(self._to)
        try:
            self._become()
        except LimitReached as error:
            raise LinkRefused(
                f"{self._to.host}", f"a login that does nothing hangs: {error}", "try it by ssh"
            ) from error

    def close(self) -> None:
        self._hang_up()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _transport(self) -> Any:
        if self._client is None or not self._client.is_active():
            raise LinkLost("not connected")
        return self._client

    def _become(self) -> None:
        """Find out how commands get their rights: as they are, by sudo without a password, or by sudo with one."""
        self._sudo, self._first = (), b""
        if not self._to.become:
            return
        user = self._to.become_user
        if run(self._transport(), ["id", "-un"], limit_s=30).stdout.strip().decode("utf-8", "replace") == user:
            return
        tried = run(self._transport(), ["sudo", "-n", "-k", "-u", user, "--", "true"], limit_s=30)
        if tried.status == 0:
            self._sudo = ("sudo", "-n", "-u", user, "--")
            return
        said = tried.stderr.decode("utf-8", "replace").strip()
        if tried.status == 127 or "not found" in said:
            raise LinkRefused(
                "sudo", "not installed on the host", "log in as root (ansible_user: root), or install sudo"
            )
        if not self._to.become_password:
            raise LinkRefused("sudo", f"user {self._to.user} may not without a password: {last_line(said)}",
                              "retina_become_password: env:NAME in the inventory, or a NOPASSWD rule")  # fmt: skip
        try:
            password = read_secret(self._to.become_password)
        except SecretError as error:
            raise LinkRefused("credentials", str(error), "retina_become_password in the inventory") from None
        self._first = password.reveal().encode() + b"\n"
        # -k: the password is always asked for, so that it can never be left on the command's own standard input.
        self._sudo = ("sudo", "-S", "-k", "-p", "", "-u", user, "--")
        done = self._run(["true"], limit_s=30)
        if done.status != 0:
            why = last_line(done.stderr.decode("utf-8", "replace")) or f"exit status {done.status}"
            if "incorrect password" in why or "try again" in why.lower() or "no password" in why:
                why = "the password is wrong"
            raise LinkRefused("sudo", f"refused for user {self._to.user}: {why}", "see sudoers(5) on the host")

    def _run(self, argv: Sequence[str], stdin: bytes = b"", limit_s: float = 60.0) -> Finished:
        return run(self._transport(), [*self._sudo, *argv], self._first + stdin, limit_s)

    def _open(self, argv: Sequence[str]) -> Channel:
        return Channel(self._transport(), [*self._sudo, *argv], large=True)
