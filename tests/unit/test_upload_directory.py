"""A folder as upload target: what another process left or does meanwhile costs nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from retina_runner.uploads import NotStored, Parcel
from retina_runner.uploads.directory import DirectoryTarget

CONTENT = b"an archive" * 1000


@pytest.fixture
def parcel(tmp_path: Path) -> Parcel:
    path = tmp_path / "r-a-20260101000000UTC.tar.gz"
    path.write_bytes(CONTENT)
    return Parcel("r-20260101000000UTC", "a", path, hashlib.sha256(CONTENT).hexdigest())


def test_what_a_killed_runner_with_the_same_pid_has_left_is_in_nobodys_way(tmp_path: Path, parcel: Parcel) -> None:
    """As in a pod, where every runner has the same pid."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / f".{parcel.path.name}.{os.getpid()}.part").write_bytes(b"half")
    assert DirectoryTarget(str(folder)).store(parcel) == str(folder / parcel.path.name)
    assert (folder / parcel.path.name).read_bytes() == CONTENT


def test_a_folder_that_is_a_file_is_told(tmp_path: Path, parcel: Parcel) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(NotStored, match="File exists"):
        DirectoryTarget(str(tmp_path / "store")).store(parcel)


def test_nothing_is_left_beside_the_archive(tmp_path: Path, parcel: Parcel) -> None:
    target = DirectoryTarget(str(tmp_path / "store"))
    target.store(parcel)
    target.note(parcel, "manifest.json", b"{}")
    target.note(parcel, "run.json", b"{}")
    names = {p.name for p in (tmp_path / "store").iterdir()}
    assert names == {parcel.path.name, "r-a-20260101000000UTC.manifest.json", f"{parcel.run}.run.json"}
    changed = Parcel(parcel.run, "b", tmp_path / "r-b-20260101000000UTC.tar.gz", parcel.sha256)
    changed.path.write_bytes(b"other")
    with pytest.raises(NotStored, match="changed while it was copied"):
        target.store(changed)
    assert {p.name for p in (tmp_path / "store").iterdir()} == names
