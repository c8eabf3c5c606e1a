"""Names of what a run produces: uniform, sortable, safe as file names, distinct for distinct nodes. Pure.

An archive is `{prefix}-{node}-{YYYYMMDDhhmmss}UTC`, as Microsoft Retina names its own; the time is T0, the same for
every node of a run, in whole seconds and always UTC. Everything is refused that couldn't be read back.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from datetime import datetime

MOST_NODE_CHARACTERS = 80
"""Of a node in a file name. With the longest prefix (63 + 1 + 63), the time, an interface (15) and a ring's number, the
longest name is still below NAME_MAX, 255 bytes (limits.h)."""
ARCHIVE_ENDINGS = (".tar.gz", ".tar.zst")
_DIGEST_CHARACTERS = 6
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CHANGED = re.compile(r"[^_]*_.*-[0-9a-f]{6}", re.DOTALL)
_STAMPED = re.compile(r"(.+)-([0-9]{14})UTC", re.DOTALL)


def stamp(when: float) -> str:
    """`20261123031700UTC` for a Unix time, rounded down to seconds. Raises ValueError outside the years 1 to 9999."""
    try:
        moment = time.gmtime(when)
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{when} is not a Unix time") from None
    if not 1 <= moment.tm_year <= 9999:
        raise ValueError(f"{when} is not a time of the years 1 to 9999")
    # By hand: strftime's %Y has no leading zeros in glibc, and names must sort as times do.
    return "{:04d}{:02d}{:02d}{:02d}{:02d}{:02d}UTC".format(*moment[:6])


def _unstamp(digits: str) -> float:
    try:
        return datetime.strptime(f"{digits}+0000", "%Y%m%d%H%M%S%z").timestamp()
    except ValueError:
        raise ValueError(f"{digits} is not a time") from None


def safe_node(name: str) -> str:
    """The node's name as a part of a file name: letters, digits, `.`, `_`, `-`; never empty, hidden or an option.

    At most MOST_NODE_CHARACTERS. A name that has to change gets `_` for what was changed, and `-` and six hex digits of
    its SHA-256 at the end, so that two nodes never share one. So that none can pose as another, a name that looks as if
    it had been changed (`a_b-0c1d2e`) is changed too; host names have no `_`, so that this doesn't happen to them. Not
    idempotent therefore: give it the node's own name, once.
    """
    if _SAFE.fullmatch(name) and len(name) <= MOST_NODE_CHARACTERS and not _CHANGED.fullmatch(name):
        return name
    room = MOST_NODE_CHARACTERS - 1 - _DIGEST_CHARACTERS
    text = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if not text or text[0] in ".-":
        text = "_" + text[1:]
    if len(text) > room:
        text = text[: room - 1] + "_"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text}-{digest[:_DIGEST_CHARACTERS]}"


def capture_prefix(runbook_name: str, capture_name: str, several: bool) -> str:
    """What an archive's name begins with: the runbook's name, and the capture's where there is more than one."""
    return f"{runbook_name}-{capture_name}" if several else runbook_name


def archive_base(prefix: str, node: str, t0: float) -> str:
    """The archive's name without its ending, and the one folder in it. `node` is the node's own name, T0 Unix seconds.

    Raises ValueError for a prefix that isn't safe in a file name, and for no time.
    """
    _check_prefix(prefix)
    return f"{prefix}-{safe_node(node)}-{stamp(t0)}"


def without_ending(name: str) -> str:
    """An archive's name, or its key in a store, without what says how it is compressed."""
    return next((name.removesuffix(e) for e in ARCHIVE_ENDINGS if name.endswith(e)), name)


def run_id(name: str, t: float) -> str:
    """The name of a run and of its directory: the runbook's name and when it began. Raises ValueError."""
    _check_prefix(name)
    return f"{name}-{stamp(t)}"


def _check_prefix(prefix: str) -> None:
    if not _SAFE.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} can't begin a file name; letters, digits, `.`, `_` and `-` can, not `.` or `-` first"
        )


def parse_archive_name(name: str, known_prefixes: Iterable[str]) -> tuple[str, str, float]:
    """(prefix, node as `safe_node` gave it, T0) of an archive's name, with or without its ending.

    Prefix and node may both hold `-`, so the prefixes that are possible must be known. Raises ValueError for anything
    that `archive_base` doesn't make of one of them, and where two of them fit: the manifest inside knows.
    """
    found = _STAMPED.fullmatch(without_ending(name))
    if not found:
        raise ValueError(f"{name!r} doesn't end in -YYYYMMDDhhmmssUTC")
    t0 = _unstamp(found[2])
    fitting = sorted(p for p in set(known_prefixes) if _SAFE.fullmatch(p) and found[1].startswith(f"{p}-"))
    read = [(p, node) for p in fitting if _could_be_safe_node(node := found[1][len(p) + 1 :])]
    if not read:
        raise ValueError(f"{name!r} begins with none of the known names, or has no node behind it")
    if len(read) > 1:
        raise ValueError(f"{name!r} can be of {' or of '.join(p for p, _ in read)}")
    return (*read[0], t0)


def _could_be_safe_node(node: str) -> bool:
    return bool(_SAFE.fullmatch(node)) and len(node) <= MOST_NODE_CHARACTERS
