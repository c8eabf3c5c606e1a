"""Containers and chroots of this machine: the agent is entered into them by their own tool, and serves as over SSH.

Nothing is ever started: a container that doesn't run is refused, since what it would show isn't what it did. The agent
detaches itself in there, and lives as long as the container does.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.process_stream import Answer, ProcessStream, answer
from retina_runner.executors.served import LimitReached
from retina_runner.executors.serving import ServedLink, last_line
from retina_runner.inventory.connection import Connection

ASK_LIMIT_S = 30.0
"""For an engine's answer; one that hangs is a refusal."""


class EnteredLink(ServedLink):
    """A link into one container or chroot; see `executors.Link`. `work` is the folder for agents in there."""

    def __init__(self, to: Connection, work: str):
        super().__init__(work, to.python)
        self._to = to
        self._name = to.address.removeprefix(f"@{to.connector}/")
        self._user = to.become_user if to.become else to.user
        self._been_there = False

    def connect(self) -> None:
        self.close()
        _CONNECT[self._to.connector](self)
        self._been_there = True

    def _open(self, argv: Sequence[str]) -> ProcessStream:
        return ProcessStream([*self._entering(), *argv])

    def _entering(self) -> list[str]:
        tool = self._to.connector
        if tool == "chroot":
            return ["chroot", *([f"--userspec={self._user}"] if self._user else []), self._root()]
        return [tool, "exec", "--interactive", *(["--user", self._user] if self._user else []), "--", self._name]

    # -- can it be entered? ------------------------------------------------------------------------------------------

    def _find_container(self) -> None:
        tool = self._to.connector
        asked = self._ask(
            [tool, "container", "inspect", "--format", "{{.State.Running}} {{.State.Paused}}", "--", self._name]
        )
        if asked.status == 0:
            running, _, paused = asked.stdout.strip().partition(" ")
            if paused == "true":
                raise LinkRefused(self._name, "this container is paused", f"{tool} unpause {self._name}")
            if running != "true":
                raise LinkRefused(self._name, "this container doesn't run", f"{tool} start {self._name}")
            return
        if "no such" not in asked.stderr.lower():
            why = last_line(asked.stderr) or f"exit status {asked.status}"
            if self._been_there:
                raise LinkLost(f"{tool}: {why}")  # a daemon that is restarted meanwhile: containers may outlive that
            raise LinkRefused(tool, why, f"try: {tool} ps")
        names = self._ask([tool, "ps", "--format", "{{.Names}}"]).stdout.split()
        near = difflib.get_close_matches(self._name, names, 3, 0.5) or names[:3]
        hint = f"running are {', '.join(near)}" if near else f"{tool} ps says what runs; an image is never started"
        raise LinkRefused(self._name, "no such container", hint)

    def _ask(self, argv: list[str]) -> Answer:
        try:
            return answer(argv, ASK_LIMIT_S)
        except LimitReached as error:
            raise LinkLost(f"{argv[0]}: {error}") from None
        except OSError as error:
            raise LinkRefused(
                argv[0], f"it can't be run here: {error.strerror}", "is it installed, and in PATH?"
            ) from None

    def _root(self) -> str:
        return "/" + self._name.lstrip("/")

    def _find_root(self) -> None:
        root = self._root()
        if not os.path.isdir(root):
            raise LinkRefused(root, "no such directory", "name the root of an installed system: @chroot/srv/root")
        if os.geteuid() != 0:
            raise LinkRefused("chroot", "it takes root", "run retina-run as root, or by sudo")
        if not os.path.exists(os.path.join(root, "proc/self/stat")):
            # The agent tells its processes apart by it, and what the network collectors read is there.
            raise LinkRefused(root, "it has no /proc", f"mount -t proc proc {os.path.join(root, 'proc')}")


_CONNECT: dict[str, Callable[[EnteredLink], None]] = {
    "docker": EnteredLink._find_container,
    "podman": EnteredLink._find_container,
    "chroot": EnteredLink._find_root,
}
CONNECTORS = tuple(_CONNECT)
"""Names that inventories call them by."""
