"""Passing a plan's events on as its agent writes them: whole lines, from any of them on, until `end` or nobody lives there."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import BinaryIO, Callable, Optional, Tuple

from retina_runner.agent.workspace import Workspace

GONE = 3
"""What `follow` returns when no agent lives in the directory any more and none has said `end`."""
READ_BYTES = 1 << 20
POLL_S, LOOK_S = 0.05, 0.5
"""How often the journal is looked at where nothing tells of a change; and where something does, in case that it doesn't."""
IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100  # inotify(7)

Wait = Callable[[float, Tuple[int, ...]], bool]
"""Wait so long, or until one of these descriptors can be read; whether there is reason to stop."""


def follow(workspace: Workspace, first: int, follow_s: float, write: Callable[[bytes], None], wait: Wait) -> int:
    """Write the events from number `first` on, and for `follow_s` seconds those that come. 0, or GONE."""
    deadline = time.monotonic() + follow_s
    changes = watch(workspace.directory) if follow_s else None
    file: Optional[BinaryIO] = None
    number, rest, ended = 0, b"", False
    try:
        while True:
            alive = workspace.alive()
            if file is None and workspace.events.exists():
                file = open(str(workspace.events), "rb", buffering=0)  # noqa: SIM115 - it may appear later
            chunk = file.read(READ_BYTES) if file is not None else b""
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            wanted = lines[max(0, first - number) :]
            number += len(lines)
            if wanted:
                write(b"\n".join(wanted) + b"\n")
            ended = ended or any(b'"event":"end"' in line for line in lines)
            if chunk:
                continue
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return 0
            if not alive:
                return GONE
            if changes is None:
                stop = wait(min(POLL_S, left), ())
            else:
                stop = wait(min(LOOK_S, left), (changes,))
                drain(changes)
            if stop:
                return 0
    finally:
        if file is not None:
            file.close()
        if changes is not None:
            os.close(changes)


def watch(directory: Path) -> Optional[int]:
    """A descriptor that can be read when a file in the directory has changed; None where the kernel gives none."""
    try:
        library = ctypes.CDLL(None)
        descriptor = int(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    except (OSError, AttributeError):
        return None
    if descriptor < 0:
        return None
    if library.inotify_add_watch(descriptor, os.fsencode(directory), IN_MODIFY | IN_MOVED_TO | IN_CREATE) < 0:
        os.close(descriptor)
        return None
    return descriptor


def drain(changes: int) -> None:
    """Read what a watch has told, so that it can be waited for the next."""
    try:
        os.read(changes, 1 << 16)
    except BlockingIOError:
        pass
