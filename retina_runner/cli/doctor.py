"""`retina-run doctor`: what this machine can do as a node, what is missing, and how to get it. Changes nothing."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from retina_runner.agent import facts, process
from retina_runner.agent.collectors import ebpf
from retina_runner.agent.ebpf import kprobes
from retina_runner.agent.metrics import plugins
from retina_runner.errors import Exit
from retina_runner.executors.local import default_work_directory
from retina_runner.units import format_size

TOOLS = {
    "tcpdump": ("tcpdump", "tcpdump", "packets"),
    "ip": ("iproute2", "iproute", "addresses, routes, rules"),
    "ss": ("iproute2", "iproute", "sockets"),
    "nstat": ("iproute2", "iproute", "protocol counters"),
    "tc": ("iproute2", "iproute-tc", "queueing disciplines"),
    "iptables": ("iptables", "iptables-nft", "firewall rules and their counters"),
    "nft": ("nftables", "nftables", "the nftables ruleset"),
    "ipset": ("ipset", "ipset", "IP sets"),
    "conntrack": ("conntrack", "conntrack-tools", "connection tracking"),
    "ethtool": ("ethtool", "ethtool", "interface statistics"),
    "zstd": ("zstd", "zstd", "archives with `compression: zstd`"),
    "setpriv": ("util-linux", "util-linux", "ends processes when the agent is killed"),
    "prlimit": ("util-linux", "util-linux", "bounds files when the agent can't"),
}
"""Tool: its package in Debian and Ubuntu, in Fedora and RHEL, and what it is for."""
NEEDED = ("tcpdump", "ip", "iptables")


def main(chosen: argparse.Namespace) -> int:
    debian = shutil.which("apt-get") is not None
    missing: dict[str, list[str]] = {}
    print(f"{facts.distribution() or 'Linux'}, kernel {os.uname().release}, Python {sys.version.split()[0]}")
    for tool, (deb, rpm, purpose) in TOOLS.items():
        path = process.find(tool)
        said = facts.version(*facts.TOOLS[tool]) if path and tool in facts.TOOLS else path
        if path is None:
            missing.setdefault(deb if debian else rpm, []).append(tool)
        print(f"  {'ok     ' if path else 'missing'}  {tool:10s} {said or 'for ' + purpose}")
    for name, why, hint in ebpf.lacks():
        print(
            f"  {'missing' if why else 'ok     '}  {name:10s} {why + '; ' + hint if why else 'for the BPF plugins of ebpf'}"
        )
    print(f"  {_probes()}")
    rights = facts.rights()
    capable = {"net_raw", "net_admin"} <= set(rights["capabilities"])
    held = ", ".join(rights["capabilities"]) or "no capability of the ones that captures need"
    print(f"  {'ok     ' if capable else 'missing'}  rights     {held}")
    work = Path(default_work_directory())
    free = shutil.disk_usage(work if work.exists() else work.parent).free
    print(f"  {'ok     ' if free > 1 << 30 else 'missing'}  disk       {format_size(free)} free for {work}")
    if missing:
        install = ("apt-get install " if debian else "dnf install ") + " ".join(sorted(missing))
        print(f"to get what is missing: {install}")
    if not capable:
        print("to get the rights: run as root (sudo retina-run …)")
    lacking = any(process.find(tool) is None for tool in NEEDED) or not capable
    return Exit.UNTOUCHED if lacking else Exit.OK


def _probes() -> str:
    """What becomes of the plugins' hooks at functions of the kernel: they add detail, and each is tried."""
    wanted = ebpf.probed(plugins.names(), {})
    names = " and ".join(sorted({name for names in wanted.values() for name in names}))
    refused = ebpf.unprobed(wanted)
    if not refused:
        return f"ok       kprobe     for more of {names}"
    why = "; ".join(why if len(refused) == 1 else f"{', '.join(of)}: {why}" for why, of in refused.items())
    status = "missing" if os.geteuid() == 0 or kprobes.lacking() else "unknown"
    return f"{status}  kprobe     {why}; {names} tell less without"
