"""Secrets by reference: `env:NAME`, `file:PATH`. The value exists where it is used, and shows itself nowhere.

A `Secret`'s text is only given by `reveal`; its repr and str are stars, so that a log, an event or a traceback that
holds one holds nothing. `redact` takes every secret read so far out of a text, for words that others wrote.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from urllib.parse import quote

MOST_BYTES = 1 << 16
_known: set[str] = set()
_lock = threading.Lock()


class SecretError(Exception):
    """The reference leads to no secret; the text says why and never what it is."""


class Secret:
    """A value that doesn't show itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str):
        self._text = text
        if len(text) >= 4:  # shorter ones would star out half of any text
            with _lock:
                _known.update((text, quote(text, safe="")))

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(****)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)


def read_secret(reference: str) -> Secret:
    """The secret of `env:NAME` or `file:PATH` (without its last newline). Raises SecretError."""
    kind, _, rest = reference.partition(":")
    if kind == "env" and rest:
        if rest not in os.environ:
            raise SecretError(f"the environment variable {rest} isn't set")
        if not os.environ[rest]:
            raise SecretError(f"the environment variable {rest} is empty")
        return Secret(os.environ[rest])
    if kind == "file" and rest:
        return _of_file(Path(rest).expanduser())
    raise SecretError("a secret is given as env:NAME or file:PATH")


def _of_file(path: Path) -> Secret:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & 0o007:
        raise SecretError(f"{path} may be read by everybody (mode {stat.S_IMODE(mode):04o}); chmod 600 {path}")
    if len(content) > MOST_BYTES:
        raise SecretError(f"{path} is larger than {MOST_BYTES} B")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"{path} isn't UTF-8 text") from None
    if not text:
        raise SecretError(f"{path} is empty")
    return Secret(text)


def redact(text: str) -> str:
    """The text without any secret that was read in this process, also in its URL-encoded form."""
    with _lock:
        known = sorted(_known, key=len, reverse=True)
    for secret in known:
        text = text.replace(secret, "****")
    return text
