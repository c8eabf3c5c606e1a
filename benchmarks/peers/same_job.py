"""The whole job of an SSH fleet run as a script of a hundred lines, for `benchmarks/fleet.py`: what the job itself costs.

Per node what a run of retina-run over SSH promises: the program goes there once, the node is checked, its clock compared, a
process of its own waits for a T0 that all nodes share and outlives its connection, what it made is one .tar.gz with a SHA-256,
which is verified here, and nothing stays there. Without any of the rest: no plan, no errors, no limits, no events, no resume.

    python same_job.py '["HOST", …] KEY KNOWN_HOSTS FOLDER WINDOW_S' as a JSON list (in an environment that has asyncssh)

Prints the Unix time at which each node's window began, on the node's clock, as a JSON list.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import sys
import time
from typing import Any

import asyncssh

HOME = "/var/tmp/same-job"
NODE = r"""
import json, os, sys, time
HOME = sys.argv[1]
def worker(window_s):
    import hashlib, subprocess, tarfile
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    open(HOME + "/ready", "w").close()
    while not os.path.exists(HOME + "/t0"):
        time.sleep(0.01)
    t0 = float(open(HOME + "/t0").read())
    time.sleep(max(0.0, t0 - time.time()))
    begun = time.time()
    time.sleep(max(0.0, t0 + window_s - time.time()))
    made = subprocess.run(["head", "-c", "1048576", "/dev/urandom"], stdout=subprocess.PIPE, check=True).stdout
    with open(HOME + "/out", "wb") as file:
        file.write(made)
    with tarfile.open(HOME + "/out.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(HOME + "/out", "out")
    with open(HOME + "/out.tar.gz", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    with open(HOME + "/done.new", "w") as file:
        json.dump({"begun": begun, "sha256": digest}, file)
    os.rename(HOME + "/done.new", HOME + "/done")
def until(path):
    while not os.path.exists(path):
        time.sleep(0.01)
for line in sys.stdin:
    verb, _, value = line.strip().partition(" ")
    answer = {}
    if verb == "check":
        disk, path = os.statvfs("/var/tmp"), os.environ["PATH"].split(":")
        answer = {"python": sys.version_info[:3], "free": disk.f_bavail * disk.f_frsize, "uid": os.geteuid(),
                  "tools": [t for t in ("head", "tcpdump", "tar") if any(os.access(p + "/" + t, os.X_OK) for p in path)]}
    elif verb == "clock":
        answer = {"now": time.time()}
    elif verb == "start":
        if not os.fork():
            worker(float(value))
            os._exit(0)
        until(HOME + "/ready")
    elif verb == "release":
        with open(HOME + "/t0.new", "w") as file:
            file.write(value)
        os.rename(HOME + "/t0.new", HOME + "/t0")
    elif verb == "wait":
        until(HOME + "/done")
        answer = json.load(open(HOME + "/done"))
    print(json.dumps(answer), flush=True)
"""
PADDING = "#" * 100_000
ROUND_TRIPS = 5
MARGIN_S = 0.1


class Together:
    """Where all nodes wait for each other, and the T0 that the last one sets."""

    def __init__(self, count: int):
        self._missing, self._complete, self._t0 = count, asyncio.Event(), 0.0

    async def t0(self) -> float:
        self._missing -= 1
        if not self._missing:
            self._t0 = time.time() + MARGIN_S
            self._complete.set()
        await self._complete.wait()
        return self._t0


async def ask(process: Any, line: str) -> dict[str, Any]:
    process.stdin.write(line + "\n")
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


async def offset(process: Any) -> float:
    """The node's clock minus this one, seconds, by the shortest of some round trips."""
    trips = []
    for _ in range(ROUND_TRIPS):
        before = time.time()
        now = (await ask(process, "clock"))["now"]
        after = time.time()
        trips.append((after - before, now - (before + after) / 2))
    return float(min(trips)[1])


async def one(host: str, key: str, known: str, folder: str, window_s: float, together: Together) -> float:
    options = {"config": None, "connect_timeout": 120, "login_timeout": 120}
    async with asyncssh.connect(host, username="root", client_keys=[key], known_hosts=known, **options) as c:
        await c.run(f"mkdir -m 700 {HOME} && cat > {HOME}/agent.py", input=NODE + PADDING, check=True)
        async with c.create_process(f"exec python3 -I -S {HOME}/agent.py {HOME}") as process:
            checked = await ask(process, "check")
            assert checked["free"] > 1 << 22, checked
            assert "head" in checked["tools"], checked
            ahead_s = await offset(process)
            await ask(process, f"start {window_s}")
            t0 = await together.t0()
            await ask(process, f"release {t0 + ahead_s:.6f}")
            done = await ask(process, "wait")
            await offset(process)
            got = (await c.run(f"cat {HOME}/out.tar.gz", encoding=None, check=True)).stdout
            assert hashlib.sha256(got).hexdigest() == done["sha256"]
            assert len(gzip.decompress(got)) > 1 << 20
            with open(f"{folder}/{host}.tar.gz", "wb") as file:
                file.write(got)
            await c.run(f"rm -r {HOME}", check=True)
        return float(done["begun"])


async def main() -> None:
    hosts, key, known, folder, window_s = json.loads(sys.argv[1])
    together = Together(len(hosts))
    print(json.dumps(await asyncio.gather(*(one(h, key, known, folder, window_s, together) for h in hosts))))


if __name__ == "__main__":
    asyncio.run(main())
