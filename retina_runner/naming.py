"""Names of what a run produces: uniform, sortable, safe as file names, distinct for distinct nodes. Pure.

An archive is `{prefix}-{node}-{YYYYMMDDhhmmss}UTC`, as Microsoft Retina names its own; the time is T0, the same for
every node of a run.
"""

from __future__ import annotations

import calendar
import hashlib
import re
import time
from collections.abc import Iterable

MOST_NODE_CHARACTERS = 100
_STAMP = "%Y%m%d%H%M%S"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_STAMPED = re.compile(r"-(\d{14})UTC$")


def stamp(when: float) -> str:
    """`20261123031700UTC` for a Unix time, whole seconds, rounded down."""
    return time.strftime(_STAMP, time.gmtime(when)) + "UTC"


def safe_node(name: str) -> str:
    """The node's name as a part of a file name: letters, digits, `.`, `_`, `-`; never empty, hidden or an option.

    A name that has to change gets `-` and six hex digits of its SHA-256, so that two nodes never share one. A name that
    looks as if it had been changed is changed too.
    """
    safe = _UNSAFE.sub("_", name).lstrip(".-")[:MOST_NODE_CHARACTERS]
    if safe == name and not re.search(r"-[0-9a-f]{6}$", name):
        return name
    return f"{safe or 'node'}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


def capture_prefix(runbook: str, capture: str, several: bool) -> str:
    """What an archive's name begins with: the runbook's name, and the capture's where there is more than one."""
    return f"{runbook}-{capture}" if several else runbook


def archive_base(prefix: str, node: str, t0: float) -> str:
    """The archive's name without `.tar.gz`, and the one folder in it. `node` is the node's own name."""
    return f"{prefix}-{safe_node(node)}-{stamp(t0)}"


def run_id(runbook: str, started: float) -> str:
    """The name of a run and of its directory."""
    return f"{runbook}-{stamp(started)}"


def parse_archive_base(base: str, prefixes: Iterable[str]) -> tuple[str, str, float]:
    """(prefix, safe node, T0), given the prefixes that are possible: both parts may hold `-`, so they must be known.

    The longest fitting prefix wins. Raises ValueError.
    """
    base = base.removesuffix(".tar.gz")
    found = _STAMPED.search(base)
    if not found:
        raise ValueError(f"{base}: it doesn't end in -YYYYMMDDhhmmssUTC")
    t0 = float(calendar.timegm(time.strptime(found.group(1), _STAMP)))
    for prefix in sorted(prefixes, key=len, reverse=True):
        node = base[len(prefix) + 1 : found.start()]
        if base.startswith(prefix + "-") and node:
            return prefix, node, t0
    raise ValueError(f"{base}: it begins with none of the known capture names")
