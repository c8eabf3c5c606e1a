#!/usr/bin/env python3
"""Start-up of the command line and of a node's agent: CPU time of `--help`, `version` and `check`, and of an agent that is on its
node already until it serves and its connection ends, each beside a bare interpreter of the same Python.

    python benchmarks/startup.py [--quick]
    python benchmarks/startup.py --levels     (what building the agent takes by each of zlib's levels, and its size)

Every round runs all commands once, in turn; the minimum of the rounds is compared, so that other work on the machine
counts for little. CPU seconds are user + system of the process, by wait4(2).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AGENT = "agent until it serves"
REPOSITORY = Path(__file__).resolve().parent.parent
PEERS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import yaml, jsonschema'": ["-c", "import yaml, jsonschema"],
    "retina-run --help": ["-m", "retina_runner", "--help"],
    "retina-run version": ["-m", "retina_runner", "version"],
    "retina-run check quickstart.yaml": ["-m", "retina_runner", "check", "runbooks/quickstart.yaml"],
    AGENT: ["-I", "-S", "-c"],
}


PREPARE = """
import json, sys
from pathlib import Path
from retina_runner.bundle import agent_bundle
from retina_runner.executors.bootstrap import LOADER, opening
folder, agent = Path(sys.argv[1]), agent_bundle()
(folder / agent.name).write_bytes(agent.content)
(folder / "said").write_bytes(opening(agent, str(folder)))
print(LOADER)
"""
"""What a node and its runner have ready. Not done in this process: a child's peak RSS is never below its parent's."""


def once(arguments: list[str], given: Path | None) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, peak RSS in bytes) of one fresh process; its input is that file's."""
    with open(given or os.devnull, "rb") as stdin:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdin=stdin, stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def levels(rounds: int) -> None:
    """CPU and size of the agent by zlib's levels, in this process; the sources are compiled beforehand."""
    sys.path.insert(0, str(REPOSITORY))
    from retina_runner.bundle import build

    build(compiled=True)
    for level in range(1, 10):
        took, size = [], 0
        for _ in range(rounds):
            begun = time.process_time()
            size = len(build(compiled=True, level=level))
            took.append(time.process_time() - begun)
        print(f"level {level}: {min(took) * 1000:5.0f} ms of CPU, {size:7d} B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--levels", action="store_true", help="building the agent instead")
    chosen = parser.parse_args()
    rounds = 3 if chosen.quick else 15
    if chosen.levels:
        return levels(rounds)
    best: dict[str, tuple[float, float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare = [sys.executable, "-c", PREPARE, folder]
        PEERS[AGENT].append(
            subprocess.run(prepare, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
        )
        for _ in range(rounds):
            for name, arguments in PEERS.items():
                found = once(arguments, Path(folder) / "said" if name == AGENT else None)
                before = best.get(name, found)
                best[name] = (min(before[0], found[0]), min(before[1], found[1]), min(before[2], found[2]))
    bare = best["python -c pass"]
    print(f"minimum of {rounds} rounds; ratio of CPU to the bare interpreter")
    for name, (wall, cpu, rss) in best.items():
        print(f"{name:38s} wall {wall:6.3f} s   CPU {cpu:6.3f} s   x{cpu / bare[1]:5.1f}   RSS {rss / 1e6:5.1f} MB")


if __name__ == "__main__":
    main()
