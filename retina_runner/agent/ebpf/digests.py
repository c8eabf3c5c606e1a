"""Digests by the interpreter's own code: `hashlib` maps OpenSSL in, which is 3.5 MB and 3 ms for a few kilobytes to digest.

A node's Python can be built without some of it (Fedora's has BLAKE2 only), and a FIPS kernel can forbid it: `hashlib` then.
"""

from __future__ import annotations

import importlib
from typing import Any


def sha256(data: bytes = b"") -> Any:
    """As hashlib's, of which it is the slow one: 17 ms for the 5.5 MB of a kernel's types, where OpenSSL takes 3 ms."""
    for module in ("_sha2", "_sha256"):  # 3.12 and later; before
        try:
            return importlib.import_module(module).sha256(data)
        except (ImportError, AttributeError, ValueError):
            continue
    import hashlib

    return hashlib.sha256(data)


def quick(data: bytes = b"") -> Any:
    """BLAKE2b of 32 bytes, 6 ms for the same; where it is forbidden SHA-256. For what is compared on nodes of one kind only."""
    try:
        return importlib.import_module("_blake2").blake2b(data, digest_size=32)
    except (ImportError, AttributeError, ValueError):
        return sha256(data)
