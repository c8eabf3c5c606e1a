"""A large archive in blocks, each known by its number and its MD5: whoever goes on with an upload skips what the store has.

Nodes cut archives the same way (`agent/upload.py`), so the runner can finish what a node began.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

AT_ONCE = 2
"""How many blocks are on their way at a time; one more is in memory."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Block:
    """`number` counts from 0."""

    number: int
    content: bytes

    @cached_property
    def md5(self) -> bytes:
        return md5_of(self.content)

    @property
    def name(self) -> str:
        """The block's name at Azure, as the node's agent gives it: all of one length."""
        return f"{self.number:06d}-{self.md5.hex()}"


def send_blocks(
    path: Path, length: int, known: Callable[[Block], _T | None], put: Callable[[Block], _T]
) -> tuple[list[_T], bytes]:
    """What the store calls each block, in order, and the MD5 of the whole file.

    `known(block)` is that name where the store has the block already, `put(block)` stores it and is called from several
    threads. The first error ends it, after the blocks that are on their way. Raises what `put` raises, and OSError.
    """
    names: list[_T] = []
    whole = hashlib.md5(usedforsecurity=False)
    waiting: deque[Future[_T]] = deque()
    with open(path, "rb") as file, ThreadPoolExecutor(AT_ONCE, thread_name_prefix="blocks") as pool:
        try:
            for number, content in enumerate(iter(lambda: file.read(length), b"")):
                whole.update(content)
                block = Block(number, content)
                name = known(block)
                waiting.append(pool.submit(put, block) if name is None else _done(name))
                while len(waiting) > AT_ONCE:
                    names.append(waiting.popleft().result())
            names.extend(future.result() for future in waiting)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return names, whole.digest()


def md5_of(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def md5_header(digest: bytes) -> str:
    """As Content-MD5 wants it (RFC 1864)."""
    return base64.b64encode(digest).decode()


def _done(value: _T) -> Future[_T]:
    future: Future[_T] = Future()
    future.set_result(value)
    return future
