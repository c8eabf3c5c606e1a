"""Agents that were built, kept on this machine: building one takes a run longer than reading it, before anything else begins.

A file an agent in the user's own cache directory (XDG Base Directory Specification), named by what it was built of and by its
own digest. It will run on nodes, perhaps as root: so the folder must be this user's alone. Losing it costs time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from retina_runner.agent.workspace import UnsafeDirectory, check_private

MOST_FILES = 4
"""Installations that take turns: a virtual environment each, and an agent with and without what it compiles to."""


def cache_directory() -> Path:
    """`retina-run` in $XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
    return cache / "retina-run"


def kept(made_of: str, build: Callable[[], bytes]) -> bytes:
    """What `build` makes of what has the digest `made_of`: as it was kept, or built now and kept. Raises what `build` raises."""
    folder = cache_directory() / "agents"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
    except (OSError, UnsafeDirectory):
        return build()
    return _read(folder, made_of) or _keep(folder, made_of, build())


def _read(folder: Path, made_of: str) -> bytes:
    """The whole file, or nothing."""
    for path in folder.glob(f"{made_of}-*.pyz"):
        try:
            content = path.read_bytes()
            if path.name == _name(made_of, content):
                os.utime(path)
                return content
            path.unlink()
        except OSError:
            continue
    return b""


def _keep(folder: Path, made_of: str, content: bytes) -> bytes:
    try:
        descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(partial, folder / _name(made_of, content))
        except OSError:
            os.unlink(partial)
            raise
        for path in sorted(folder.glob("*.pyz"), key=lambda p: p.stat().st_mtime)[:-MOST_FILES]:
            path.unlink()
    except OSError:
        pass  # a disk that is full, or another run that was faster
    return content


def _name(made_of: str, content: bytes) -> str:
    return f"{made_of}-{hashlib.sha256(content).hexdigest()}.pyz"
