"""Hosts over SSH: the agent is one file put there once, its verbs are commands, its events lines of a channel.

Nothing on the node depends on the connection. With `become`, everything runs by sudo(8); its password goes by standard
input and only when sudo asks for one, never by argv.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from retina_runner.bundle import AgentBundle
from retina_runner.executors import Clock, LinkLost, LinkRefused
from retina_runner.executors.local import FOLLOW_S, answer_of
from retina_runner.executors.ssh_channel import Channel, Finished, LimitReached, run
from retina_runner.executors.ssh_connect import Connector
from retina_runner.inventory.connection import Connection
from retina_runner.secrets import SecretError, read_secret

PINGS = 12
CLOCKS_AT_ONCE = 4
"""Our own queueing is what spoils a measured round trip: few nodes at a time."""
INSTALL_LIMIT_S = 120.0
FETCH_LIMIT_S = 60.0
_INSTALL = """
import hashlib, os, sys
work, name, digest, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def say(word):
    sys.stdout.write(word + "\\n"); sys.stdout.flush()
try:
    os.makedirs(work, mode=0o700, exist_ok=True)
    target = os.path.join(work, name)
    try:
        with open(target, "rb") as file:
            have = hashlib.sha256(file.read()).hexdigest() == digest
    except FileNotFoundError:
        have = False
    if have:
        say("have")
    else:
        say("want")
        data = sys.stdin.buffer.read(size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            say("error it came over damaged"); sys.exit(0)
        part = "%s.%d.part" % (target, os.getpid())
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(part, target)
        except OSError:
            os.unlink(part)
            raise
        say("have")
except OSError as error:
    say("error %s: %s" % (error.filename or work, error.strerror))
"""
_clocks = threading.BoundedSemaphore(CLOCKS_AT_ONCE)


def default_work_directory(user: str) -> str:
    """Where agents of that user work on a host: /var/tmp outlives a reboot and is a disk."""
    return f"/var/tmp/retina-run-{user or 'self'}"


class SshLink:
    """A link to one host; see `executors.Link`. `work` is the folder for agents there."""

    def __init__(self, to: Connection, work: str, connector: Connector):
        self._to, self._work, self._connector = to, work, connector
        self._client: Any = None
        self._sudo: tuple[str, ...] = ()
        self._password = b""
        self._agent = ""
        self._bundle: AgentBundle | None = None

    # -- the connection ------------------------------------------------------------------------------------------------

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
        if self._client is not None:
            self._client.close()
            self._client = None

    def _transport(self) -> Any:
        transport = self._client.get_transport() if self._client is not None else None
        if transport is None or not transport.is_active():
            raise LinkLost("not connected")
        return transport

    def _become(self) -> None:
        """Find out how commands get their rights: as they are, by sudo without a password, or by sudo with one."""
        self._sudo, self._password = (), b""
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
            raise LinkRefused("sudo", f"user {self._to.user} may not without a password: {_last(said)}",
                              "retina_become_password: env:NAME in the inventory, or a NOPASSWD rule")  # fmt: skip
        try:
            password = read_secret(self._to.become_password)
        except SecretError as error:
            raise LinkRefused("credentials", str(error), "retina_become_password in the inventory") from None
        self._password = password.reveal().encode() + b"\n"
        # -k: the password is always asked for, so that it can never be left on the command's own standard input.
        self._sudo = ("sudo", "-S", "-k", "-p", "", "-u", user, "--")
        done = self._run(["true"], limit_s=30)
        if done.status != 0:
            why = _last(done.stderr.decode("utf-8", "replace")) or f"exit status {done.status}"
            if "incorrect password" in why or "try again" in why.lower() or "no password" in why:
                why = "the password is wrong"
            raise LinkRefused("sudo", f"refused for user {self._to.user}: {why}", "see sudoers(5) on the host")

    def _run(self, argv: Sequence[str], stdin: bytes = b"", limit_s: float = 60.0) -> Finished:
        return run(self._transport(), [*self._sudo, *argv], self._password + stdin, limit_s)

    def _python(self, *arguments: str) -> list[str]:
        # Isolated: neither PYTHON* variables nor a user's site-packages can change what runs, perhaps as root.
        return [self._to.python, "-I", *arguments]

    # -- the agent -------------------------------------------------------------------------------------------------------

    def install(self, agent: AgentBundle) -> None:
        argv = self._python("-c", _INSTALL, self._work, agent.name, agent.sha256, str(len(agent.content)))
        try:
            with Channel(self._transport(), [*self._sudo, *argv]) as channel:
                channel.send(self._password, close=False)
                words = b""
                for chunk in channel.chunks(INSTALL_LIMIT_S):
                    words += chunk
                    if words == b"want\n":
                        channel.send(agent.content, INSTALL_LIMIT_S, close=False)
                status = channel.status(INSTALL_LIMIT_S)
                said = channel.stderr.decode("utf-8", "replace")
        except LimitReached as error:
            raise LinkLost(f"installing the agent: {error}") from error
        last = words.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
        if last[0] == "have":
            self._agent, self._bundle = f"{self._work}/{agent.name}", agent
            return
        if status == 127 or ("not found" in said and self._to.python in said):
            raise LinkRefused(self._to.python, "not installed on the host",
                              "install python3 (3.9 or newer), or set ansible_python_interpreter")  # fmt: skip
        why = last[0].removeprefix("error ") or _last(said) or f"exit status {status}"
        hint = "free some space there, or choose another place with retina_work_dir" if "No space" in why else ""
        raise LinkRefused(self._work, why, hint or "choose another place with retina_work_dir in the inventory")

    def _verb(self, verb: str, *arguments: str) -> list[str]:
        if not self._agent:
            raise LinkRefused("agent", "it isn't installed yet")
        return [*self._sudo, *self._python(self._agent, verb, *arguments)]

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        for again in (True, False):
            try:
                done = run(self._transport(), self._verb(verb, *arguments), self._password + stdin, limit_s)
            except LimitReached as error:
                raise LinkRefused(f"agent {verb}", f"no answer: {error}") from error
            if again and self._bundle is not None and done.status == 2 and b"can't open file" in done.stderr:
                # The last plan of another run, ending just now, has taken it away.
                self.install(self._bundle)
                continue
            return answer_of(verb, done.status, done.stdout, done.stderr)
        raise AssertionError("unreachable")

    def events(self, directory: str, first: int, give_up: threading.Event) -> Iterator[dict[str, Any]]:
        while not give_up.is_set():
            got = 0
            argv = self._verb("events", directory, "--from", str(first), "--follow", str(FOLLOW_S))
            with Channel(self._transport(), argv) as channel:
                channel.send(self._password)
                rest = b""
                try:
                    for chunk in channel.chunks(FOLLOW_S + 60, give_up):
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            event: dict[str, Any] = json.loads(line)
                            if "event" not in event:
                                return  # the directory is gone
                            got, first = got + 1, first + 1
                            yield event
                            if event["event"] == "end":
                                return
                except LimitReached as error:
                    raise LinkLost(f"events: {error}") from error
            if not got and not give_up.is_set() and not self.call("alive", directory)["alive"]:
                return

    def fetch(self, directory: str, name: str, offset: int) -> Iterator[bytes]:
        argv = self._verb("fetch", directory, "--name", name, "--offset", str(offset))
        with Channel(self._transport(), argv, large=True) as channel:
            channel.send(self._password)
            try:
                yield from channel.chunks(FETCH_LIMIT_S)
                if channel.status(FETCH_LIMIT_S) != 0:
                    raise LinkLost(f"fetching {name} ended early: {_last(channel.stderr.decode('utf-8', 'replace'))}")
            except LimitReached as error:
                raise LinkLost(f"fetching {name}: {error}") from error

    def clock(self) -> Clock:
        """The best of several round trips over one open channel: the node's time lies within half of that one."""
        best = Clock(0.0, float("inf"))
        with _clocks, Channel(self._transport(), self._verb("clock")) as channel:
            channel.send(self._password, close=False)
            chunks = channel.chunks(30.0)
            try:
                for _ in range(PINGS):
                    sent_wall, sent = time.time(), time.monotonic()
                    channel.send(b"\n", 30.0, close=False)
                    answer = next(chunks)
                    took = time.monotonic() - sent
                    if took / 2 < best.error_s:
                        best = Clock(float(answer) - (sent_wall + took / 2), took / 2)
            except (StopIteration, ValueError, LimitReached) as error:
                raise LinkLost(f"clock: {error or 'no answer'}") from error
        return best


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
