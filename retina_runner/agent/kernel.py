"""What this kernel has already: a collector must never be the reason why a module is loaded.

Commands such as `ss`, `conntrack` and `nft` make the kernel load modules on first use (request_module). Each is gated
by the modules that it would need.
"""

from __future__ import annotations

import os
import platform
import socket
from functools import lru_cache
from typing import FrozenSet, List


@lru_cache(maxsize=None)
def _built_in() -> FrozenSet[str]:
    """Modules compiled into the kernel, by modules.builtin of kmod; empty where the file isn't there."""
    names = set()
    for folder in ("/lib/modules", "/usr/lib/modules"):
        try:
            with open(f"{folder}/{platform.release()}/modules.builtin", encoding="ascii", errors="replace") as file:
                for line in file:
                    names.add(os.path.basename(line.strip()).partition(".ko")[0].replace("-", "_"))
        except OSError:
            continue
    return frozenset(names)


def has_module(name: str) -> bool:
    """Loaded, or built in, or in a kernel that can't load modules at all (then whatever it has, it has)."""
    name = name.replace("-", "_")
    if not os.path.exists("/proc/modules"):
        return True
    if os.path.isdir(f"/sys/module/{name}") or name in _built_in():
        return True
    try:
        with open("/proc/modules", encoding="ascii", errors="replace") as file:
            return any(line.split(" ", 1)[0] == name for line in file)
    except OSError:
        return False


def interfaces() -> List[str]:
    """Names of the interfaces of the network namespace that the caller is in, sorted. Not from /sys/class/net, which has
    those of the namespace that it was mounted in."""
    return sorted(name for _, name in socket.if_nameindex())
