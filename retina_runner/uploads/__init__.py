"""Upload targets: where a verified archive is stored besides the run directory.

An archive counts as stored when the target has confirmed its size and digest. Nothing is ever overwritten: a name that is
taken by other content is a failure, by the same content a success.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class NotStored(Exception):
    """The archive isn't where it should be; the text says why, and never holds a secret."""


@dataclass(frozen=True)
class Parcel:
    """A verified archive to store."""

    run: str
    node: str
    path: Path
    sha256: str


class Target(Protocol):
    """One place. `describe` names it for people, without secrets."""

    def describe(self) -> str: ...

    def preflight(self) -> None:
        """Raise NotStored when storing can't work; called before any node is touched."""
        ...

    def store(self, parcel: Parcel) -> str:
        """Store the archive and return its location. Raises NotStored. Idempotent."""
        ...
