"""Other programs that watch the same traffic: tcpdump, and bcc's own tools (Debian's bpfcc-tools).

bcc's tools need kernel headers. Where this kernel's aren't installed, they get the newest of Debian's that are: what they then read
out of the kernel's structures can be wrong, what they cost is the same. And tcpdrop asks for a kprobe wherever a kernel has a function
whose name begins with tcp_drop: on a kernel without kprobes it is told that these can't be probed, so that it takes the tracepoint that
it has, too. All of it happens in a mount namespace of the tool's own.
"""

from __future__ import annotations

import glob
import os
import subprocess
import tempfile
import time
from pathlib import Path

PREPARED = """
set -e
modules=/lib/modules/$(uname -r)
if [ ! -e "$modules/build" ]; then
    mount -t tmpfs none /lib/modules
    mkdir "$modules"
    ln -s "$1" "$modules/build"
    ln -s "$2" "$modules/source"
fi
if [ ! -e /sys/kernel/debug/kprobes ]; then
    mount -t tmpfs none /sys/kernel/debug
    mkdir /sys/kernel/debug/tracing /sys/kernel/debug/kprobes
    mount -t tracefs none /sys/kernel/debug/tracing
    grep -o 'tcp_drop.*' /proc/kallsyms | sed 's/^/0x0 /' > /sys/kernel/debug/kprobes/blacklist
fi
shift 2
exec "$@"
"""
START_LIMIT_S = 180.0


class Missing(Exception):
    """A program, or what it needs, isn't installed."""


class Witness:
    """A context: the program runs, and has said that it is ready. What it says goes to a file."""

    def __init__(self, argv: list[str], ready: str):
        self._argv, self._ready = argv, ready

    def __enter__(self) -> Witness:
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(self._argv, stdout=self._said, stderr=subprocess.STDOUT)
        until = time.monotonic() + START_LIMIT_S
        while self._ready not in self.said():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise Missing(f"{self._argv[-1]} doesn't run here: {(self.last or ['nothing said'])[-1]}")
            time.sleep(0.1)
        return self

    def said(self) -> str:
        return os.pread(self._said.fileno(), 1 << 30, 0).decode("utf-8", "replace")

    def cpu(self) -> float:
        """Seconds so far, its own and the kernel's for it."""
        words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Its peak in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.last = self.said().strip().splitlines()
        self._said.close()


def tcpdump(namespace: str, folder: str) -> Witness:
    argv = ["ip", "netns", "exec", namespace, "tcpdump", "-i", "eth0", "-n", "-Z", "root", "-w", f"{folder}/x.pcap"]
    return Witness(argv, "listening on")


def bcc_tool(name: str) -> Witness:
    """tcpdrop or tcpretrans, of the whole kernel. Raises Missing."""
    path = f"/usr/sbin/{name}-bpfcc"
    if not os.path.exists(path):
        raise Missing(f"{path} isn't installed: apt-get install bpfcc-tools")
    built = sorted(glob.glob("/usr/src/linux-headers-*-amd64"))
    if not os.path.exists(f"/lib/modules/{os.uname().release}/build") and not built:
        raise Missing(f"{name} needs kernel headers: apt-get install linux-headers-amd64")
    folder = built[-1] if built else ""
    common = folder.replace("-cloud-amd64", "-common").replace("-amd64", "-common")
    return Witness(
        ["unshare", "--mount", "sh", "-c", PREPARED, "sh", folder, common, "/usr/bin/python3", "-u", path],
        "RADDR:RPORT" if name == "tcpretrans" else "STATE (FLAGS)",
    )
