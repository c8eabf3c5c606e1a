"""Disk set aside at the start of a plan, and given back at its end, so that a full disk can't keep the archive from being closed."""

from __future__ import annotations

import os
from pathlib import Path

from retina_runner.agent.bounds import Bounds

BALLAST_BYTES = 4 << 20
BALLAST_SHARE = 16
"""It counts as the plan's own, so a plan of few bytes sets aside no more than this part of them."""
NAME = "ballast"


def set_aside(folder: Path, bounds: Bounds) -> None:
    """In a file of that folder; a disk that has no room for it has none."""
    ballast = folder / NAME
    try:
        with open(str(ballast), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, min(BALLAST_BYTES, bounds.node_bytes // BALLAST_SHARE))
    except OSError:
        ballast.unlink()


def give_back(folder: Path) -> None:
    """Idempotent."""
    (folder / NAME).unlink(missing_ok=True)
