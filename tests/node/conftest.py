"""A disk so small that a test can fill it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import sh


@pytest.fixture
def small_disk(_unharmed: None, tmp_path: Path) -> Iterator[Path]:
    """24 MiB of their own; what is beyond is a real ENOSPC."""
    place = tmp_path / "disk"
    place.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "rrtest", str(place))
    yield place
    sh("umount", str(place))
