"""An artefact that comes piece by piece, on a disk that fills meanwhile: what there is room for is kept, and the rest is told."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.context import HELD_BYTES, Context, Record
from tests.lab import sh

pytestmark = pytest.mark.root

MIB = 1 << 20
PIECE = bytes(range(256)) * 1024


@pytest.fixture
def made(_unharmed: None, tmp_path: Path) -> Iterator[Context]:
    """Its disk has 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk))
    events: list[dict[str, Any]] = []
    try:
        context = Context("command", {}, disk, tmp_path, Record(), lambda event, **more: events.append(more))
        yield context
        assert sum(e.get("limit") == "disk_full" for e in events) == 1
    finally:
        sh("umount", str(disk))


def stream(context: Context, path: str, size: int) -> None:
    with context.stream(path) as artefact:
        for _ in range(size // len(PIECE)):
            artefact.write(PIECE)


def content(size: int) -> bytes:
    return PIECE * (size // len(PIECE))


def test_it_moves_into_memory_when_the_disk_is_full(made: Context) -> None:
    stream(made, "large", 12 * MIB)
    assert made.record.held == {"large": content(12 * MIB)}
    assert list(made.out.iterdir()) == []
    assert made.record.skipped == []


def test_what_memory_has_no_room_for_either_is_cut(made: Context) -> None:
    with pytest.raises(OSError, match="only its first") as full:
        stream(made, "large", 2 * HELD_BYTES)
    assert full.value.errno == errno.ENOSPC
    assert made.record.held == {"large": content(HELD_BYTES * 3 // 4)}
    (gap,) = made.record.skipped
    assert (gap["what"], gap["why"]) == ("large", full.value.strerror)


def test_then_the_first_part_stays_on_the_disk(made: Context) -> None:
    """Memory is taken by another that nobody has room for."""
    (made.out / "theirs").write_bytes(bytes(8 * MIB))
    stream(made, "first", 20 * MIB)
    (made.out / "theirs").unlink()
    with pytest.raises(OSError, match="only its first"):
        stream(made, "second", 12 * MIB)
    kept = (made.out / "second").read_bytes()
    assert 7 * MIB < len(kept) <= 8 * MIB
    assert content(12 * MIB).startswith(kept)
    assert set(made.record.held) == {"first"}
    made.write("small", b"what matters\n")
    assert made.record.held["small"] == b"what matters\n"


def test_a_whole_one_is_kept_whole_or_not_at_all(made: Context) -> None:
    with pytest.raises(OSError, match=f"for {2 * HELD_BYTES} B"):
        made.write("state.json", bytes(2 * HELD_BYTES))
    assert list(made.out.iterdir()) == []
    assert made.record.held == {}
    made.write("next.json", bytes(12 * MIB))
    assert len(made.record.held["next.json"]) == 12 * MIB


def test_a_piece_that_comes_too_late_is_dropped(made: Context) -> None:
    """From a descendant of a command that has kept its pipe."""
    with made.stream("output") as artefact:
        artefact.write(b"in time")
    artefact.write(b", too late")
    assert (made.out / "output").read_bytes() == b"in time"
    stream(made, "large", 12 * MIB)
