"""A laboratory on one machine: network namespaces joined by veth pairs, real traffic of known size, real runs to watch.

Everything that a Lab makes is removed by `close`, whatever happened. Namespaces are named `rrt<pid>-<letter>`, so that
two test runs side by side don't meet.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from retina_runner.agent.pcap import packets

REPOSITORY = Path(__file__).resolve().parent.parent
RETINA_RUN = [sys.executable, "-m", "retina_runner"]
WAIT_S = 60.0

SENDER = """
import socket, sys, time
address, port, count, size, source = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sender = socket.socket(family, socket.SOCK_DGRAM)
sender.bind(("", source))
for number in range(count):
    sender.sendto(number.to_bytes(4, "big") + b"x" * (size - 4), (address, port))
    if number % 50 == 49:
        time.sleep(0.002)
"""
RECEIVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
receiver = socket.socket(family, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
receiver.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    receiver.recv(65536)
"""


def sh(*argv: str, check: bool = True) -> str:
    """Run a command; its stdout."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def within(netns: str) -> Iterator[None]:
    """This thread, and the threads and processes that it starts meanwhile, in that network namespace (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: IO[str]) -> None:
        if libc.setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")

    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{netns}") as there:
        enter(there)
        try:
            yield
        finally:
            enter(here)


class Lab:
    """Two nodes, a and b, with one link (or two): 10.93.<n>.1 and .2, fd93:<n>::1 and ::2 on eth0, eth1."""

    def __init__(self, links: int = 1):
        self.a, self.b = f"rrt{os.getpid()}-a", f"rrt{os.getpid()}-b"
        self._receivers: list[subprocess.Popen[str]] = []
        self._links = links

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        for name in (self.a, self.b):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
            # No router solicitations, no duplicate address detection: the link carries what a test sends, and nothing else.
            for setting in ("default.accept_dad=0", "default.router_solicitations=0", "all.accept_dad=0"):
                self.inside(name, "sysctl", "-qw", f"net.ipv6.conf.{setting}")
        for n in range(self._links):
            sh("ip", "-n", self.a, "link", "add", f"eth{n}", "type", "veth", "peer", "name", f"eth{n}", "netns", self.b)
            for name, last in ((self.a, 1), (self.b, 2)):
                sh("ip", "-n", name, "addr", "add", f"10.93.{n}.{last}/24", "dev", f"eth{n}")
                sh("ip", "-n", name, "addr", "add", f"fd93:{n}::{last}/64", "dev", f"eth{n}", "nodad")
                sh("ip", "-n", name, "link", "set", f"eth{n}", "up")
        for n in range(self._links):
            # Neighbours are known for good: no ARP or ND among the packets that a test counts.
            for name, other, last in ((self.a, self.b, 2), (self.b, self.a, 1)):
                address = json.loads(sh("ip", "-n", other, "-j", "link", "show", f"eth{n}"))[0]["address"]
                for peer in (f"10.93.{n}.{last}", f"fd93:{n}::{last}"):
                    sh(
                        "ip",
                        "-n",
                        name,
                        "neigh",
                        "replace",
                        peer,
                        "lladdr",
                        address,
                        "dev",
                        f"eth{n}",
                        "nud",
                        "permanent",
                    )

    def __exit__(self, *_: object) -> None:
        for receiver in self._receivers:
            receiver.kill()
            receiver.wait()
        for name in (self.a, self.b):
            sh("ip", "netns", "del", name, check=False)

    def inside(self, name: str, *argv: str) -> str:
        """Run a command in a namespace; its stdout."""
        return sh("ip", "netns", "exec", name, *argv)

    def receive(self, address: str, port: int) -> None:
        """Open a port on b that takes whatever comes."""
        receiver = subprocess.Popen(
            ["ip", "netns", "exec", self.b, sys.executable, "-c", RECEIVER, address, str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._receivers.append(receiver)
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"

    def send(self, address: str, port: int, count: int, size: int = 100, source: int = 40000) -> None:
        """Send that many UDP datagrams of that payload size from a; returns when all are sent."""
        self.inside(self.a, sys.executable, "-c", SENDER, address, str(port), str(count), str(size), str(source))


class Run:
    """One `retina-run` in a process of its own, watched by its events."""

    wait_s = 2 * WAIT_S

    def __init__(
        self,
        runbook: str | Path,
        folder: Path,
        *arguments: str,
        netns: str = "",
        wrapper: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ):
        if isinstance(runbook, str):
            path = folder / "runbook.yaml"
            path.write_text(runbook)
            runbook = path
        self.folder = folder
        self.work = folder / "work"
        prefix = ["ip", "netns", "exec", netns] if netns else []
        given = list(arguments)
        if "--work-dir" not in given:
            given += ["--work-dir", str(self.work)]
        self.process = subprocess.Popen(
            [*prefix, *wrapper, *RETINA_RUN, str(runbook), "--output", str(folder / "runs"), "--json", *given],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        )  # fmt: skip
        self.events: list[dict[str, Any]] = []
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.status: int | None = None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _listen(self) -> None:
        """A pipe that nobody reads would hold the runner up when it is full."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)

    def wait_for(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next event of this kind with these fields. Fails when the run ends, or wait_s pass, without it."""
        found = self._next(self.wait_s, event, fields)
        assert found is not None, f"no event {event} {fields}; there were {[e['event'] for e in self.events]}"
        return found

    def provoke(self, act: Callable[[], object], event: str, **fields: Any) -> dict[str, Any]:
        """As `wait_for`, of an event that `act` makes happen, at a time that nobody tells: it is done until the event comes."""
        deadline = time.monotonic() + self.wait_s
        while time.monotonic() < deadline:
            act()
            if (found := self._next(2.0, event, fields)) is not None:
                return found
        raise AssertionError(f"no event {event} {fields}; there were {[e['event'] for e in self.events]}")

    def _next(self, limit_s: float, event: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                found = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if found is None:
                self._queue.put(None)
                self.process.wait()
                raise AssertionError(
                    f"ended without event {event} {fields}; there were {self.events}; stderr: {self.stderr}"
                )
            self.events.append(found)
            if found["event"] == event and all(found.get(k) == v for k, v in fields.items()):
                return found

    def end(self) -> int:
        """Wait for the end; the exit status."""
        self.process.wait(self.wait_s)
        while (found := self._queue.get(timeout=self.wait_s)) is not None:
            self.events.append(found)
        self.status = self.process.returncode
        return self.status

    def signal(self, number: int = signal.SIGINT) -> None:
        """Signal the runner alone."""
        self.process.send_signal(number)

    @property
    def stderr(self) -> str:
        """All that the runner said there; to be asked for when it has ended."""
        self._listener.join(self.wait_s)
        return "".join(self._said)

    def all(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    @property
    def directory(self) -> Path:
        (found,) = (self.folder / "runs").iterdir()
        return found

    def archives(self) -> list[Archive]:
        return [Archive(p) for p in sorted((self.directory / "archives").glob("*.tar.gz"))]

    def archive(self) -> Archive:
        (found,) = self.archives()
        return found

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        return found


LATE = re.compile(
    r"(\A|: )((this node began|tcpdump was listening) [\d.]+ s after|counting began [\d.]+ s before) T0(: the node was too busy)?\Z"
)


def but_for_lateness(reasons: Iterable[str]) -> list[str]:
    """What of these reasons, a verdict's or a whole archive's, says more than that its node was too busy to begin at T0 itself.
    Tests run on two processors that do other things in CI, too; what they send they send when every node has begun."""
    return [reason for reason in reasons if not LATE.search(reason)]


def said_nothing(done: subprocess.CompletedProcess[str], directory: Path) -> bool:
    """Whether a run that was to speak only of what is worth a mail went well and did so, but for lateness."""
    (row,) = json.loads((directory / "run.json").read_text())["nodes"]
    assert but_for_lateness(row["reasons"]) == [], row
    return (done.returncode, bool(done.stdout), done.stderr) == (0, row["verdict"] != "complete", "")


class Archive:
    """A finished archive, read with Python's own tarfile: another reader than the one that wrote it."""

    def __init__(self, path: Path):
        self.path = path
        with tarfile.open(path, "r:gz") as tar:
            self.members: dict[str, bytes] = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                self.members[member.name.partition("/")[2]] = file.read()
        self.manifest: dict[str, Any] = json.loads(self.members["manifest.json"])

    def pcaps(self) -> dict[str, list[tuple[int, bytes]]]:
        return {n: list(packets(c)) for n, c in self.members.items() if n.endswith(".pcap")}

    def pcap(self) -> list[tuple[int, bytes]]:
        (found,) = self.pcaps().values()
        return found

    def json(self, path: str) -> Any:
        return json.loads(self.members[path])

    def verdict(self, ending: str) -> dict[str, Any]:
        (found,) = [v for v in self.manifest["verdicts"] if v["artefact"].endswith(ending)]
        return dict(found)

    def lacking(self) -> dict[str, list[str]]:
        """What it lacks, in full, artefact by artefact, but for lateness."""
        told = {}
        for v in self.manifest["verdicts"]:
            excused = ("complete", "partial") if v["reasons"] else ("complete",)
            told[v["artefact"]] = but_for_lateness(v["reasons"]) or [v["verdict"]] * (v["verdict"] not in excused)
        return {artefact: reasons for artefact, reasons in told.items() if reasons}

    def whole(self, ending: str) -> bool:
        """Whether the artefact of that ending lacks nothing, but for lateness."""
        return self.verdict(ending)["artefact"] not in self.lacking()


def processes() -> dict[int, str]:
    """pid to command line of every process of a runner, of an agent, or of a tcpdump that writes for one."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            except OSError:
                continue
            if "/pkg/mod/" in command:
                continue  # .ci/meanwhile compiles a package of Go's that is called `raw`
            if "/raw/" in command or "agent-" in command or "retina_runner" in command:
                found[int(folder.name)] = command[:300]
    return found


def eventually(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = WAIT_S) -> None:
    """Wait until it holds. For states that no event tells. `what` is said of one that never does, or says it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what() if callable(what) else what}"
        time.sleep(0.05)


def node_state() -> dict[str, Any]:
    """What a run must leave as it was."""
    settings = {}
    for path in _settings():
        try:
            settings[str(path)] = path.read_bytes()
        except OSError:
            continue
    modules = Path("/proc/modules")
    return {
        "processes": processes(),
        "rules": sh("nft", "list", "ruleset"),
        "legacy tables": [
            Path(f"/proc/net/{n}_tables_names").read_text()
            for n in ("ip", "ip6")
            if Path(f"/proc/net/{n}_tables_names").exists()
        ],
        # Without what the second line has: how long a leased address is still valid, in seconds.
        "addresses": [line.split("\\")[0] for line in sh("ip", "-o", "addr", "show", "scope", "global").splitlines()],
        "links": [line.split("<")[0] for line in sh("ip", "-o", "link").splitlines()],
        "mounts": [
            p
            for p in (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
            if "/netns/" not in p
        ],
        "modules": sorted(line.split()[0] for line in modules.read_text().splitlines()) if modules.exists() else [],
        "namespaces": [line for line in sh("ip", "netns").splitlines() if line.startswith("rrt")],
        "work": sorted(p.name for p in Path("/var/tmp").iterdir()),
        "settings": settings,
    }


def _settings() -> Iterator[Path]:
    for top in ("ipv4", "ipv6", "core", "netfilter"):
        # Not by rglob, which breaks off at the folder of an interface that goes away meanwhile.
        for folder, _, names in os.walk(f"/proc/sys/net/{top}"):
            for name in names:
                path = Path(folder, name)
                # Counts and generated numbers change by themselves.
                generated = any(w in name for w in ("count", "secret", "fastopen_key", "flush"))
                if not generated and "/neigh/" not in str(path):
                    yield path
