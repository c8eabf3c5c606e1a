"""Upload targets: where a verified archive is stored besides the run directory.

An archive counts as stored when the target has confirmed its size and digest. Nothing is ever overwritten: a name that is
taken by other content is a failure, by the same content a success. Secrets are read where they are used and never shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

SINGLE_MOST_BYTES = 32 << 20
"""Up to this size an archive goes in one request; above it in blocks, each of which can be repeated by itself."""
BLOCK_BYTES = 8 << 20
MOST_BLOCKS = 10_000
"""Parts of a multipart upload, S3; Azure takes 50,000."""
MOST_SKEW_S = 300.0
"""How far this machine's clock may be off a store's: beyond it, they refuse signatures (S3: 15 min)."""


class NotStored(Exception):
    """The archive isn't where it should be; the text says why, and never holds a secret."""


class Forgotten(NotStored):
    """The store no longer has parts that it had confirmed."""


@dataclass(frozen=True)
class Parcel:
    """A verified archive to store. For one that is still on its node, `path` has the name and is not there."""

    run: str
    node: str
    path: Path
    sha256: str
    size_bytes: int = 0

    @property
    def metadata(self) -> dict[str, str]:
        """What a store keeps beside the archive; keys and values are plain ASCII."""
        node = self.node.encode("ascii", "replace").decode()
        return {"run": self.run, "node": node, "sha256": self.sha256}


@dataclass(frozen=True)
class Grant:
    """What a node needs to store one archive, once, for a while, and nothing else: `document` is the agent's to read.

    It holds signatures: it travels on standard input and is never written down.
    """

    key: str
    document: Mapping[str, Any]


class Target(Protocol):
    """One place. `describe` names it for people, without secrets. `via` is runner, node or auto."""

    via: str

    def describe(self) -> str: ...

    def preflight(self, needed_s: float) -> None:
        """Raise NotStored when storing can't work for the next `needed_s` seconds; called before any node is touched.

        Nothing is left at the target.
        """
        ...

    def store(self, parcel: Parcel) -> str:
        """Store the archive and return its location. Raises NotStored. Idempotent."""
        ...

    def note(self, parcel: Parcel, name: str, content: bytes) -> None:
        """Put a small file beside the archive (its manifest, the run's `run.json`). Raises NotStored."""
        ...

    def place(self) -> dict[str, Any] | None:
        """What a node has to get through to before a grant is of use: `url` and the names of `Route.for_node`.

        None where nobody can be granted anything: the runner stores. Raises NotStored.
        """
        ...

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        """What lets the node store the archive itself; None where this target can't give that to anybody."""
        ...

    def confirm(self, parcel: Parcel, answer: Mapping[str, Any]) -> str:
        """The location of what a node says it has stored, after asking the store. Raises NotStored."""
        ...

    def listing(self, below: str) -> Iterator[tuple[str, int]]:
        """(key, bytes) of what is stored below a prefix. Raises NotStored."""
        ...

    def read(self, key: str) -> Iterator[bytes]:
        """The bytes of a key. Raises NotStored."""
        ...

    @property
    def prefix(self) -> str:
        """What all keys of this target begin with; empty for anything."""
        ...

    def key_for(self, parcel: Parcel, name: str = "") -> str:
        """The key of the archive, or with `name` of the small file beside it. Asks nobody."""
        ...

    def find(self, parcel: Parcel, name: str = "") -> Item | None:
        """The archive, or with `name` the small file beside it, if anything is there. Raises NotStored."""
        ...

    def remove(self, item: Item) -> None:
        """Delete what `find` found; nothing that has come in its place. Raises NotStored. Idempotent."""
        ...


@dataclass(frozen=True)
class Item:
    """Something in a store that lies where an archive of ours, or a small file beside one, belongs.

    `alien` says why it isn't ours, empty when it is: then its metadata (in a folder: its content) are the parcel's.
    `version` is the store's own mark of this very content, empty where it has none.
    """

    key: str
    size_bytes: int
    alien: str = ""
    version: str = ""


def alien(parcel: Parcel, metadata: Mapping[str, Any], note: bool) -> str:
    """Why an object with these metadata isn't the parcel's (or a note beside it); empty when it is."""
    known = {str(k).lower(): str(v) for k, v in metadata.items()}
    for name in ("run",) if note else ("run", "node", "sha256"):
        if known.get(name) != parcel.metadata[name]:
            return f"its metadata say {name} = {known[name]}" if name in known else f"it has no metadata {name}"
    return ""


def content_type(name: str) -> str:
    """The media type of an archive of that name (RFC 6713, RFC 8878)."""
    return "application/zstd" if name.endswith(".tar.zst") else "application/gzip"


def block_bytes(size_bytes: int) -> int:
    """How large the blocks of an archive are: 8 MiB, more where there would be too many."""
    least = -(-size_bytes // MOST_BLOCKS)
    return max(BLOCK_BYTES, -(-least // (1 << 20)) << 20)


def check_clock(date: str) -> None:
    """Raise NotStored when a store's `Date` is far from this machine's time; an absent or odd one says nothing."""
    try:
        skew_s = time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return
    if abs(skew_s) > MOST_SKEW_S:
        raise NotStored(f"this machine's clock is {skew_s:+.0f} s off the store's; signatures would be refused")
