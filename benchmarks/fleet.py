#!/usr/bin/env python3
"""A fleet over SSH: the same job by retina-run and by others, in one run, on the same real sshd's in namespaces.

    python benchmarks/fleet.py [--quick] [--nodes 1,20,100] [--rounds 3] [--only retina-run,asyncssh] [--peers DIR] [--memory]
                               (as root, with openssh-server; peers are installed by pip into a folder that goes again)

The job: something of 100 kB up to every node, a window of 3 s there, 1 MB of random bytes back, everything removed. For
retina-run it is a runbook with one command, and it checks the node, compares clocks, agrees on T0, hashes, verifies and
writes its records besides. The others run a script of a few lines with no barrier, no check and no digest:

    asyncssh      a connection a node, all at once: upload by cat, one command, download by cat (the floor)
    same-job      benchmarks/peers/same_job.py: asyncssh, with check, clocks, one T0, a detached process, .tar.gz, SHA-256
    parallel-ssh  its ParallelSSHClient: copy_file, run_command, copy_remote_file
    pyinfra       its CLI with a deploy of files.put, server.shell, files.get
    ansible       ansible-playbook, pipelining, forks = nodes: copy, command, fetch, file

Printed: median wall seconds beyond the window, the runner's CPU seconds (its children's too), those of runner and nodes
together where there is a cgroup to count them, peak RSS (of the largest process), ratios to the floor, and the start skew:
between the first and the last node's window, for the others by the nodes' own clocks, which are one here. For retina-run
also within how long after T0 the windows opened, with the error that it states. Runner and nodes share the machine's cores:
read ratios. Everybody's modules are compiled beforehand, as an installation's are.

--peers DIR: an environment that has the peers, or is to have them and to stay.
--memory: retina-run alone, 20 nodes, 200 MB each: the runner's peak RSS against that of 1 MB each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fleet.fleet import Fleet
from tests.lab import REPOSITORY

WINDOW_S = 3
JOB = f"""
import os, sys, time
begun = time.time()
time.sleep({WINDOW_S})
with open(sys.argv[1], "wb") as file:
    file.write(os.urandom(1 << 20))
print(begun)
"""
PADDING = "#" * 100_000
PEERS = {
    "asyncssh": "asyncssh",
    "same-job": "asyncssh",
    "parallel-ssh": "parallel-ssh",
    "pyinfra": "pyinfra>=3.10",
    "ansible": "ansible-core",
}

ASYNCSSH = """
import asyncio, asyncssh, json, sys
hosts, key, known, job, out = json.loads(sys.argv[1])
content = open(job, "rb").read()
async def one(host):
    async with asyncssh.connect(host, username="root", client_keys=[key], known_hosts=known, config=None,
                                connect_timeout=120, login_timeout=120) as c:
        await c.run("cat > /var/tmp/job.py", input=content, encoding=None, check=True)
        begun = (await c.run("python3 /var/tmp/job.py /var/tmp/out", check=True)).stdout
        got = (await c.run("cat /var/tmp/out", encoding=None, check=True)).stdout
        open(f"{out}/{host}", "wb").write(got)
        await c.run("rm /var/tmp/job.py /var/tmp/out", check=True)
        return float(begun)
async def main():
    print(json.dumps(await asyncio.gather(*map(one, hosts))))
asyncio.run(main())
"""
PSSH = """
import json, sys
from pssh.clients import ParallelSSHClient
from gevent import joinall
hosts, key, known, job, out = json.loads(sys.argv[1])
c = ParallelSSHClient(hosts, user="root", pkey=key, pool_size=len(hosts), timeout=120, num_retries=5)
joinall(c.copy_file(job, "/var/tmp/job.py"), raise_error=True)
done = c.run_command("python3 /var/tmp/job.py /var/tmp/out")
begun = [float(next(iter(o.stdout))) for o in done]
joinall(c.copy_remote_file("/var/tmp/out", f"{out}/x"), raise_error=True)
c.join(c.run_command("rm /var/tmp/job.py /var/tmp/out"))
print(json.dumps(begun))
"""
DEPLOY = """
from pyinfra.operations import files, server
from pyinfra import host
files.put(src={job!r}, dest="/var/tmp/job.py")
server.shell(commands=["python3 /var/tmp/job.py /var/tmp/out > /var/tmp/begun"])
files.get(src="/var/tmp/out", dest={out!r} + "/" + host.name)
files.get(src="/var/tmp/begun", dest={out!r} + "/" + host.name + ".begun")
server.shell(commands=["rm /var/tmp/job.py /var/tmp/out /var/tmp/begun"])
"""
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - copy: {{src: {job}, dest: /var/tmp/job.py}}
    - command: python3 /var/tmp/job.py /var/tmp/out
      register: done
    - fetch: {{src: /var/tmp/out, dest: "{out}/{{{{ inventory_hostname }}}}", flat: true}}
    - copy: {{content: "{{{{ done.stdout }}}}", dest: "{out}/{{{{ inventory_hostname }}}}.begun"}}
      delegate_to: localhost
    - file: {{path: "/var/tmp/{{{{ item }}}}", state: absent}}
      loop: [job.py, out]
"""


@dataclass(frozen=True)
class Cost:
    """Of one job: seconds beyond the window, CPU seconds and peak RSS (MB) of the runner, CPU seconds of everybody, start
    skew in seconds; of retina-run what it says of that (the `skew` of its run.json)."""

    beyond_s: float
    cpu_s: float
    rss_mb: float
    skew_s: float
    all_cpu_s: float | None = None
    told: dict[str, float] | None = None


class Counted:
    """A cgroup around this process and all that it starts, which counts their CPU time (cgroups(7)), where one can be made."""

    def __init__(self) -> None:
        self._group: Path | None = None
        for root, file in (("/sys/fs/cgroup/cpuacct", "cpuacct.usage"), ("/sys/fs/cgroup", "cpu.stat")):
            group = Path(root) / f"fleet-benchmark-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                (group / "cgroup.procs").write_text(str(os.getpid()))
                self._group, self._file = group, group / file
                return

    def seconds(self) -> float | None:
        if self._group is None:
            return None
        words = self._file.read_text().split()
        return int(words[0]) / 1e9 if len(words) == 1 else int(words[words.index("usage_usec") + 1]) / 1e6

    def close(self) -> None:
        if self._group is not None:
            with contextlib.suppress(OSError):
                (self._group.parent / "cgroup.procs").write_text(str(os.getpid()))
                self._group.rmdir()


def measured(fleet: Fleet, argv: list[str], folder: Path, env: dict[str, str]) -> tuple[float, float, float, str]:
    """Run a command in the fleet's namespace: wall, CPU and peak RSS of it and its children, and its stdout."""
    with open(folder / "stdout", "w+") as out, open(folder / "stderr", "w+") as err:
        begun = time.monotonic()
        process = subprocess.Popen(
            ["ip", "netns", "exec", fleet.netns, *argv], stdout=out, stderr=err, cwd=folder, env={**os.environ, **env}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, trouble = out.read(), err.read()
    if process.returncode:
        raise SystemExit(f"{argv[:4]} ended with {process.returncode}: {trouble[-2000:] or said[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said


class Bench:
    """One fleet, and the tools on it."""

    def __init__(self, fleet: Fleet, folder: Path, peers: Path):
        self.fleet, self.folder, self.peers = fleet, folder, peers
        self.job = folder / "job.py"
        self.job.write_text(JOB + PADDING)
        os.chmod(fleet.key, 0o600)

    def hosts(self, count: int) -> list[str]:
        return [self.fleet.address(n) for n in range(1, count + 1)]

    @contextlib.contextmanager
    def out(self) -> Iterator[Path]:
        made = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield made
        finally:
            shutil.rmtree(made)

    def retina_run(self, count: int, size: str = "1048576") -> Cost:
        with self.out() as out:
            inventory = self.fleet.inventory(out / "hosts.yaml", range(1, count + 1))
            (out / "job.yaml").write_text(
                f"name: job\nduration: {WINDOW_S}s\nlimits: {{disk_free_percent: 0, disk_free_bytes: 1MB, ready_timeout: 10m}}\n"
                f"captures:\n  - nodes: {{hosts: nodes}}\n    collect:\n"
                f'      - command: {{argv: [head, -c, "{size}", /dev/urandom], output_limit: 300MB}}\n'
            )
            wall, cpu, rss, _ = measured(
                self.fleet, [sys.executable, "-m", "retina_runner", "job.yaml", "-i", str(inventory), "-q"], out,
                {"PYTHONPATH": str(REPOSITORY), "PYTHONPYCACHEPREFIX": str(self.folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""},
            )  # fmt: skip
            (run,) = (out / "runs").glob("*/run.json")
            report = json.loads(run.read_text())
            assert len(list(run.parent.glob("archives/*.tar.gz"))) == count
            skew = report["skew"]
            return Cost(wall - WINDOW_S, cpu, rss, skew["spread_s"] if skew else 0.0, told=skew)

    def _script(self, count: int, name: str, text: str) -> Cost:
        with self.out() as out:
            (out / "got").mkdir()
            words = json.dumps(
                [self.hosts(count), str(self.fleet.key), str(self.fleet.known_hosts), str(self.job), str(out / "got")]
            )
            python = str(self.peers / "bin" / "python")
            wall, cpu, rss, said = measured(self.fleet, [python, "-c", text, words], out, {})
            sizes = [p.stat().st_size for p in (out / "got").iterdir()]
            assert sizes == [1 << 20] * count, f"{name}: {sizes}"
            begun = json.loads(said.splitlines()[-1])
            return Cost(wall - WINDOW_S, cpu, rss, max(begun) - min(begun))

    def asyncssh(self, count: int) -> Cost:
        return self._script(count, "asyncssh", ASYNCSSH)

    def same_job(self, count: int) -> Cost:
        with self.out() as out:
            words = [self.hosts(count), str(self.fleet.key), str(self.fleet.known_hosts), str(out), WINDOW_S]
            script = str(Path(__file__).parent / "peers" / "same_job.py")
            python = str(self.peers / "bin" / "python")
            wall, cpu, rss, said = measured(self.fleet, [python, script, json.dumps(words)], out, {})
            assert len(list(out.glob("*.tar.gz"))) == count
            begun = json.loads(said.splitlines()[-1])
            return Cost(wall - WINDOW_S, cpu, rss, max(begun) - min(begun))

    def parallel_ssh(self, count: int) -> Cost:
        return self._script(count, "parallel-ssh", PSSH)

    def _begun(self, got: Path, count: int) -> float:
        begun = [float(p.read_text()) for p in got.glob("*.begun")]
        assert len(begun) == count
        assert all(p.stat().st_size == 1 << 20 for p in got.iterdir() if p.suffix != ".begun")
        return max(begun) - min(begun)

    def pyinfra(self, count: int) -> Cost:
        with self.out() as out:
            got = out / "got"
            got.mkdir()
            (out / "deploy.py").write_text(DEPLOY.format(job=str(self.job), out=str(got)))
            data = {"ssh_user": "root", "ssh_key": str(self.fleet.key), "ssh_known_hosts_file": str(self.fleet.known_hosts),
                    "ssh_strict_host_key_checking": "yes", "ssh_config_file": "/dev/null",
                    "ssh_paramiko_connect_kwargs": {"banner_timeout": 120, "auth_timeout": 120}}  # fmt: skip
            (out / "hosts.py").write_text(f"hosts = ({self.hosts(count)!r}, {data!r})\n")
            wall, cpu, rss, _ = measured(
                self.fleet, [str(self.peers / "bin" / "pyinfra"), "-y", "--parallel", str(count), "hosts.py", "deploy.py"], out,
                {},
            )  # fmt: skip
            return Cost(wall - WINDOW_S, cpu, rss, self._begun(got, count))

    def ansible(self, count: int) -> Cost:
        with self.out() as out:
            got = out / "got"
            got.mkdir()
            (out / "job.yml").write_text(PLAYBOOK.format(job=self.job, out=got))
            (out / "hosts.ini").write_text("".join(f"{h}\n" for h in self.hosts(count)))
            env = {
                "ANSIBLE_PIPELINING": "1", "ANSIBLE_FORKS": str(count), "ANSIBLE_REMOTE_USER": "root", "ANSIBLE_TIMEOUT": "120",
                "ANSIBLE_PRIVATE_KEY_FILE": str(self.fleet.key), "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
                "ANSIBLE_HOME": str(out / "home"), "HOME": str(out),
                "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=60s -F /dev/null "
                + f"-o UserKnownHostsFile={self.fleet.known_hosts}",
            }  # fmt: skip
            wall, cpu, rss, _ = measured(
                self.fleet, [str(self.peers / "bin" / "ansible-playbook"), "-i", "hosts.ini", "job.yml"], out, env
            )
            return Cost(wall - WINDOW_S, cpu, rss, self._begun(got, count))


def install(folder: Path, names: list[str]) -> list[str]:
    """The peers that could be installed, or are there already; says which couldn't."""
    there = []
    if not (folder / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for name in names:
        done = subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", PEERS[name]],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{name}: not measured, pip couldn't install it: {done.stderr.strip().splitlines()[-1][:200]}")
        else:
            there.append(name)
    return there


def compare(bench: Bench, counts: list[int], tools: list[str], rounds: int, counted: Counted) -> None:
    calls: dict[str, Callable[[int], Cost]] = {
        "retina-run": bench.retina_run, "asyncssh": bench.asyncssh, "same-job": bench.same_job, "parallel-ssh": bench.parallel_ssh,
        "pyinfra": bench.pyinfra, "ansible": bench.ansible,
    }  # fmt: skip
    for count in counts:
        found: dict[str, list[Cost]] = {t: [] for t in tools}
        for number in range(rounds):
            # In turn, and each round from another one on: whatever else the machine does meets all of them.
            for tool in [*tools[number % len(tools) :], *tools[: number % len(tools)]]:
                before = counted.seconds()
                cost = calls[tool](count)
                after = counted.seconds()
                found[tool].append(replace(cost, all_cpu_s=None if before is None or after is None else after - before))
        floor = statistics.median(c.beyond_s for c in found["asyncssh"]) if found.get("asyncssh") else None
        print(f"\n{count} nodes, median of {rounds}:")
        print(f"{'':14}{'beyond window':>14}{'ratio':>8}{'CPU':>9}{'all CPU':>9}{'RSS':>9}{'start skew':>12}")
        for tool in tools:
            costs = found[tool]
            beyond = statistics.median(c.beyond_s for c in costs)
            ratio = f"{beyond / floor:.2f}" if floor else "-"
            cpu, skew = statistics.median(c.cpu_s for c in costs), statistics.median(c.skew_s for c in costs) * 1000
            rss = max(c.rss_mb for c in costs)
            every = [c.all_cpu_s for c in costs if c.all_cpu_s is not None]
            together = f"{statistics.median(every):7.2f} s" if every else f"{'-':>9}"
            print(f"{tool:14}{beyond:12.2f} s{ratio:>8}{cpu:7.2f} s{together}{rss:6.0f} MB{skew:9.1f} ms", flush=True)
        told = [c.told for c in found.get("retina-run", []) if c.told]
        if told:
            p50, p99, error = (
                1000 * statistics.median(t[k] for t in told) for k in ("p50_s", "p99_s", "after_error_s")
            )
            print(
                f"retina-run's windows opened after T0: p50 {p50:.1f} ms, p99 {p99:.1f} ms, each ± {error:.1f} ms",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 nodes, one round, the floor and the same job only")
    parser.add_argument("--nodes", default="1,20,100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args()
    counts = [2] if chosen.quick else [int(n) for n in chosen.nodes.split(",")]
    rounds = 1 if chosen.quick else chosen.rounds
    names = ["asyncssh", "same-job"] if chosen.quick else list(PEERS)
    if chosen.only:
        names = [n for n in names if n in chosen.only.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="fleet-benchmark-"))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    peers = chosen.peers or folder / "peers"
    counted = Counted()
    try:
        if chosen.memory:
            with Fleet(20, shared_disk=True) as fleet:
                bench = Bench(fleet, folder, peers)
                small, large = bench.retina_run(20), bench.retina_run(20, str(200 << 20))
                print(f"20 nodes: {small.rss_mb:.0f} MB RSS for 1 MB each, {large.rss_mb:.0f} MB for 200 MB each")
            return
        there = install(peers, names)
        with Fleet(max(counts)) as fleet:
            bench = Bench(fleet, folder, peers)
            bench.retina_run(1)  # its modules are compiled from now on, as the peers' are
            compare(bench, counts, ["retina-run", *there], rounds, counted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        counted.close()


if __name__ == "__main__":
    main()
