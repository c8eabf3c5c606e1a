#!/usr/bin/env python3
"""What BPF plugins cost: CPU per packet on a path, ns of each program by the kernel's own count, the loader's start.

    python benchmarks/ebpf.py [--quick] [--only-ends]      (as root: it makes network namespaces)

Two paths first, each with none, each and all plugins, which count in the middle (b): small packets that are forwarded from a
to a third namespace, and bulk TCP with GSO between a and b; see packet_paths.py. Ratios are of the least of many short
samples, with plugins and just before without. Plugins count there as they do in a long capture: with the kernel's account
of their own cost shut, as it is for 19 parts of 20. `accounted` is with it open. Then what a packet costs at an end:

UDP of 22 B goes over a veth pair into a rule that drops it (the worst case for dropreason). The sender's own CPU time covers
the whole path, since a veth pair delivers in the sender's context; of many short samples the least counts, so that a busy
machine doesn't matter much. The sender is Python: its interpreter is in the base, so the ratios are lower than a sender in C
would see; the differences in ns are not. In the same run: `tcpdump -w` on the same interface, and
bcc's own tcpdrop and tcpretrans (witnesses.py says how), whose own processes' CPU counts as well. tcpdrop reports only drops that have
a socket, each by itself; so there is another path at last, of datagrams that a rule refuses to their sender.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from packet_paths import FAR, Bulk, Small, pinned, routed
from packet_paths import least as least_of
from witnesses import Missing, Witness, bcc_tool, tcpdump

from retina_runner import schema
from retina_runner.agent.ebpf.compiling import BROUGHT, FOLDER
from retina_runner.agent.ebpf.source import BpfSource
from retina_runner.agent.metrics import plugins
from retina_runner.agent.metrics.model import FAILED, Scope
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
REFUSED = """
        try:
            send(block)
            sys.exit("not refused")
        except PermissionError:
            pass
"""
PATHS = {"forwarded UDP of 22 B": 1.25, "bulk TCP with GSO": 1.05}
"""What the default plugins may cost at most, as CPU ratios."""
LOADER = """
import json, resource, sys
asked = json.load(sys.stdin)
sys.path.insert(0, asked["place"])
from pathlib import Path
from retina_runner.agent.ebpf.compiling import BROUGHT, FOLDER
from retina_runner.agent.ebpf.source import BpfSource
from retina_runner.agent.metrics.model import Scope
source = BpfSource(asked["names"], Scope((asked["netns"],)), asked["options"], Path(asked["folder"]))
rows = [r for r in source.prepare() if "probe:" not in r.hook]  # detail, where a kernel has kprobes
own, child = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
source.stop()
assert not any(r.status == "failed" for r in rows), rows
cpu = own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime
# Not ru_maxrss: that one begins with what the process was before exec(2).
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
why = sorted({r.why for r in rows if r.status == "ok"})
print(json.dumps([cpu, peak * 1024, child.ru_maxrss * 1024, why]))
"""
OPTIONS = schema.normalise({}, schema.load("collectors/ebpf"))


def sample(lab: Lab, rounds: int, count: int, refused: bool = False) -> float:
    """ns of CPU per packet: the least of `rounds` samples. Each is `refused` to its sender, or none."""
    code = SENDER.replace("        send(block)\n", REFUSED) if refused else SENDER
    return float(lab.inside(lab.a, sys.executable, "-c", code, str(rounds), str(count)))


def with_plugins(
    lab: Lab, names: list[str], rounds: int, count: int
) -> tuple[float, dict[str, tuple[int, int]], float]:
    """(ns per packet, program to (runs, ns each), CPU seconds of the start)."""
    with tempfile.TemporaryDirectory() as folder:
        source = BpfSource(names, Scope((lab.b,)), OPTIONS, Path(folder))
        before = cpu()
        rows = [r for r in source.prepare() if "probe:" not in r.hook]  # detail, where a kernel has kprobes
        begun = cpu() - before
        try:
            assert not any(r.status == FAILED for r in rows), rows
            source.zero()
            least = sample(lab, rounds, count)
            costs = {c.program: (c.run_count, c.run_time_ns // max(c.run_count, 1)) for c in source.cost()}
            assert not any(source.loss().values()), source.loss()
        finally:
            source.stop()
    return least, costs, begun


def start(lab: Lab, names: list[str], bytecode: Sequence[object], folder: str) -> tuple[float, int, int, list[str]]:
    """A fresh process until everything is attached: CPU seconds, its peak RSS and its child's in bytes, where it came from."""
    asked = {
        "place": str(Path(__file__).resolve().parent.parent), "names": names, "netns": lab.b, "folder": folder,
        "options": {**OPTIONS, "bytecode": bytecode},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADER], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    took, own, child, origin = json.loads(done.stdout)
    return took, own, child, origin


def starts(lab: Lab, names: list[str], rounds: int) -> None:
    """Starts by BCC and, four times as many, from bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        by_bcc = [start(lab, names, (), folder) for _ in range(rounds)]
        units = [json.loads(path.read_text()) for path in Path(folder, FOLDER).iterdir()]
        by_bytecode = [start(lab, names, units, folder) for _ in range(4 * rounds)]
    assert all(origin == [BROUGHT] for *_, origin in by_bytecode)
    for name, found in (("BCC", by_bcc), ("bytecode", by_bytecode)):
        took, own, child = [f[0] for f in found], [f[1] for f in found], [f[2] for f in found]
        print(
            f"  start by {name:8s} {min(took):.3f} s CPU (median of {len(found)} {median(took):.3f} s),"
            f" RSS {min(own) / 1e6:.1f} MB ({median(own) / 1e6:.1f} MB), child's {min(child) / 1e6:.1f} MB"
        )


class Attached:
    """A context: these plugins count in a namespace. What was compiled once is taken again from `kept`."""

    def __init__(
        self, names: Sequence[str], namespace: str, kept: dict[tuple[str, ...], list[object]], accounted: bool
    ):
        self._names, self._namespace, self._kept, self._accounted = tuple(names), namespace, kept, accounted

    def __enter__(self) -> BpfSource:
        self._folder = tempfile.TemporaryDirectory()
        options = {**OPTIONS, "bytecode": self._kept.get(self._names, ())}
        self._source = BpfSource(self._names, Scope((self._namespace,)), options, Path(self._folder.name))
        rows = self._source.prepare()
        assert not any(r.status == FAILED for r in rows), rows
        if self._names not in self._kept:
            self._kept[self._names] = [json.loads(p.read_text()) for p in Path(self._folder.name, FOLDER).iterdir()]
        self._source.zero()
        if not self._accounted:
            self._source._meter.stop()
        return self._source

    def __exit__(self, *_: object) -> None:
        self._source.stop()
        self._folder.cleanup()


def paths(modes: Mapping[str, Sequence[str]], turns: int, samples: int) -> None:
    """CPU by packet and by MiB on both paths; says what the default set may cost.

    Each turn compares the least of the samples with plugins to that of as many without, just before: the machine's own speed
    changes within seconds. The ratio is the median of all turns.
    """
    kept: dict[tuple[str, ...], list[object]] = {}
    with pinned(), routed() as (lab, _):
        for what, most in PATHS.items():
            path = Bulk(lab) if "bulk" in what else Small(lab.a, FAR)
            ratios: dict[str, list[float]] = {name: [] for name in ["none", *modes]}
            base = 1e18
            for _ in range(turns):
                for name, found in ratios.items():
                    before = least_of(path, samples)
                    base = min(base, before)
                    if name == "none":
                        found.append(least_of(path, samples) / before)
                        continue
                    with Attached(modes[name], lab.b, kept, name.endswith("accounted")):
                        found.append(least_of(path, samples) / before)
            path.close()
            print(f"{time.strftime('%Y-%m-%d')} {what}: {base:.0f} ns/{path.unit} without plugins")
            for name, found in ratios.items():
                told = f", at most x{most} wanted" if name == "default" else ""
                print(
                    f"  {name:18s} x{median(found):.3f} (of {turns} turns x{min(found):.3f} to x{max(found):.3f}){told}",
                    flush=True,
                )


def cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def beside(witness: Witness, lab: Lab, rounds: int, count: int, refused: bool = False) -> tuple[float, str]:
    """(ns of CPU per packet, the witness's own share included; its start, peak RSS and share in words)."""
    with witness:
        begun = witness.cpu()
        least = sample(lab, rounds, count, refused)
        # What it has read by now: some of it may still wait for it, so that its share is rather too small.
        own = (witness.cpu() - begun) / (rounds * count) * 1e9
        told = f"start {begun:.2f} s CPU, RSS {witness.rss() / 1e6:.1f} MB; {own:.0f} ns of it its own process's"
        return least + own, told


def refusals(lab: Lab, rounds: int, count: int) -> None:
    """UDP of 22 B that a rule refuses to its sender: the drop has a socket, so that tcpdrop reports it, each by itself."""
    lab.inside(lab.a, "iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "7000", "-j", "DROP")
    base = sample(lab, rounds, count, True)
    print(f"{time.strftime('%Y-%m-%d')} UDP of 22 B that its sender's own rule drops: {base:.0f} ns/packet without")
    with tempfile.TemporaryDirectory() as folder:
        source = BpfSource(["dropreason"], Scope((lab.a,)), OPTIONS, Path(folder))
        source.prepare()
        try:
            source.zero()
            least = sample(lab, rounds, count, True)
        finally:
            source.stop()
    print(f"  {'dropreason':14s} {least:7.0f} ns/packet  +{least - base:6.0f}  x{least / base:.2f}")
    try:
        least, told = beside(bcc_tool("tcpdrop"), lab, rounds, count, True)
        print(f"  {'bcc tcpdrop':14s} {least:7.0f} ns/packet  +{least - base:6.0f}  x{least / base:.2f}  {told}")
    except Missing as missing:
        print(f"  bcc tcpdrop wasn't run: {missing}")
    lab.inside(lab.a, "iptables", "-F", "OUTPUT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only-ends", action="store_true", help="not the two paths through the namespace that counts")
    chosen = parser.parse_args()
    quick = chosen.quick
    rounds, count, turns = (5, 1000, 1) if quick else (40, 2000, 3)
    programs = [n for n in plugins.names() if plugins.load(n).kind == plugins.BPF]
    default = [n for n in programs if plugins.load(n).default]
    modes: list[tuple[str, list[str]]] = [("default", default), ("all", programs)]
    if not quick:
        modes = [*[(n, [n]) for n in programs], *modes]
    if not chosen.only_ends:
        paths({**dict(modes), "default, accounted": default}, 1 if quick else 15, 10 if quick else 30)
    folder = tempfile.TemporaryDirectory()
    least: dict[str, float] = {}
    seen: dict[str, str] = {}
    with Lab() as lab:
        starts(lab, default, 1 if quick else 5)
        lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7000", "-j", "DROP")
        for _ in range(turns):
            least["none"] = min(least.get("none", 1e9), sample(lab, rounds, count))
            for name, tool in (("tcpdump -w", ""), ("bcc tcpdrop", "tcpdrop"), ("bcc tcpretrans", "tcpretrans")):
                try:
                    witness = bcc_tool(tool) if tool else tcpdump(lab.b, folder.name)
                    found, told = beside(witness, lab, rounds, count)
                except Missing as missing:
                    least[name], seen[name] = float("nan"), f"wasn't run: {missing}"
                    continue
                if found < least.get(name, 1e9):
                    least[name], seen[name] = found, told
            for name, wanted in modes:
                found, costs, begun = with_plugins(lab, wanted, rounds, count)
                least[name] = min(least.get(name, 1e9), found)
                each = ", ".join(f"{p} {ns} ns x {runs}" for p, (runs, ns) in costs.items() if runs)
                seen[name] = f"{each}; start {begun:.2f} s CPU"
        lab.inside(lab.b, "iptables", "-F", "INPUT")
        refusals(lab, rounds // 4, count)
    folder.cleanup()
    base = least["none"]
    print(
        f"{time.strftime('%Y-%m-%d')} UDP of 22 B into a DROP rule; least of {turns * rounds} samples of {count} packets"
    )
    for name, value in least.items():
        print(f"  {name:14s} {value:7.0f} ns/packet  +{value - base:6.0f}  x{value / base:.2f}  {seen.get(name, '')}")


if __name__ == "__main__":
    main()
