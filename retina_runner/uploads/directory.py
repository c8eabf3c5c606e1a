"""A folder on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from retina_runner.agent.archive import digest_of
from retina_runner.agent.shelf import place
from retina_runner.naming import without_ending
from retina_runner.uploads import Grant, Item, NotStored, Parcel
from retina_runner.uploads.keys import beside


class DirectoryTarget:
    """Copies archives below a folder; see `uploads.Target`."""

    via = "runner"

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def describe(self) -> str:
        return str(self._folder)

    def preflight(self, needed_s: float = 0.0) -> None:
        place = self._folder
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotStored(f"{place} is not a directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise NotStored(f"{place} may not be written by this user")

    def store(self, parcel: Parcel) -> str:
        target = self._folder / parcel.path.name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                return self._same(target, parcel)
            with self._part() as (part, out):
                digest = hashlib.sha256()
                with open(parcel.path, "rb") as source:
                    while chunk := source.read(1 << 20):
                        out.write(chunk)
                        digest.update(chunk)
                out.flush()
                os.fsync(out.fileno())
                if digest.hexdigest() != parcel.sha256:
                    raise NotStored(f"{parcel.path} changed while it was copied")
                try:
                    place(part, target)
                except FileExistsError:
                    return self._same(target, parcel)
        except OSError as error:
            free = f" ({shutil.disk_usage(self._folder).free} B free)" if self._folder.is_dir() else ""
            raise NotStored(f"{error.filename or target}: {error.strerror}{free}") from error
        return str(target)

    @contextmanager
    def _part(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file beside the archives, gone at the end unless it was renamed. (In a pod every runner has the same pid.)"""
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=self._folder)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Path(name), file
        finally:
            Path(name).unlink(missing_ok=True)

    def _same(self, target: Path, parcel: Parcel) -> str:
        if digest_of(target)[1] == parcel.sha256:
            return str(target)
        raise NotStored(f"{target} is there already, with other content; it is not overwritten")

    def note(self, parcel: Parcel, name: str, content: bytes) -> None:
        path = self._beside(parcel, name)
        try:
            with self._part() as (part, file):
                file.write(content)
                file.flush()
                os.replace(part, path)
        except OSError as error:
            raise NotStored(f"{path}: {error.strerror}") from error

    def place(self) -> dict[str, Any] | None:
        return None

    def _beside(self, parcel: Parcel, name: str) -> Path:
        # Several runs share the folder.
        return self._folder / (beside(parcel.path.name, name) if name != "run.json" else f"{parcel.run}.{name}")

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        return None  # a folder of this machine's isn't the node's

    def confirm(self, parcel: Parcel, answer: Mapping[str, Any]) -> str:
        raise NotStored("a node can't store in a folder of this machine")

    def listing(self, below: str) -> Iterator[tuple[str, int]]:
        try:
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder).as_posix()
                if path.is_file() and not path.name.startswith(".") and (not below or below in name):
                    yield name, path.stat().st_size
        except OSError as error:
            raise NotStored(f"{error.filename}: {error.strerror}") from error

    def read(self, key: str) -> Iterator[bytes]:
        try:
            with open(self._folder / key, "rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
        except OSError as error:
            raise NotStored(f"{error.filename}: {error.strerror}") from error

    @property
    def prefix(self) -> str:
        return ""

    def key_for(self, parcel: Parcel, name: str = "") -> str:
        return self._beside(parcel, name).name if name else parcel.path.name

    def find(self, parcel: Parcel, name: str = "") -> Item | None:
        path = self._folder / self.key_for(parcel, name)
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                return Item(path.name, 0, "it is no regular file")
            version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
            return Item(path.name, status.st_size, self._alien(path, parcel, name), version)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotStored(f"{path}: {error.strerror}") from error

    def _alien(self, path: Path, parcel: Parcel, name: str) -> str:
        """A file has no metadata: its content is what tells whose it is."""
        if not name:
            return "" if digest_of(path)[1] == parcel.sha256 else "it has another sha256 than the archive"
        try:
            said = json.loads(path.read_bytes())
            ours = said["run"] == parcel.run if name == "run.json" else said["base"] == without_ending(parcel.path.name)
        except (ValueError, KeyError, TypeError):
            ours = False
        return "" if ours else f"it isn't the {name} of this run"

    def remove(self, item: Item) -> None:
        path = self._folder / item.key
        try:
            status = os.lstat(path)
            if f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}" != item.version:
                raise NotStored(f"{path} was written anew meanwhile; it stays")
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise NotStored(f"{path}: {error.strerror}") from error
