"""Puts what was collected into the archive, and finishes it, however full the disk is: what doesn't fit is told, no more.

Room is made in this order: files that are in the archive already go, then the one that is being read (its rest waits in
memory). When somebody else fills that too, a member is cut to what is on the disk, and at last left out.
"""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Tuple, Union

from retina_runner.agent.archive import ArchiveInfo, ArchiveWriter
from retina_runner.agent.context import Short
from retina_runner.agent.member import Member, MemberInfo
from retina_runner.agent.passing import Passing, is_full

CHUNK_BYTES = 1 << 20
LARGE_BYTES = 1 << 20
"""Files from this size on come last: a disk that fills costs as few of them as can be."""


class Packing:
    """Fills one archive. `short` is called for each member that isn't whole in it, before the manifest is made."""

    def __init__(self, writer: ArchiveWriter, short: Callable[[Short], None]):
        self._writer, self._short = writer, short
        self._packed: List[Path] = []
        self._shorts: Dict[str, Short] = {}

    def settle(self) -> None:
        """Close the members that grew while the window ran."""
        for member in self._writer.open_members():
            self._close(member, member.size_bytes)

    def add_folder(self, folder: Path) -> None:
        """Add every file below it, under its path from there. The files go when their room is needed."""
        files = [p for p in folder.rglob("*") if p.is_file()]
        for path in sorted(files, key=lambda p: (p.stat().st_size >= LARGE_BYTES, p)):
            self.add(str(path.relative_to(folder)), path)

    def add_held(self, held: Mapping[str, bytes]) -> None:
        """Add what never got onto the disk."""
        for name in sorted(held, key=lambda n: (len(held[n]) >= LARGE_BYTES, n)):
            self.add(name, held[name])

    def add(self, name: str, content: Union[Path, bytes]) -> None:
        """Add one member: bytes, or the file of a path as it is now."""
        source = Passing(content)
        try:
            member = self._writer.open_member(name)
            while True:
                chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    break
                if not self._pressed(partial(member.write, chunk), member.flush, source):
                    self._cut(member, source.size_bytes)
                    break
            self._close(member, source.size_bytes)
        finally:
            source.close()
        if source.path is not None:
            self._packed.append(source.path)

    def finish(self, manifest: Callable[[Tuple[MemberInfo, ...]], bytes]) -> ArchiveInfo:
        """As ArchiveWriter.finish, leaving members out, the last ones first, for as long as there is no room for the end."""
        self.settle()
        while True:
            self._tell()
            try:
                return self._writer.finish(manifest)
            except OSError as error:
                if not is_full(error):
                    raise
            if self._packed:
                self._make_room()
                continue
            member = self._writer.drop_last()
            if member is None:
                raise OSError(errno.ENOSPC, "no space left on the node, not even for an empty archive")
            self._note(member, 0, member.size_bytes)

    # -- room ----------------------------------------------------------------------------------------------------------

    def _pressed(self, write: Callable[[], None], again: Callable[[], None], *source: Passing) -> bool:
        """Write, and once more when room could be made; whether everything of the member so far is on the disk."""
        for attempt in (write, again):
            try:
                attempt()
                return True
            except OSError as error:
                if not is_full(error):
                    raise
            self._make_room(*source)
        return False

    def _make_room(self, *sources: Passing) -> None:
        for path in self._packed:
            path.unlink(missing_ok=True)
        self._packed = []
        for source in sources:
            source.give_up()

    def _close(self, member: Member, size_bytes: int) -> None:
        """Close it, cut as often as that takes."""
        if member not in self._writer.open_members():
            return
        while not self._pressed(member.close, member.close):
            if not self._cut(member, size_bytes):
                return

    def _cut(self, member: Member, size_bytes: int) -> bool:
        """Whether something of the member is left."""
        left = member.cut()
        if not left:
            self._writer.drop(member)
        self._note(member, member.size_bytes if left else 0, size_bytes)
        return left

    def _note(self, member: Member, kept_bytes: int, size_bytes: int) -> None:
        why = f"the node's disk is full: {kept_bytes or 'none'} of {size_bytes} B are in the archive"
        self._shorts[member.path] = Short(member.path, kept_bytes, size_bytes, member.count if kept_bytes else 0, why)

    def _tell(self) -> None:
        for short in self._shorts.values():
            self._short(short)
        self._shorts = {}
