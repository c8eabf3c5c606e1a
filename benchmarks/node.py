#!/usr/bin/env python3
"""What a run costs a node besides its window: the agent's serving process, driven alone over pipes, with no SSH around it.

    python benchmarks/node.py [--quick] [--rounds 9]          (as root: a cgroup counts the CPU)

The job is that of benchmarks/fleet.py, with a window of 3 s: one command, 1 MB of random bytes in the archive. Printed: CPU
milliseconds of all processes there by step, median (and minimum) of the rounds. Other work on the machine hardly changes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fleet import WINDOW_S, Counted

from retina_runner import planning
from retina_runner.bundle import AgentBundle, agent_bundle
from retina_runner.executors.bootstrap import FLAGS, LOADER, opening
from retina_runner.runbook_reading import load_runbook

RUNBOOK = f"""
name: node
duration: {WINDOW_S}s
limits: {{disk_free_percent: 0, disk_free_bytes: 1MB}}
captures:
  - nodes: local
    collect:
      - command: {{argv: [head, -c, "1048576", /dev/urandom], output_limit: 300MB}}
"""
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
"""The node's own, as sshd(8) would find it."""
INSIDE = "the window"


class Driven:
    """One serving process and what it has said; `cost` is CPU milliseconds by step."""

    def __init__(self, counted: Counted):
        self.cost: dict[str, float] = {}
        self._counted = counted
        self._spent = self._seconds()
        self._rest = b""
        self._process = subprocess.Popen(
            [PYTHON, *FLAGS, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def done(self, step: str) -> None:
        spent = self._seconds()
        self.cost[step] = (spent - self._spent) * 1000
        self._spent = spent

    def _seconds(self) -> float:
        """All CPU but this process's own."""
        return (self._counted.seconds() or 0.0) - time.process_time()

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) or 0 :]

    def some(self) -> bytes:
        assert self._process.stdout is not None
        found = self._rest or os.read(self._process.stdout.fileno(), 1 << 18)
        self._rest = b""
        if not found:
            raise SystemExit("the agent has ended")
        return found

    def line(self) -> Any:
        line = b""
        while not line.strip():
            line, newline, self._rest = self.some().partition(b"\n")
            while not newline:
                more, newline, self._rest = self.some().partition(b"\n")
                line += more
        return json.loads(line)

    def ask(self, verb: str, *arguments: str, stdin: str = "") -> Any:
        """The last line of a verb's answer."""
        self.send(json.dumps({"verb": verb, "arguments": arguments, "stdin": stdin}).encode() + b"\n")
        answer = None
        while "served" not in (line := self.line()):
            answer = line
        return answer

    def follow(self, directory: str, first: int, until: str) -> Any:
        self.send(
            json.dumps({"verb": "events", "arguments": [directory, "--from", str(first), "--follow", "60"]}).encode()
            + b"\n"
        )
        while (event := self.line()).get("event") != until:
            pass
        return event

    def hush(self) -> None:
        self.send(b"\n")
        while "served" not in self.line():
            pass

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def once(counted: Counted, agent: AgentBundle, plan: str) -> dict[str, float]:
    work = tempfile.mkdtemp(prefix="node-benchmark-", dir="/var/tmp")
    os.rmdir(work)
    directory = f"{work}/run"
    node = Driven(counted)
    node.send(opening(agent, work))
    assert not node.line()["agent"]["have"]
    node.send(agent.content)
    assert node.line() == {"ready": True}
    node.done("until it serves")
    assert node.ask("check", "--directory", work, stdin=plan)["ok"]
    node.done("check")
    assert node.ask("start", directory, stdin=plan)["ok"]
    ready = node.follow(directory, 0, "ready")["seq"]
    node.hush()
    node.done("start until ready")
    time.sleep(0.2)
    node.done("0.2 s of waiting")
    t0 = time.time() + 0.4
    release = {"t0": t0, "reference_t0": t0, "offset_s": 0.0, "offset_error_s": 0.0}
    assert node.ask("release", directory, stdin=json.dumps(release))["ok"]
    time.sleep(max(0.0, t0 - time.time()))
    node.done("release and arming")
    time.sleep(max(0.0, t0 + WINDOW_S - time.time()))
    node.done(INSIDE)
    archive = node.follow(directory, ready + 1, "archive")
    while "served" not in node.line():
        pass
    node.done("collecting and packing")
    node.send(
        json.dumps({"verb": "fetch", "of": {"directory": directory, "name": archive["name"], "offset": 0}}).encode()
        + b"\n"
    )
    left, digest = int(node.line()["bytes"]), hashlib.sha256()
    while left:
        piece = node.some()
        digest.update(piece)
        left -= len(piece)
    assert digest.hexdigest() == archive["sha256"]
    node.done("fetch")
    assert node.ask("remove", directory)["removed"]
    node.hang_up()
    node.done("removing and the end")
    assert not os.path.exists(work)
    return node.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    counted = Counted()
    try:
        if counted.seconds() is None:
            print("not measured: there is no cgroup to count CPU in; it takes root")
            return
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "node.yaml")
            written.write_text(RUNBOOK)
            runbook = load_runbook(str(written))
        agent = agent_bundle()
        places = {runbook.captures[0].name: [planning.Place("n1", "local")]}
        (plan,) = planning.build(runbook, places, "node-20261128000000UTC", agent)
        found = [once(counted, agent, plan.text.decode()) for _ in range(rounds)]
    finally:
        counted.close()
    for step in found[0]:
        spent = [cost[step] for cost in found]
        print(f"{step:24}{statistics.median(spent):7.1f} ms ({min(spent):.1f})")
    beside = [sum(ms for step, ms in cost.items() if step != INSIDE) for cost in found]
    print(f"{'besides the window':24}{statistics.median(beside):7.1f} ms ({min(beside):.1f})")


if __name__ == "__main__":
    main()
