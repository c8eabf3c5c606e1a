"""What this node is: the host facts of the manifest and of `check`."""

from __future__ import annotations

import os
import sys
from typing import Any, Dict, Optional

TOOLS = {
    "tcpdump": ("tcpdump", "--version"),
    "iptables": ("iptables", "--version"),
    "ip6tables": ("ip6tables", "--version"),
    "nft": ("nft", "--version"),
    "ipset": ("ipset", "--version"),
    "ip": ("ip", "-V"),
    "ss": ("ss", "-V"),
    "nstat": ("nstat", "-V"),
    "tc": ("tc", "-V"),
    "conntrack": ("conntrack", "--version"),
    "ethtool": ("ethtool", "--version"),
}
CAPABILITIES = {12: "net_admin", 13: "net_raw", 21: "sys_admin", 38: "perfmon", 39: "bpf"}
"""capabilities(7), the ones that collectors can need; numbers from linux/capability.h."""


def host() -> Dict[str, Any]:
    """`system`, and tools: name to the first line of its version, or null. Starts a process for each."""
    return {**system(), "tools": {name: version(*command) for name, command in TOOLS.items()}}


def system() -> Dict[str, Any]:
    """hostname, kernel, machine, distribution, python: what is known without starting anything."""
    return {
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "distribution": distribution(),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def version(*command: str) -> Optional[str]:
    """The first line that a tool says of its version; None when it isn't installed."""
    from retina_runner.agent import process  # the rights are read where nothing is started

    try:
        outcome = process.run(command, limit_s=5.0, output_limit_bytes=1 << 16)
    except (process.MissingTool, OSError):
        return None
    text = (outcome.stdout or outcome.stderr).decode("utf-8", "replace").strip()
    return text.splitlines()[0][:200] if text else ""


def distribution() -> str:
    """PRETTY_NAME of os-release(5); empty where there is none."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith("PRETTY_NAME="):
                        return line.partition("=")[2].strip().strip("\"'")
        except OSError:
            continue
    return ""


def rights() -> Dict[str, Any]:
    """user_id, and which of the capabilities that collectors can need are effective (proc(5), CapEff)."""
    effective = 0
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    effective = int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    held = [name for number, name in sorted(CAPABILITIES.items()) if effective >> number & 1]
    return {"user_id": os.geteuid(), "capabilities": held}
