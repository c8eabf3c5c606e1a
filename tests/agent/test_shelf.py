"""What a shelf on a node removes: by count, age and bytes, the oldest first, archives only, and never the newest."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.shelf import NotKept, keep, place, refusal

DAY_S = 86400


def kept(folder: Path, days_old: int, size: int = 100, name: str = "") -> str:
    path = folder / (name or f"a-{99 - days_old:02d}.tar.gz")
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - days_old * DAY_S,) * 2)
    return path.name


def put(tmp_path: Path, **bounds: Any) -> set[str]:
    """Keep one more archive of 100 B with these bounds; the names that are there afterwards."""
    new = tmp_path / "new.tar.zst"
    new.write_bytes(b"y" * 100)
    digest = hashlib.sha256(b"y" * 100).hexdigest()
    options = {"base": str(tmp_path), "path": "shelf", "keep_count": None, "keep_s": None, "keep_bytes": None, **bounds}
    assert keep(new, digest, options)["location"] == str(tmp_path / "shelf" / "new.tar.zst")
    return {p.name for p in (tmp_path / "shelf").iterdir()}


@pytest.mark.parametrize(
    ("bounds", "stays"),
    [
        ({}, {1, 3, 8}),
        ({"keep_s": 2 * DAY_S}, {1}),
        ({"keep_s": 5 * DAY_S}, {1, 3}),
        ({"keep_bytes": 250}, {1}),
        ({"keep_bytes": 399}, {1, 3}),
        ({"keep_count": 3, "keep_s": 2 * DAY_S}, {1}),
        ({"keep_bytes": 10}, set()),
        ({"keep_s": -60}, set()),
    ],
)
def test_the_oldest_go_first_and_the_newest_never(tmp_path: Path, bounds: dict[str, int], stays: set[int]) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    names = {days: kept(folder, days) for days in (1, 3, 8)}
    assert put(tmp_path, **bounds) == {names[d] for d in stays} | {"new.tar.zst"}


def test_what_is_pinned_stays_and_takes_its_room_but_no_place(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    names = {days: kept(folder, days) for days in (1, 3, 8)}
    # One of 200 B that aren't pinned fits beside the pinned 100 B and the newest 100 B.
    assert put(tmp_path, keep_bytes=300, pin=["a-91*"]) == {names[8], names[1], "new.tar.zst"}
    (tmp_path / "shelf" / "new.tar.zst").unlink()
    assert put(tmp_path, keep_count=2, keep_s=2 * DAY_S, pin=["*-91.tar.gz", "nobody"]) == {
        names[8],
        names[1],
        "new.tar.zst",
    }


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_will_do_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """link(2) fails as on an SMB share or FAT, which can't be mounted here; everything else is real."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert put(tmp_path) == {"new.tar.zst"}
    assert (tmp_path / "shelf" / "new.tar.zst").read_bytes() == b"y" * 100
    part = tmp_path / "part"
    part.write_text("other")
    with pytest.raises(FileExistsError):
        place(part, tmp_path / "shelf" / "new.tar.zst")
    assert (tmp_path / "shelf" / "new.tar.zst").read_bytes() == b"y" * 100
    with pytest.raises(FileNotFoundError):
        place(tmp_path / "gone", tmp_path / "shelf" / "later.tar.zst")
    assert not (tmp_path / "shelf" / "later.tar.zst").exists(), "nothing is in the way of the next attempt"


def test_only_archives_in_the_folder_itself_go(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    (folder / "below").mkdir(parents=True)
    notes, hidden = kept(folder, 9, name="notes.txt"), kept(folder, 9, name=".x.tar.gz")
    kept(folder / "below", 9)
    outside = tmp_path / kept(tmp_path, 9)
    (folder / "link.tar.gz").symlink_to(outside)
    assert put(tmp_path, keep_s=1, keep_bytes=1, keep_count=1) == {
        notes, hidden, "below", "link.tar.gz", "new.tar.zst",
    }  # fmt: skip
    assert outside.exists()
    assert len(list((folder / "below").iterdir())) == 1


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shelf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotKept, match="link"):
        put(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


LONG = "x" * 300
"""Can't be looked at, by root neither."""


def test_where_nothing_could_be_kept_is_known_beforehand_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "link").symlink_to(tmp_path)
    (tmp_path / "base" / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for base, path, why in (
        ("file/base", "x", "file is not a directory"),
        ("base", "link/x", "base/link is a link"),
        ("base", "there/x", ""),
        ("base/not/yet", "x/y", ""),
        (LONG, "x", f"{LONG}: File name too long"),
    ):
        said = refusal({"base": str(tmp_path / base), "path": path})
        assert said == (f"{tmp_path}/{why}" if why else "")
    assert sorted(tmp_path.rglob("*")) == before
