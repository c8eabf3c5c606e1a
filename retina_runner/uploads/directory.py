"""A folder on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from retina_runner.agent.archive import digest_of
from retina_runner.uploads import NotStored, Parcel


class DirectoryTarget:
    """Copies archives below a folder; see `uploads.Target`."""

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def describe(self) -> str:
        return str(self._folder)

    def preflight(self) -> None:
        place = self._folder
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotStored(f"{place} is not a directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise NotStored(f"{place} may not be written by this user")

    def store(self, parcel: Parcel) -> str:
        target = self._folder / parcel.path.name
        part = self._folder / f".{parcel.path.name}.{os.getpid()}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                return self._same(target, parcel)
            try:
                digest = hashlib.sha256()
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as out, open(parcel.path, "rb") as source:
                    while chunk := source.read(1 << 20):
                        out.write(chunk)
                        digest.update(chunk)
                    out.flush()
                    os.fsync(out.fileno())
                if digest.hexdigest() != parcel.sha256:
                    raise NotStored(f"{parcel.path} changed while it was copied")
                # link(2), not rename(2): it refuses to replace what another run may have put there meanwhile.
                os.link(part, target)
            finally:
                part.unlink(missing_ok=True)
        except FileExistsError:
            return self._same(target, parcel)
        except OSError as error:
            free = f" ({shutil.disk_usage(self._folder).free} B free)" if self._folder.exists() else ""
            raise NotStored(f"{error.filename or target}: {error.strerror}{free}") from error
        return str(target)

    def _same(self, target: Path, parcel: Parcel) -> str:
        if digest_of(target)[1] == parcel.sha256:
            return str(target)
        raise NotStored(f"{target} is there already, with other content; it is not overwritten")
