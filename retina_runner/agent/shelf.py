"""A finished archive kept on its node: below a base directory, never outside it, with a bound on how many, how old, how much.

Nothing is overwritten, and only archives are ever removed: files that end in `.tar.gz`, `.tar` or `.tar.zst`, directly in
the folder, that no link leads to, and whose names `pin` doesn't match.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping

ENDINGS = (".tar.gz", ".tar", ".tar.zst")


class NotKept(Exception):
    """Why the archive isn't kept."""


def keep(archive: Path, sha256: str, options: Mapping[str, Any]) -> Dict[str, Any]:
    """Put the archive on the shelf. `options`: base, path, keep_count, keep_s, keep_bytes (each None for no bound), and
    `pin`, patterns of names that stay whatever these say.

    Returns {"location": …, "removed": […]}. Raises NotKept.
    """
    from retina_runner.agent.archive import digest_of

    folder = _folder(Path(str(options["base"])), str(options["path"]))
    target = folder / archive.name
    part = folder / f".{archive.name}.{os.getpid()}.part"
    try:
        if target.exists():
            if digest_of(target)[1] != sha256:
                raise NotKept(f"{target} is there already, with other content; it is not overwritten")
        else:
            shutil.copyfile(str(archive), str(part))
            os.chmod(str(part), 0o600)
            if digest_of(part)[1] != sha256:
                raise NotKept(f"{target}: it was damaged while it was copied")
            with open(str(part), "rb") as file:
                os.fsync(file.fileno())  # it may be the only copy soon
            place(part, target)
        return {"location": str(target), "removed": prune(folder, options, target.name)}
    except OSError as error:
        raise NotKept(f"{error.filename or target}: {error.strerror}") from error
    finally:
        try:
            part.unlink()
        except OSError:
            pass


def refusal(options: Mapping[str, Any]) -> str:
    """Why no archive could be kept there, as far as that can be known beforehand; empty if one could. Touches nothing."""
    try:
        return _refusal(Path(str(options["base"])), str(options["path"]))
    except OSError as error:  # a folder on the way that this user may not look into
        return f"{error.filename}: {error.strerror}"


def _refusal(base: Path, path: str) -> str:
    place = base
    while not place.exists():
        place = place.parent
    if place == base:
        for part in path.split("/"):
            below = place / part
            if below.is_symlink():
                return f"{below} is a link"
            if not below.exists():
                break
            place = below
    if not place.is_dir():
        return f"{place} is not a directory"
    if not os.access(str(place), os.W_OK | os.X_OK):
        return f"{place} may not be written by this user, or is read-only"
    return ""


def place(part: Path, target: Path) -> None:
    """Give a whole file its name, and replace nothing. Raises OSError (FileExistsError).

    By link(2), where the file system has it: SMB shares and FAT don't, whether mounted here or as a cluster's claim.
    """
    try:
        os.link(str(part), str(target))
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        os.close(os.open(str(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # the name is ours from here on
        try:
            os.replace(str(part), str(target))
        except OSError:
            os.unlink(str(target))  # an empty file would be in the way of the next attempt
            raise


def _folder(base: Path, path: str) -> Path:
    """The folder, made step by step; a link on the way is somebody's attempt to lead out of the base directory."""
    if not base.is_absolute():
        raise NotKept(f"{base} is not an absolute path")
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = base.resolve()
        for part in path.split("/"):
            if part in ("", ".", ".."):
                raise NotKept(f"{path!r} is not a path below {base}")
            place = place / part
            if place.is_symlink():
                raise NotKept(f"{place} is a link")
            place.mkdir(mode=0o700, exist_ok=True)
        return place
    except OSError as error:
        raise NotKept(f"{error.filename or base}: {error.strerror}") from error


def prune(folder: Path, options: Mapping[str, Any], newest: str) -> List[str]:
    """Remove what is over the bounds, the oldest first, never `newest` nor what is pinned; the names of what was removed.

    What is pinned takes its room of `keep_bytes`, since a disk doesn't ask why, and no place of `keep_count`.
    """
    found, pinned_bytes = [], 0
    for entry in os.scandir(str(folder)):
        if entry.name.endswith(ENDINGS) and entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            status = entry.stat(follow_symlinks=False)
            if any(fnmatch.fnmatchcase(entry.name, str(pattern)) for pattern in options.get("pin") or ()):
                pinned_bytes += status.st_size
                continue
            found.append((status.st_mtime, status.st_size, entry.name))
    found.sort()
    removed = []
    while found:
        when, _, name = found[0]
        over = (
            (options.get("keep_count") is not None and len(found) > options["keep_count"])
            or (
                options.get("keep_bytes") is not None
                and pinned_bytes + sum(f[1] for f in found) > options["keep_bytes"]
            )
            or (options.get("keep_s") is not None and when < time.time() - options["keep_s"])
        )
        if not over or name == newest:
            break
        (folder / name).unlink()
        removed.append(name)
        found.pop(0)
    return removed
