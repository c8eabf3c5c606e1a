"""Is an archive what its node packed? Every digest, the schema, every pcap to its last packet; in constant memory.

Nothing in an archive is believed before it is checked: names are checked before anything is written, and no more is
inflated than the manifest says there is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from retina_runner import schema
from retina_runner.agent.pcap import inspect
from retina_runner.errors import ArchiveError
from retina_runner.inflating import CHUNK_BYTES, Damaged, Inflater
from retina_runner.naming import ARCHIVE_ENDINGS

MOST_MANIFEST_BYTES = 64 << 20
_TAR_OVERHEAD = 1 << 20


@dataclass(frozen=True)
class Verification:
    """`problems` is empty for an intact archive. `manifest` is None when it can't be read; `packets` is over all pcaps."""

    path: Path
    problems: tuple[str, ...]
    manifest: dict[str, Any] | None = None
    packets: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    manifest: dict[str, Any] | None = None
    packets: int = 0


def verify_archive(path: str | Path) -> Verification:
    """Check one archive. Never raises for what is in it; an unreadable file is a problem too."""
    path, found = Path(path), _Findings()
    try:
        with open(path, "rb") as file:
            inflater = Inflater(file, MOST_MANIFEST_BYTES + _TAR_OVERHEAD)
            _walk(path, inflater, found)
            inflater.finish()
    except Damaged as damage:
        found.problems.append(str(damage))
    except ArchiveError as error:
        found.problems.append(str(error))
    except tarfile.TarError as error:
        found.problems.append(f"not a tar archive inside: {error}")
    except OSError as error:
        found.problems.append(error.strerror or str(error))
    return Verification(path, tuple(found.problems), found.manifest, found.packets)


def members(inflater: Inflater) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """What an archive's inflated bytes hold, in order; each is to be read before the next is asked for."""
    with tarfile.open(fileobj=io.BufferedReader(inflater, CHUNK_BYTES), mode="r|", bufsize=512 * 20) as tar:
        for member in tar:
            yield tar, member


def _walk(path: Path, inflater: Inflater, found: _Findings) -> None:
    expected: dict[str, dict[str, Any]] = {}
    top = ""
    for number, (tar, member) in enumerate(members(inflater)):
        _check_name(member)
        if number == 0:
            top, name = _split(member.name)
            if name != "manifest.json" or member.size > MOST_MANIFEST_BYTES:
                raise Damaged(
                    f"the first member is {member.name}, not a manifest.json; this isn't an archive of retina-run"
                )
            expected = _read_manifest(tar, member, found)
            assert found.manifest is not None
            if found.manifest["base"] != top or path.name.removesuffix(".part") not in (
                f"{top}{ending}" for ending in ARCHIVE_ENDINGS
            ):
                found.problems.append(f"the file is named {path.name}, but it is the archive {found.manifest['base']}")
            inflater.limit_bytes = (
                inflater.given + sum(f["size_bytes"] + 2048 for f in expected.values()) + _TAR_OVERHEAD
            )
            continue
        _check_member(tar, member, top, expected, found)
    if found.manifest is None:
        raise Damaged("there is nothing in it")
    found.problems += [f"{name}: missing" for name in expected]


def _check_name(member: tarfile.TarInfo) -> None:
    parts = member.name.split("/")
    if not member.isreg():
        raise Damaged(f"{member.name!r} is not a regular file")
    if member.name.startswith("/") or any(p in ("", ".", "..") for p in parts) or len(parts) < 2:
        raise Damaged(f"the member name {member.name!r} could leave the archive's folder")


def _split(name: str) -> tuple[str, str]:
    top, _, rest = name.partition("/")
    return top, rest


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo, found: _Findings) -> dict[str, dict[str, Any]]:
    stream = tar.extractfile(member)
    assert stream is not None
    try:
        manifest = json.loads(stream.read())
    except ValueError as error:
        raise Damaged(f"manifest.json isn't JSON: {error}") from None
    violations = schema.violations("manifest", manifest)
    if violations:
        raise Damaged(f"manifest.json doesn't keep to its schema: {violations[0]}")
    found.manifest = manifest
    return {f["path"]: f for f in manifest["files"]}


def _check_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, top: str, expected: dict[str, dict[str, Any]], found: _Findings
) -> None:
    folder, name = _split(member.name)
    file = expected.pop(name, None) if folder == top else None
    if file is None:
        found.problems.append(f"{member.name}: not in the manifest")
        return
    stream = tar.extractfile(member)
    assert stream is not None
    digest, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    facts = inspect(pieces()) if name.endswith(".pcap") else None
    for _ in pieces():
        pass
    if size != file["size_bytes"] or digest.hexdigest() != file["sha256"]:
        found.problems.append(f"{name}: altered: its size or sha256 isn't the manifest's")
    elif facts is not None:
        found.packets += facts.packets
        if "packets" in file and facts.packets != file["packets"]:
            found.problems.append(f"{name}: holds {facts.packets} packets, the manifest says {file['packets']}")
        if not facts.complete and not _known_partial(found.manifest, name):
            found.problems.append(f"{name}: {facts.why}")


def _known_partial(manifest: dict[str, Any] | None, name: str) -> bool:
    """A pcap that was packed truncated, and says so, is as intact as it ever was."""
    verdicts = manifest["verdicts"] if manifest else []
    return any(v["artefact"] == name and v["verdict"] in ("partial", "unknown") for v in verdicts)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest alone, from the archive's first bytes. Raises ArchiveError."""
    try:
        with open(path, "rb") as file:
            return _first(file)
    except (ArchiveError, OSError) as error:
        raise ArchiveError(f"{path}: {error}") from error


def first_manifest(chunks: Iterator[bytes]) -> dict[str, Any]:
    """As `read_manifest`, of an archive that comes in pieces; takes no more of them than that. Raises ArchiveError."""
    with io.BufferedReader(_Pieces(chunks), CHUNK_BYTES) as file:
        return _first(file)


def _first(file: IO[bytes]) -> dict[str, Any]:
    found = _Findings()
    try:
        for tar, member in members(Inflater(file, MOST_MANIFEST_BYTES + _TAR_OVERHEAD)):
            _check_name(member)
            _read_manifest(tar, member, found)
            break
    except (Damaged, tarfile.TarError) as error:
        raise ArchiveError(str(error)) from error
    if found.manifest is None:
        raise ArchiveError("there is nothing in it")
    return found.manifest


class _Pieces(io.RawIOBase):
    """A file of what an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest, self._at = chunks, b"", 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._at += count
        return count


def unpack(path: str | Path, into: str | Path) -> Path:
    """Unpack a verified archive into its one folder below `into`, which must not hold it yet; the folder.

    Files are made anew (never followed or overwritten) with mode 0600, folders 0700. Raises ArchiveError.
    """
    checked = verify_archive(path)
    if not checked.ok or checked.manifest is None:
        raise ArchiveError(f"{path}: {'; '.join(checked.problems)}")
    folder = Path(into) / str(checked.manifest["base"])
    try:
        folder.mkdir(mode=0o700, parents=True)
        with open(path, "rb") as file:
            for tar, member in members(_inflater_of(file, checked)):
                target = folder.joinpath(*_split(member.name)[1].split("/"))
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                stream = tar.extractfile(member)
                assert stream is not None
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as out:
                    while chunk := stream.read(CHUNK_BYTES):
                        out.write(chunk)
    except FileExistsError as error:
        raise ArchiveError(f"{error.filename}: is there already; unpack somewhere else, or remove it") from error
    except OSError as error:
        raise ArchiveError(f"{error.filename or folder}: {error.strerror}") from error
    return folder


def _inflater_of(file: IO[bytes], checked: Verification) -> Inflater:
    assert checked.manifest is not None
    inflater = Inflater(file, MOST_MANIFEST_BYTES + _TAR_OVERHEAD)
    inflater.limit_bytes += sum(f["size_bytes"] + 2048 for f in checked.manifest["files"])
    return inflater
