"""The agent's file on a node, which one user's runs share: whoever uses it holds it, and the last one to go takes it away.

The hold is a shared flock(2), which the kernel takes back from a process that dies. A plan's directory beside the file keeps it
too, so that an agent outlives who started it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Optional

PATTERN = "agent-*.pyz"

held: Optional[int] = None
"""This process's own hold, where it has one: what executors/bootstrap.py leaves to `serve`. Its forks share it."""


def hold(path: Path) -> Optional[int]:
    """A descriptor that holds the file at `path` while it is open; None if it isn't there. Waits for one who takes it away."""
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(descriptor), os.stat(str(path))):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def place(part: Path, path: Path, broken: bool) -> None:
    """Have the whole file `part` at `path`, where another run may have put the same meanwhile, and hold it: that one stays.

    `broken`: what is at `path` isn't what belongs there. Raises OSError.
    """
    if broken:
        os.replace(str(part), str(path))
        return
    try:
        os.link(str(part), str(path))
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(str(part), str(path))
        return
    os.unlink(str(part))


def sweep(folder: Path) -> None:
    """Remove the agents' files and their folder, when no plan is left in it and nobody else holds them."""
    if held is not None:
        _lock(held, fcntl.LOCK_UN)
    try:
        for agent in folder.glob(PATTERN):
            _take_away(agent)
        folder.rmdir()
    except OSError:
        pass  # it isn't there, or somebody else's run is in it
    if held is not None:
        _lock(held, fcntl.LOCK_SH)


def _take_away(agent: Path) -> None:
    descriptor = os.open(str(agent), os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Looked at with the lock: who held the file a moment ago may have left a plan that has begun.
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and all(p.match(PATTERN) for p in agent.parent.iterdir()):
            agent.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """False when another has it. A file system without locks is treated as one where nobody ever meets anybody."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
