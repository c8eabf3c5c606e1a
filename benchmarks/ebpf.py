#!/usr/bin/env python3
"""What BPF plugins cost: CPU per packet on a path, ns of each program by the kernel's own count, the loader's start.

    python benchmarks/ebpf.py [--quick]      (as root: it makes two network namespaces)

UDP of 22 B goes over a veth pair into a rule that drops it (the worst case for dropreason). The sender's own CPU time covers
the whole path, since a veth pair delivers in the sender's context; of many short samples the least counts, so that a busy
machine doesn't matter much. The sender is Python: its interpreter is in the base, so the ratios are lower than a sender in C
would see; the differences in ns are not. In the same run: `tcpdump -w` on the same interface. bcc's own tcpdrop and
tcpretrans need kernel headers, and are run where they work.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retina_runner import schema
from retina_runner.agent.ebpf.source import BpfSource
from retina_runner.agent.metrics import plugins
from retina_runner.agent.metrics.model import OK, Scope
from tests.lab import Lab

SENDER = """
import socket, sys, time
rounds, count = int(sys.argv[1]), int(sys.argv[2])
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("", 40000))
door.connect(("10.93.0.2", 7000))
send, block, least = door.send, bytes(22), None
for _ in range(rounds):
    begun = time.process_time_ns()
    for _ in range(count):
        send(block)
    took = time.process_time_ns() - begun
    least = took if least is None else min(least, took)
print(least / count)
"""
OPTIONS = schema.normalise({}, schema.load("collectors/ebpf"))


def sample(lab: Lab, rounds: int, count: int) -> float:
    """ns of CPU per packet: the least of `rounds` samples."""
    return float(lab.inside(lab.a, sys.executable, "-c", SENDER, str(rounds), str(count)))


def with_plugins(
    lab: Lab, names: list[str], rounds: int, count: int
) -> tuple[float, dict[str, tuple[int, int]], float, int]:
    """(ns per packet, program to (runs, ns each), CPU seconds of the start, peak RSS of the compiler in bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        source = BpfSource(names, Scope((lab.b,)), OPTIONS, Path(folder))
        before = cpu()
        rows = source.prepare()
        start = cpu() - before
        try:
            assert all(r.status == OK for r in rows), rows
            source.zero()
            least = sample(lab, rounds, count)
            costs = {c.program: (c.run_count, c.run_time_ns // max(c.run_count, 1)) for c in source.cost()}
            assert not any(source.loss().values()), source.loss()
        finally:
            source.stop()
    return least, costs, start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def with_tcpdump(lab: Lab, rounds: int, count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            ["ip", "netns", "exec", lab.b, "tcpdump", "-i", "eth0", "-n", "-Z", "root", "-w", f"{folder}/x.pcap"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            while "listening on" not in process.stderr.readline():
                assert process.poll() is None, "tcpdump ended"
            return sample(lab, rounds, count)
        finally:
            process.terminate()
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, count, turns = (5, 1000, 1) if quick else (40, 2000, 3)
    programs = [n for n in plugins.names() if plugins.load(n).kind == plugins.BPF]
    default = [n for n in programs if plugins.load(n).default]
    modes: list[tuple[str, list[str]]] = [("default", default), ("all", programs)]
    if not quick:
        modes = [*[(n, [n]) for n in programs], *modes]
    least: dict[str, float] = {}
    seen: dict[str, str] = {}
    with Lab() as lab:
        lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7000", "-j", "DROP")
        for _ in range(turns):
            least["none"] = min(least.get("none", 1e9), sample(lab, rounds, count))
            least["tcpdump -w"] = min(least.get("tcpdump -w", 1e9), with_tcpdump(lab, rounds, count))
            for name, wanted in modes:
                found, costs, start, rss = with_plugins(lab, wanted, rounds, count)
                least[name] = min(least.get(name, 1e9), found)
                each = ", ".join(f"{p} {ns} ns x {runs}" for p, (runs, ns) in costs.items() if runs)
                seen[name] = f"{each}; start {start:.2f} s CPU, compiler {rss / 1e6:.0f} MB"
    base = least["none"]
    print(
        f"{time.strftime('%Y-%m-%d')} UDP of 22 B into a DROP rule; least of {turns * rounds} samples of {count} packets"
    )
    for name, value in least.items():
        print(f"  {name:14s} {value:7.0f} ns/packet  +{value - base:6.0f}  x{value / base:.2f}  {seen.get(name, '')}")


if __name__ == "__main__":
    main()
