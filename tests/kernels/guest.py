"""What happens in a guest: known traffic while the agent counts, and what other readers of the kernel say of the same.

    python3 -m tests.kernels.guest OUT

Runs on Debian's Python from 3.9 on, with nothing but its standard library, the agent's file, and tests/lab.py. Leaves an archive
for each window, `truth.json` and `facts.json` in OUT; what they have to say is for tests/kernels/test_kernels.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retina_runner.agent.ebpf import kprobes, syscalls
from tests.ebpf.counting import Background, counters, device, python, quiet
from tests.kernels.agent import Window
from tests.lab import Lab, eventually, sh

JOB = Path("/tmp/job")
PROG_GET_NEXT_ID = 11
SCRIPTS: dict[str, str] = {}
SAME_SOURCE = """
import socket, sys
# Each flow is translated to one and the same port: the first can be entered into the tracking table, the others can't.
for number in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("10.93.0.1", 20000 + number))
        try:
            sender.sendto(b"x" * 72, ("10.93.0.2", 7600))
        except PermissionError:
            pass
"""
LATE = """
import socket, sys, time
door = socket.create_server(("10.93.0.2", 7700))
print("ready", flush=True)
count = int(sys.stdin.readline())
time.sleep(0.3)
for _ in range(count):
    door.accept()
print("accepted", flush=True)
"""


def said(*argv: str) -> str:
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    ).stdout.strip()


def facts() -> dict[str, Any]:
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )  # fmt: skip
    return {
        "kernel": os.uname().release,
        "build": os.uname().version,
        "distribution": release["PRETTY_NAME"].strip('"'),
        "bcc": said("dpkg-query", "-W", "-f", "${Version}", "python3-bpfcc"),
        "python": sys.version.split()[0],
        "iptables": said("iptables", "-V"),
        "kprobes": os.path.exists("/sys/bus/event_source/devices/kprobe/type"),
        "refusals": {name: kprobes.refusal(name, False) for name in ("security_sock_graft", "no_such_function")},
    }


def programs() -> list[int]:
    """Every BPF program that there is: another count than the agent's own."""
    found: list[int] = []
    while True:
        # The kernel writes the next one's number behind that of the last.
        attributes = ctypes.create_string_buffer(struct.pack("=III", found[-1] if found else 0, 0, 0), 12)
        number = syscalls.NUMBERS[os.uname().machine]
        if syscalls.libc.syscall(number, PROG_GET_NEXT_ID, attributes, 12) < 0:
            return found
        found.append(struct.unpack("=III", attributes.raw)[1])


def probes() -> list[str]:
    """Functions that are probed."""
    try:
        lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    except OSError:
        return []
    return sorted(line.split()[2].split("+")[0] for line in lines if len(line.split()) > 2)


def conntrack(namespace: str) -> dict[str, int]:
    """/proc/net/stat/nf_conntrack of a namespace, all CPUs together."""
    head, *rows = sh("ip", "netns", "exec", namespace, "cat", "/proc/net/stat/nf_conntrack").splitlines()
    columns = [[int(n, 16) for n in row.split()] for row in rows]
    return {name: sum(row[at] for row in columns) for at, name in enumerate(head.split())}


def prepare(lab: Lab) -> None:
    """Rules of every kind: a chain, a table or a back end each has a port of its own."""
    lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    sh("ip", "-n", lab.a, "route", "add", "10.94.0.0/16", "via", "10.93.0.2")
    sh("ip", "-n", lab.b, "route", "add", "10.94.0.0/16", "via", "10.93.0.1")
    for node, program, table, chain, port, target in (
        (lab.b, "iptables", "filter", "INPUT", 7001, "DROP"),
        (lab.b, "ip6tables", "filter", "INPUT", 7001, "DROP"),
        (lab.b, "iptables", "raw", "PREROUTING", 7002, "DROP"),
        (lab.b, "iptables", "filter", "FORWARD", 7003, "DROP"),
        (lab.a, "iptables", "filter", "OUTPUT", 7004, "DROP"),
        (lab.a, "iptables", "mangle", "POSTROUTING", 7005, "DROP"),
        (lab.b, "iptables-legacy", "filter", "INPUT", 7006, "DROP"),
        (lab.b, "iptables", "filter", "INPUT", 7007, "REJECT"),
    ):
        lab.inside(node, program, "-t", table, "-A", chain, "-p", "udp", "--dport", str(port), "-j", target)
    lab.inside(
        lab.a, "iptables", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", "7600",
        "-j", "SNAT", "--to-source", "10.93.0.1:5555",
    )  # fmt: skip
    every = ["-m", "statistic", "--mode", "nth", "--every", "7", "--packet", "0"]
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "7100", *every, "-j", "DROP")
    for node in (lab.a, lab.b):
        quiet(node)


def everything(lab: Lab) -> None:
    """All traffic of the window `compiled`."""
    lab.send("10.93.0.2", 7001, 1000)
    lab.send("fd93:0::2", 7001, 700)
    blind = SCRIPTS["BLIND"]
    for port, count in ((7002, 200), (7004, 250), (7005, 60), (7006, 120), (7007, 40)):
        python(lab.a, blind, str(port), str(count))
    python(lab.a, blind.replace("10.93.0.2", "10.94.0.9"), "7003", "150")
    lab.send("10.93.0.2", 7008, 500)  # nobody listens
    python(lab.a, SAME_SOURCE, "200")
    for address, protocol, code, qtype, count in (
        ("10.93.0.2", "udp", "0", 1, 50), ("fd93:0::2", "udp", "3", 28, 30), ("10.93.0.2", "tcp", "2", 16, 20),
    ):  # fmt: skip
        python(lab.a, SCRIPTS["CLIENT"], address, "53", protocol, code, str(qtype), str(count))
    assert python(lab.a, SCRIPTS["CONNECTS"], "10.93.0.2", "7501", "30") == "ECONNREFUSED=30\n"
    assert python(lab.a, SCRIPTS["CONNECTS"], "fd93:0::2", "7501", "20") == "ECONNREFUSED=20\n"
    with Background(lab.b, SCRIPTS["SINK"], "10.93.0.2", "7100") as sink:
        python(lab.a, SCRIPTS["POUR"], "10.93.0.2", "7100", "400000", "2")
        assert [sink.line(), sink.line()] == ["400000", "400000"]
    with Background(lab.b, LATE) as late:
        assert python(lab.a, SCRIPTS["CONNECTS"], "10.93.0.2", "7700", "3") == "ok=3\n"
        late.say("3")
        assert late.line() == "accepted"


def readings(lab: Lab) -> Iterator[tuple[str, dict[str, int]]]:
    for name, node in (("a", lab.a), ("b", lab.b)):
        yield f"device {name}", device(node, "eth0")
        yield f"counters {name}", counters(node)
        yield f"conntrack {name}", conntrack(node)


def main(out: Path) -> None:
    SCRIPTS.update(json.loads((JOB / "scripts.json").read_text()))
    plan = json.loads((JOB / "plan.json").read_text())
    options = plan["collectors"][0]["options"]
    said("mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug")
    (out / "facts.json").write_text(json.dumps(facts()))
    truth: dict[str, Any] = {"programs": {"before": programs()}, "probes": {"before": probes()}}
    agent = JOB / plan["agent"]["name"]  # of a name that tests.lab.processes knows
    with Lab() as lab:
        options["netns"] = [lab.a, lab.b]
        prepare(lab)
        with Background(lab.b, SCRIPTS["SERVER"], "53"):
            before = dict(readings(lab))
            with Window(agent, plan, out / "compiled.tar.gz") as window:
                truth["probes"]["compiled"] = probes()
                everything(lab)
                after = dict(readings(lab))
                units = window.bytecode()
        truth["moved"] = {n: {k: v - before[n].get(k, 0) for k, v in after[n].items()} for n in after}
        truth["names"] = {"a": lab.a, "b": lab.b}
        # Without a compiler; packets come to the stack as lists, where veth can do that.
        lab.inside(lab.a, "ethtool", "-K", "eth0", "tso", "off")
        lab.inside(lab.b, "ethtool", "-K", "eth0", "gro", "on")
        options["bytecode"] = units
        with Window(agent, plan, out / "brought.tar.gz"):
            lab.send("10.93.0.2", 7001, 500)
            python(lab.a, SCRIPTS["BLIND"], "7002", "300")
        truth["programs"]["between"] = programs()
        with Window(agent, plan, out / "killed.tar.gz") as window:
            truth["programs"]["during"] = programs()
            window.kill()
            eventually(lambda: programs() == truth["programs"]["before"], f"no program left of {programs()}")
    truth["programs"]["after"], truth["probes"]["after"] = programs(), probes()
    (out / "truth.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
