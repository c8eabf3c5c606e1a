"""A pod's network namespace as the agent finds it: real processes in real cgroups, in a namespace of their own."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.state_items import NODE_WIDE
from retina_runner.verification import verify_archive
from tests.agent.test_verbs import Agent, plan
from tests.lab import Archive, Lab, eventually

pytestmark = pytest.mark.root

ROOT = Path("/sys/fs/cgroup")
HIERARCHIES = [p for p in (ROOT / "pids", ROOT / "unified", ROOT) if (p / "cgroup.procs").exists()]
"""Of version 1 and, beside it or instead, of version 2."""
Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(params=HIERARCHIES, ids=lambda p: p.name)
def begin(request: pytest.FixtureRequest, uid: str) -> Iterator[Begin]:
    """Starts a process in the cgroup of the pod of that UID, in a network namespace, if one is named."""
    top = request.param / f"rrt{os.getpid()}"
    group = top / "kubepods" / "burstable" / f"pod{uid}" / "3ab1"
    group.mkdir(parents=True)
    begun: list[subprocess.Popen[bytes]] = []

    def start(netns: str = "") -> subprocess.Popen[bytes]:
        prefix = ["ip", "netns", "exec", netns] if netns else []
        begun.append(subprocess.Popen([*prefix, "sleep", "1000"]))
        (group / "cgroup.procs").write_text(str(begun[-1].pid))
        # Until ip(8) has become the command it may be in the node's own network.
        eventually(lambda: Path(f"/proc/{begun[-1].pid}/comm").read_text() == "sleep\n", "the pod's process runs")
        return begun[-1]

    try:
        yield start
    finally:
        for process in begun:
            process.kill()
            process.wait()
        for folder, _, _ in os.walk(top, topdown=False):
            os.rmdir(folder)


@pytest.fixture
def uid() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    if made.directory.exists():
        made.call("remove", str(made.directory))


TCPDUMP = {"interfaces": ["eth*"], "snaplen": 256, "max_size": 10**7, "promiscuous": True, "buffer_size": 4 << 20,
           "expression": "udp port 7000"}  # fmt: skip
STATE = {"netns": [], "include": ["*"], "exclude": list(NODE_WIDE), "conntrack_table": False, "interfaces": 32,
         "dmesg_lines": 0, "command_limit": 10.0, "output_limit": 1 << 20}  # fmt: skip
RULES = {"families": ["ipv4"], "nft": True, "ipset": False, "command_limit": 10.0, "output_limit": 1 << 20}


def collectors() -> list[dict[str, Any]]:
    return [{"id": n, "name": n, "options": o} for n, o in
            (("tcpdump", TCPDUMP), ("iptables", RULES), ("network-state", STATE))]  # fmt: skip


def pod(uid: str) -> dict[str, str]:
    return {"namespace": "shop", "name": "web-1", "uid": uid}


def test_everything_is_the_pods_own_view(agent: Agent, lab: Lab, begin: Begin, uid: str) -> None:
    """Its interfaces, exactly its packets, its rules and its counters; afterwards nobody holds its namespace."""
    begin(lab.b)
    lab.receive("10.93.0.2", 7000)
    lab.inside(lab.b, "iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "7000")
    answer = check(agent, uid)
    assert answer["ok"], answer
    agent.start(pod=pod(uid), duration_s=6.0, collectors=collectors())  # of it each verb takes an interpreter's start
    agent.until("ready")
    agent.release()
    agent.until("window")
    lab.send("10.93.0.2", 7000, 120)
    events = agent.events()
    assert events[-1]["state"] == "collected", events
    (packed,) = (agent.directory / "archive").glob("*.tar.gz")
    assert not verify_archive(packed).problems
    archive = Archive(packed)
    assert archive.manifest["pod"] == pod(uid)
    assert archive.lacking() == {}
    assert len(archive.pcap()) == 120
    assert "10.93.0.2" in archive.members["state/before/ip-addr.json"].decode()
    assert "udp dport 7000" in archive.members["state/after/nft.txt"].decode()
    moved = {c["name"]: c["delta"] for c in archive.json("state/delta/network-state.json")["counters"]}
    assert moved["Udp.InDatagrams"] == 120
    (rule,) = [r for s in archive.json("state/delta/iptables.json")["sources"].values() for r in s["rules"]]
    assert rule["packets"] == 120
    assert not any(name.startswith(("state/before/meminfo", "state/before/hosts")) for name in archive.members)
    assert holders(lab.b) == {"sleep", Path(os.path.realpath("/proc/self/exe")).name}, "the pod's own, and the receiver"


def plan_of(uid: str) -> dict[str, Any]:
    return plan(pod=pod(uid), collectors=collectors())


def check(agent: Agent, uid: str) -> dict[str, Any]:
    _, (answer,) = agent.call("check", "--directory", str(agent.work / "new"), stdin=plan_of(uid))
    return answer


def holders(netns: str) -> set[str]:
    """The programs of the processes that are in that namespace."""
    there = (Path("/run/netns") / netns).stat().st_ino
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "ns/net").stat().st_ino == there:
                found.add(Path(os.readlink(folder / "exe")).name)
        except OSError:
            continue
    return found


def test_a_pod_that_ends_in_the_window_ends_it(agent: Agent, lab: Lab, begin: Begin, uid: str) -> None:
    """Another process of it is enough to be there; with the last one the window is over, and says so."""
    first, second = begin(lab.b), begin(lab.b)
    agent.start(pod=pod(uid), duration_s=600.0, collectors=collectors())
    agent.until("ready")
    agent.release()
    agent.until("window")
    first.kill()
    first.wait()
    seen = len([e for e in agent.events(follow_s=0.0) if e["event"] == "progress"])
    eventually(
        lambda: len([e for e in agent.events(follow_s=0.0) if e["event"] == "progress"]) > seen + 2, "it goes on"
    )
    second.kill()
    second.wait()
    events = agent.events()
    (packed,) = [e for e in events if e["event"] == "archive"]
    assert (events[-1]["state"], packed["verdict"], packed["cut_short"]) == (
        "collected",
        "partial",
        "pod shop/web-1 has gone",
    )
    assert any("s: pod shop/web-1 has gone" in reason for reason in packed["reasons"])


def test_a_pod_that_ends_before_t0(agent: Agent, lab: Lab, begin: Begin, uid: str) -> None:
    process = begin(lab.b)
    agent.start(pod=pod(uid), collectors=collectors())
    agent.until("ready")
    process.kill()
    process.wait()
    agent.release()
    last = agent.events()[-1]
    assert (last["state"], last["why"]) == ("failed", "pod shop/web-1 has gone before T0")


def test_a_pod_with_the_nodes_network_is_refused(agent: Agent, begin: Begin, uid: str) -> None:
    begin()
    answer = check(agent, uid)
    assert not answer["ok"]
    (problem,) = answer["problems"]
    assert (problem["what"], problem["why"]) == ("pod shop/web-1", "it has the network of its node")


def test_a_pod_that_is_not_there_is_one_clear_error_at_once(agent: Agent, uid: str) -> None:
    answer = check(agent, uid)
    (problem,) = answer["problems"]
    assert (problem["severity"], problem["what"]) == ("fatal", "pod shop/web-1")
    assert "no process on this node belongs to it" in problem["why"]
    agent.start(pod=pod(uid), collectors=collectors())
    last = agent.events()[-1]
    assert last["state"] == "failed"
    assert "no process on this node belongs to it" in last["why"]


def test_without_the_rights_it_says_which(tmp_path: Path, lab: Lab, begin: Begin, uid: str) -> None:
    begin(lab.b)
    agent = Agent(tmp_path, "/usr/bin/python3")
    lacking = ["setpriv", "--bounding-set", "-sys_admin,-sys_ptrace", "--inh-caps", "-sys_admin,-sys_ptrace"]
    done = subprocess.run(
        [*lacking, agent.python, "-I", str(agent.file), "check", "--directory", str(tmp_path / "new")],
        input=json.dumps(plan_of(uid)).encode(), capture_output=True, check=False,
    )  # fmt: skip
    said = done.stdout.decode()
    assert "Operation not permitted" in said or "Permission denied" in said, (said, done.stderr)
    assert "hostPID, SYS_ADMIN and SYS_PTRACE" in said
