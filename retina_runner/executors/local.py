"""This machine: the agent is a child that detaches, its verbs are processes of the same interpreter."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retina_runner.agent import own_file
from retina_runner.bundle import AgentBundle
from retina_runner.executors import EXACT_S, Clock, LinkLost, LinkRefused

FOLLOW_S = 20.0
FETCH_BYTES = 1 << 20
POLL_S = 0.2


def default_work_directory() -> str:
    """Where agents of this user work on a machine: /var/tmp outlives a reboot and is a disk, unlike /tmp on many systems."""
    return f"/var/tmp/retina-run-{os.geteuid()}"


class LocalLink:
    """A link to this machine; see `executors.Link`."""

    def __init__(self, work_directory: str):
        self._work = Path(work_directory)
        self._agent: Path | None = None
        self._bundle: AgentBundle | None = None
        self._held: int | None = None

    def connect(self) -> None:
        pass

    def install(self, agent: AgentBundle) -> None:
        self.close()
        target = self._work / agent.name
        try:
            while self._held is None:
                self._put(agent, target)
                self._held = own_file.hold(target)  # None: the last of other runs has just taken it away
        except OSError as error:
            raise LinkRefused(str(error.filename or target), error.strerror or str(error),
                              "choose a directory that you may write to with --work-dir") from error  # fmt: skip
        self._agent, self._bundle = target, agent

    def _put(self, agent: AgentBundle, target: Path) -> None:
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            broken = target.exists()
            if broken and target.read_bytes() == agent.content:
                return
            part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(agent.content)
            own_file.place(part, target, broken)
        except FileNotFoundError:
            pass  # the same, with its folder

    def _argv(self, verb: str, *arguments: str) -> list[str]:
        if self._agent is None or self._bundle is None:
            raise LinkRefused("agent", "it isn't installed yet")
        if self._held is None:
            self.install(self._bundle)
        # Isolated: neither PYTHON* variables nor a user's site-packages can change what runs, perhaps as root.
        return [sys.executable, "-I", str(self._agent), verb, *arguments]

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        try:
            done = subprocess.run(self._argv(verb, *arguments), input=stdin, capture_output=True, timeout=limit_s,
                                  check=False, start_new_session=True)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LinkRefused(f"agent {verb}", f"no answer within {limit_s:.0f} s") from error
        except OSError as error:
            raise LinkRefused(f"agent {verb}", error.strerror or str(error)) from error
        if verb == "remove":
            self.close()
            own_file.sweep(self._work)  # what the verb couldn't, since the file was held for it
        return answer_of(verb, done.returncode, done.stdout, done.stderr)

    def events(self, directory: str, first: int, give_up: threading.Event) -> Iterator[dict[str, Any]]:
        while not give_up.is_set():
            got = 0
            argv = self._argv("events", directory, "--from", str(first), "--follow", str(FOLLOW_S))
            for line in _lines(argv, give_up):
                event: dict[str, Any] = json.loads(line)
                if "event" not in event:
                    return  # the directory is gone
                got, first = got + 1, first + 1
                yield event
                if event["event"] == "end":
                    return
            if not got and not give_up.is_set() and not self._alive(directory):
                return

    def _alive(self, directory: str) -> bool:
        from retina_runner.agent.workspace import Workspace

        return Workspace(Path(directory)).alive()

    def fetch(self, directory: str, name: str, offset: int) -> Iterator[bytes]:
        from retina_runner.agent.workspace import Workspace

        try:
            with open(Workspace(Path(directory)).archive / name, "rb") as file:
                file.seek(offset)
                while chunk := file.read(FETCH_BYTES):
                    yield chunk
        except OSError as error:
            raise LinkLost(str(error)) from error

    def clock(self, enough_s: float = EXACT_S) -> Clock:
        return Clock(0.0, 0.0)

    def close(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _lines(argv: list[str], give_up: threading.Event) -> Iterator[bytes]:
    """The lines that a process prints, as they come; the process ends with the iteration."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        assert process.stdout is not None
        rest = b""
        readable = select.poll()  # select(2) knows no descriptor beyond 1023, and thousands of nodes have more
        readable.register(process.stdout, select.POLLIN)
        try:
            while not give_up.is_set():
                if not readable.poll(POLL_S * 1000):
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        finally:
            process.kill()  # it only reads


def answer_of(verb: str, status: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """The JSON object of a finished verb. Raises LinkRefused for a refusal, for a crash, and for an answer that isn't one."""
    lines = stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        tail = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or lines[-1:] or ["it said nothing"]
        raise LinkRefused(f"agent {verb}", f"exit status {status}: {tail[0][:300]}")
    if status == 2:
        raise LinkRefused(f"agent {verb}", str(answer.get("why", "refused")), str(answer.get("hint", "")))
    return answer
