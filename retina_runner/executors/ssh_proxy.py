"""ProxyCommand of ssh_config(5): a program whose input and output are the connection to the host."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile

END_LIMIT_S = 2.0


class ProxySocket:
    """The connection that a program makes, as a socket. The program ends with it.

    The program is of a session of its own: Ctrl-C ends the window of a run, and what brings it home is still needed then.
    """

    def __init__(self, command: str):
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the program
        self._process = subprocess.Popen(
            [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"], stdin=theirs.fileno(), stdout=theirs.fileno(),
            stderr=self._errors,
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        self.send, self.recv, self.settimeout = ours.send, ours.recv, ours.settimeout

    def why_ended(self) -> str:
        """What the program said at its end, in a few words; empty where it hasn't ended by itself."""
        try:
            status = self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return ""
        if status < 0:
            return ""
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        return f"ended with status {status}" + (f": {lines[-1].strip()[:200]}" if lines else "")

    @property
    def _closed(self) -> bool:
        return self._socket.fileno() < 0  # what paramiko asks of a socket

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
