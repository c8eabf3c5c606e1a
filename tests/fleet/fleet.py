"""A fleet of real sshd's on one machine: each node with its own network, mount, uts, ipc and pid namespace, hostname, host
key, accounts and a private writable root (an overlay over this machine's). What a test does as root there stays there.

Accounts: `root` (key), `diag` (key; sudo needs the password, which is `PASSWORD`), `ops` (key; sudo without one),
`plain` (key; no sudo at all). Everything is removed by `close`, whatever happened.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.lab import eventually, sh

PASSWORD = "diag-canary-6b1c"
NODE_LIMIT_S = 90.0
_made = itertools.count(1)


class Fleet:
    """Nodes n1 … nN at 10.94.0.11 onwards, behind a bridge in a namespace of the fleet's own, where the runner runs too.

    A node's /var/tmp has 300 MB of its own; with `shared_disk` all of this machine's temporary folder, a folder each.
    """

    def __init__(self, count: int, *, shared_disk: bool = False):
        self.count, self._shared_disk = count, shared_disk
        self.prefix = f"rrt{os.getpid()}x{next(_made)}"
        self.netns = f"{self.prefix}-f"
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-"))
        self.folder.chmod(0o755)
        self.key = self.folder / "id_ed25519"
        self.known_hosts = self.folder / "known_hosts"
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    # -- up and down -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Fleet:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        sh("ip", "netns", "add", self.netns)
        for command in (
            ["link", "set", "lo", "up"],
            ["link", "add", "br0", "type", "bridge"],
            ["addr", "add", "10.94.0.1/16", "dev", "br0"],
            ["link", "set", "br0", "up"],
        ):
            sh("ip", "-n", self.netns, *command)
        self._crypt = sh("openssl", "passwd", "-6", PASSWORD).strip()
        for number in range(1, self.count + 1):
            self._network(number)
            self.start(number)
        for number in range(1, self.count + 1):
            eventually(partial(self.answers, number), f"sshd of n{number} answers", NODE_LIMIT_S)
        self.write_known_hosts()

    def _network(self, number: int) -> None:
        name = f"{self.prefix}-{number}"
        sh("ip", "netns", "add", name)
        sh("ip", "-n", self.netns, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "-n", self.netns, "link", "set", f"v{number}", "master", "br0", "up")
        for command in (
            ["addr", "add", f"{self.address(number)}/16", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", "10.94.0.1"],
        ):
            sh("ip", "-n", name, *command)

    def start(self, number: int) -> None:
        """Start (again) a node whose network is there; a node started anew has a fresh root."""
        folder = self.folder / f"n{number}"
        folder.mkdir(exist_ok=True)
        if self._shared_disk:
            (folder / "disk").mkdir(exist_ok=True)
            (folder / "disk").chmod(0o1777)
        if not (folder / "hostkey").exists():
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "hostkey"))
        script = Path(__file__).with_name("node.sh")
        with open(folder / "log", "ab") as log:
            self._nodes[number] = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.prefix}-{number}", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork",
                 "--kill-child", "bash", str(script), f"n{number}", str(folder), f"{self.key}.pub", self._crypt],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        for process in self._nodes.values():
            process.send_signal(signal.SIGKILL)  # --kill-child takes the node's first process, and so all of them
        for process in self._nodes.values():
            process.wait()
        for name in sh("ip", "netns").split():
            if name == self.netns or (name.startswith(f"{self.prefix}-") and name.rpartition("-")[2].isdigit()):
                sh("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- nodes -----------------------------------------------------------------------------------------------------------

    def address(self, number: int) -> str:
        return f"10.94.{number // 200}.{10 + number % 200}"

    def answers(self, number: int) -> bool:
        process = self._nodes[number]
        assert process.poll() is None, (self.folder / f"n{number}" / "log").read_text()
        script = f"import socket; socket.create_connection(('{self.address(number)}', 22), 1).recv(4)"
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, sys.executable, "-c", script], stderr=subprocess.DEVNULL, check=False
        ).returncode == 0  # fmt: skip

    def first_process(self, number: int) -> int:
        """The pid, here, of the node's first process: its sshd."""
        (unshare,) = _children(self._nodes[number].pid) or (0,)
        return unshare

    def run(self, number: int, *argv: str, check: bool = True) -> str:
        """Run a command as root inside the node; its stdout."""
        return sh(*self._enter(number), *argv, check=check)

    def _enter(self, number: int) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.first_process(number)), "-n", "-m", "-u", "-i", "-p", "-r", "-w")

    @contextmanager
    def at_once(self, script: str) -> Iterator[Callable[[], None]]:
        """Gives what has that piece of Python run on every node and waits for it: its interpreters are up before that."""
        waiting = []
        for number in self.every_node():
            argv = (*self._enter(number), "/usr/bin/python3", "-c", f"print('ready', flush=True)\ninput()\n{script}")
            waiting.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

        def go() -> None:
            for process in waiting:
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.flush()
            assert [process.wait(60) for process in waiting] == [0] * self.count

        try:
            for process in waiting:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            yield go
        finally:
            for process in waiting:
                process.kill()
                process.communicate()  # to whom nsenter has begun, the end of stdin is an end

    def cut(self, number: int) -> None:
        """The link goes silent: no RST, no FIN."""
        sh("ip", "-n", self.netns, "link", "set", f"v{number}", "down")

    def heal(self, number: int) -> None:
        sh("ip", "-n", self.netns, "link", "set", f"v{number}", "up")

    def configure(self, number: int, *lines: str) -> None:
        """Give the node's sshd these lines of configuration, instead of its own of the same keywords, until the next time."""
        # As a rule the first of a keyword counts in sshd_config(5), but of MaxStartups the last one does.
        keywords = "|".join(line.split()[0] for line in lines) or "-"
        text = "".join(f"{line}\\n" for line in lines)
        ports = [line.split()[1] for line in lines if line.startswith("Port ")] or ["22"]
        script = (
            'cd /etc/ssh; test -e first || cp sshd_config first; (printf "$0"; grep -Ev "^($1) " first) > sshd_config; '
            "kill -HUP 1"
        )
        before = len(self.log(number))
        self.run(number, "sh", "-c", script, text, keywords)

        def begun() -> bool:
            # At every port, and so far that it heeds the next SIGHUP: before that, the first process of a namespace ignores it.
            said = self.log(number)[before:]
            return all(f"0.0.0.0 port {port}." in said for port in ports) and self._heeds_hangups(number)

        eventually(begun, f"sshd of n{number} has begun again")

    def _heeds_hangups(self, number: int) -> bool:
        status = Path(f"/proc/{self.first_process(number)}/status").read_text()
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
        return bool(int(caught, 16) & 1 << signal.SIGHUP - 1)

    def log(self, number: int) -> str:
        """What the node's sshd has said so far."""
        return (self.folder / f"n{number}" / "log").read_text()

    def logins(self, number: int) -> int:
        """How many logins the node's sshd has let in so far."""
        return len(re.findall(r"^Accepted \S+ for ", self.log(number), re.MULTILINE))

    def freeze(self, number: int) -> None:
        """Every process of sshd on the node stops where it is: connections stay, nothing answers."""
        self._signal_sshd(number, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        self._signal_sshd(number, signal.SIGCONT)

    def _signal_sshd(self, number: int, what: signal.Signals) -> None:
        first = self.first_process(number)
        # From here: inside, the node's first process can't be stopped by its children's signals.
        for pid in (first, *_descendants(first)):
            _signal_if_sshd(pid, what)

    def kill_sessions(self, number: int) -> None:
        """Every login on the node dies at once; the listener, and what has detached itself, doesn't."""
        for pid in _descendants(self.first_process(number)):
            _signal_if_sshd(pid, signal.SIGKILL)

    def set_clock(self, number: int, offset_s: float, rate: float = 0.0) -> None:
        """From now on programs on the node are told a time that is wrong by that much, and by `rate` more each second.

        Programs that were started before the first call know nothing of it; those between it and `mend_clock` do for good.
        """
        place = self.folder / f"n{number}" / "clock.so"
        if not place.exists():
            source = Path(__file__).with_name("skewed_clock.c")
            sh("gcc", "-shared", "-fPIC", "-O1", "-o", str(place), str(source), "-ldl", "-lm")
        # By content: what tests make here isn't in the node's own /tmp.
        library = base64.b64encode(place.read_bytes()).decode()
        words = f"{offset_s} {rate} {time.time():.6f}"
        script = """
            echo "$1" > /etc/clock.new && mv /etc/clock.new /etc/clock
            test -e /etc/ld.so.preload || { echo "$0" | base64 -d > /usr/lib/clock.so; echo /usr/lib/clock.so > /etc/ld.so.preload; }
        """
        self.run(number, "sh", "-c", script, library, words)

    def mend_clock(self, number: int) -> None:
        """New programs on the node are told the right time again."""
        self.run(number, "rm", "-f", "/etc/ld.so.preload", "/etc/clock")

    def left(self, number: int) -> list[str]:
        """What agents have left on the node: files in their places, and processes."""
        # A folder that goes away while find looks into it is an error to find.
        files = self.run(number, "sh", "-c", "find /var/tmp -mindepth 1 || test -d /var/tmp").split()
        lines = self.run(number, "ps", "-eo", "pid,args").splitlines()
        return files + [line for line in lines if "agent-" in line or "/raw/" in line]

    def every_node(self) -> range:
        return range(1, self.count + 1)

    def all_left(self) -> dict[int, list[str]]:
        """`left` of every node that has anything left. What served a connection notices its end a moment later."""
        found = {number: self.left(number) for number in self.every_node()}
        return {number: left for number, left in found.items() if left}

    # -- what a runner needs ---------------------------------------------------------------------------------------------

    def write_known_hosts(self) -> None:
        lines = [
            f"{self.address(n)} {' '.join((self.folder / f'n{n}' / 'hostkey.pub').read_text().split()[:2])}\n"
            for n in range(1, self.count + 1)
        ]
        self.known_hosts.write_text("".join(lines))

    def inventory(self, path: Path, numbers: range | list[int] | None = None, **variables: str) -> Path:
        """An inventory of these nodes, group `nodes`, with these variables besides what it takes to get in."""
        every = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "retina_known_hosts": str(self.known_hosts),
            "ansible_python_interpreter": "/usr/bin/python3",
            **variables,
        }
        hosts = "".join(
            f"        n{n}: {{ansible_host: {self.address(n)}}}\n" for n in numbers or range(1, self.count + 1)
        )
        lines = "".join(f"        {k}: {v}\n" for k, v in every.items() if v)  # "": leave it out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"all:\n  children:\n    nodes:\n      hosts:\n{hosts}      vars:\n{lines}")
        return path


def _signal_if_sshd(pid: int, what: signal.Signals) -> None:
    """Signal a process of sshd; one that has ended since it was listed is none."""
    try:
        if "sshd" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, what)
    except (FileNotFoundError, ProcessLookupError):
        pass


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> tuple[int, ...]:
    try:
        return tuple(int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return ()
