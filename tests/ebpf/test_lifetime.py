"""What is loaded ends with the process that loaded it, and no run sees another's traffic or maps."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from retina_runner.agent.ebpf import syscalls
from tests.ebpf.counting import Counting
from tests.lab import Lab, eventually, processes, sh

pytestmark = pytest.mark.root

ALL = "packetforward, dropreason, tcpretrans, tcpconnect, dns, packetparser"
DROPS, FORWARDED = "retinarun_drop_packets_total", "retinarun_forward_packets_total"


def held_by(pids: set[int]) -> dict[str, set[int]]:
    """Ids of the programs, maps and links that these processes hold: /proc/PID/fdinfo says them."""
    found: dict[str, set[int]] = {"prog": set(), "map": set(), "link": set()}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # a process that only asked for something has ended since
            for path in Path(f"/proc/{pid}/fdinfo").iterdir():
                try:
                    text = path.read_text()
                except OSError:
                    continue
                for kind, ids in found.items():
                    ids |= {int(n) for n in re.findall(rf"^{kind}_id:\s*(\d+)", text, re.MULTILINE)}
    return found


def still_there(held: dict[str, set[int]]) -> dict[str, set[int]]:
    """Which of them the kernel still has, as bpftool(8) sees it."""
    return {
        kind: {e["id"] for e in json.loads(sh("bpftool", "-j", kind, "show") or "[]")} & ids
        for kind, ids in held.items()
    }


NEXT_ID = {"prog": 11, "map": 12, "link": 31}
"""Commands of bpf(2), include/uapi/linux/bpf.h."""


def ids(kind: str) -> set[int]:
    """Every id of that kind that the kernel has, without opening any.

    bpftool opens what it shows. When it opens and closes a map of programs between its owner's end and the kernel's own
    clearing of it, the kernel (6.18, prog_array_map_clear) loses count, and keeps the empty map for good.
    """
    libc, last = ctypes.CDLL(None, use_errno=True), 0
    found: set[int] = set()
    while True:
        attributes = (ctypes.c_uint32 * 3)(last, 0, 0)
        if libc.syscall(syscalls.NUMBERS[os.uname().machine], NEXT_ID[kind], attributes, ctypes.sizeof(attributes)):
            assert ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
            return found
        last = attributes[1]
        found.add(last)


def hooks_of(namespace: str) -> tuple[str, str, str]:
    """Everything else that a program could hang on to: packet sockets, queueing disciplines, XDP."""
    sockets = sh("ip", "netns", "exec", namespace, "cat", "/proc/net/packet").splitlines()[1:]
    links = sh("ip", "-n", namespace, "-d", "link", "show")
    return "\n".join(sockets), sh("tc", "-n", namespace, "qdisc", "show"), " ".join(re.findall(r"xdp\S*", links))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_of_a_killed_agent_stays_in_the_kernel(lab: Lab, tmp_path: Path, how: signal.Signals) -> None:
    """All plugins are loaded; then every process of the run is killed at once, without a chance to clean up."""
    clean, others = hooks_of(lab.b), set(processes())
    counting = Counting(tmp_path, f"plugins: [{ALL}], scope: netns", lab.b)
    counting.__enter__()
    try:
        running = set(processes()) - others
        held = held_by(running)
        assert len(held["prog"]) >= 7, held
        assert len(held["map"]) >= 10, held
        assert still_there(held) == held
        assert hooks_of(lab.b)[0] != clean[0], "no packet socket"
        assert hooks_of(lab.b)[1:] == clean[1:]
        for pid in running:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
    finally:
        try:
            counting.run.process.wait(60)
        except subprocess.TimeoutExpired:
            counting.kill()
    eventually(lambda: not set(processes()) & running, "every process gone")
    eventually(lambda: not any(ids(kind) & held[kind] for kind in held), "every program, map and link gone")
    assert not any(still_there(held).values()), "bpftool sees what isn't there"
    assert hooks_of(lab.b) == clean
    if how == signal.SIGKILL:
        # The directory of a run that was killed is for `cleanup`; here it is the test's own.
        assert counting.run.work.exists()


def test_two_runs_at_once_count_each_its_own(lab: Lab, tmp_path: Path) -> None:
    """One counts in a, the other in b, and one begins later: neither sees what the other's maps hold."""
    first = Counting(tmp_path / "first", "plugins: [dropreason, packetforward], scope: netns", lab.b)
    second = Counting(tmp_path / "second", "plugins: [dropreason, packetforward], scope: netns", lab.b)
    with first:
        lab.send("10.93.0.2", 7002, 300)
        with second:
            lab.send("10.93.0.2", 7002, 200)
        lab.send("10.93.0.2", 7002, 50)
    closed = {"reason": "NO_SOCKET", "protocol": "udp"}
    assert (first.total(DROPS, **closed), second.total(DROPS, **closed)) == (550, 200)
    came = {"interface": "eth0", "direction": "ingress"}
    assert first.total(FORWARDED, **came) >= 550 > second.total(FORWARDED, **came) >= 200


def test_other_namespaces_are_not_counted(lab: Lab, tmp_path: Path) -> None:
    """The same traffic is dropped in b; a run that counts in a knows nothing of it, one for both tells them apart."""
    lab.inside(lab.a, "iptables", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT")
    only_a = Counting(tmp_path / "a", f"plugins: [{ALL}], scope: netns", lab.a)
    both = Counting(tmp_path / "both", f"plugins: [{ALL}], netns: [{lab.a}, {lab.b}]")
    with only_a, both:
        lab.send("10.93.0.2", 7002, 400)
    assert only_a.total(DROPS, reason="NO_SOCKET") == 0
    assert both.total(DROPS, reason="NO_SOCKET", netns=lab.a) == 0
    assert both.total(DROPS, reason="NO_SOCKET", netns=lab.b) == 400
    sent = {"interface": "eth0", "direction": "egress"}
    assert only_a.total(FORWARDED, **sent) >= 400
    assert both.total(FORWARDED, netns=lab.a, **sent) >= 400
    assert both.total("networkobservability_adv_forward_count", netns=lab.b, protocol="udp", direction="ingress") == 400


def test_every_hook_and_every_programs_cost_is_in_the_manifest(lab: Lab, tmp_path: Path) -> None:
    with Counting(tmp_path, f"plugins: [{ALL}], scope: netns", lab.b) as counting:
        for _ in range(
            4
        ):  # some seconds: from ten seconds on, programs are measured for a tenth of every second or two
            lab.send("10.93.0.2", 7002, 15000)
    manifest = counting.archive.manifest
    assert {row["plugin"] for row in manifest["capabilities"]} == set(ALL.split(", "))
    assert {status for status, _ in counting.hooks().values()} == {"ok"}, manifest["capabilities"]
    # Probes are tried, and what became of them is told; tests/kernels has kernels that take them.
    probes = {f"{kind}:__nf_conntrack_confirm" for kind in ("kprobe", "kretprobe")} | {"kprobe:security_sock_graft"}
    assert {hook for _, hook in counting.probes()} == probes, "those of the option chains are only tried on request"
    assert all(status == "ok" or why for status, why in counting.probes().values())
    cost = {row["program"]: row for row in manifest["programs"]}
    skipped = counting.document["not_counted"].get("recursion_misses", 0)  # by the kernel: see `Counted.missed`
    for row in manifest["programs"]:
        assert 0 < row["measured_share"] <= 1, row
        whole = row["measured_share"] == 1  # within the first seconds, all of it is measured; later some of it
        if row["program"] in ("on_packet", "on_kfree_skb"):
            assert row["run_count"] >= (60000 - skipped if whole else 1), row
    assert all(cost[name]["run_time_ns"] > 0 for name in ("on_packet", "on_kfree_skb"))
    assert {"on_retransmit", "on_set_state"} <= cost.keys()


def test_a_simulated_change_of_the_cpus_is_told_and_costs_no_count(lab: Lab, tmp_path: Path) -> None:
    """The mask of online CPUs is a file of the test's own: this machine's can't be taken off-line."""
    mask = tmp_path / "online"
    whole = Path("/sys/devices/system/cpu/online").read_text()
    mask.write_text(whole)
    simulated = f'mount --bind {mask} /sys/devices/system/cpu/online && exec "$@"'
    hidden = ("unshare", "--mount", "sh", "-c", simulated, "sh")
    counting = Counting(tmp_path, "plugins: [dropreason, softirq], scope: netns", lab.b, wrapper=hidden)
    with counting:
        lab.send("10.93.0.2", 7002, 300)
        # In one write that cuts nothing off: whoever looks just then sees the one or the other.
        with open(mask, "r+b", buffering=0) as file:
            file.write(("0\n" if whole.strip() != "0" else "0-1\n").rjust(len(whole), ",").encode())
        lab.send("10.93.0.2", 7002, 200)
    assert counting.total(DROPS, reason="NO_SOCKET", protocol="udp") == 500
    assert counting.missed() == {"cpus_changed": max(1, len(os.sched_getaffinity(0)) - 1)}
    reasons = counting.archive.verdict("metrics.json")["reasons"]
    assert any("cpus_changed" in reason for reason in reasons), reasons
