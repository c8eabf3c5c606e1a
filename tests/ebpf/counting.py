"""A run that counts for exactly as long as a test needs: from the first sample at T0 until the test says that it is done.

The window is far longer than any test: what is sent lies within it however slow the machine is, and nothing waits for
time to pass. It ends by Ctrl-C, which keeps what was counted.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab import Archive, Run, eventually, sh


class Counted:
    """What one archive's metrics say."""

    def __init__(self, archive: Archive):
        self.read(archive)

    def read(self, archive: Archive) -> None:
        self.archive = archive
        self.document: dict[str, Any] = archive.json("metrics/metrics.json")
        self.samples: list[tuple[str, dict[str, str], float]] = [
            (s.get("metric", m["name"]), s["labels"], s["value"])
            for m in self.document["metrics"]
            for s in m["samples"]
        ]

    def total(self, metric: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(v for m, given, v in self.samples if m == metric and labels.items() <= given.items())

    def parts(self, metric: str, *labels: str, **only: str) -> dict[tuple[str, ...], float]:
        """The values of these labels to the sum of their samples, without what is 0."""
        found: dict[tuple[str, ...], float] = {}
        for name, given, value in self.samples:
            if name == metric and only.items() <= given.items() and value:
                key = tuple(given.get(label, "") for label in labels)
                found[key] = found.get(key, 0) + value
        return found

    def missed(self) -> dict[str, int]:
        """What the plugins know that they did not count, of the namespaces that they were to count.

        Without the kernel's own count of what it did not call a program for, since an interrupt had come while that very
        program ran: this one knows no namespace. The machine that runs the tests has connections of its own, most of all
        while it downloads something; what lacks of ours, the exact numbers show.
        """
        return {k: n for k, n in self.document["not_counted"].items() if n and k != "recursion_misses"}

    def hooks(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(plugin, hook) to (status, why) of every hook without which its plugin is of no use, or less of it. Those by kprobe
        add detail where a kernel has them: `probes` has them."""
        return {key: told for key, told in self._rows().items() if not key[1].startswith(("kprobe:", "kretprobe:"))}

    def probes(self) -> dict[tuple[str, str], tuple[str, str]]:
        return {key: told for key, told in self._rows().items() if key[1].startswith(("kprobe:", "kretprobe:"))}

    def _rows(self) -> dict[tuple[str, str], tuple[str, str]]:
        rows = self.archive.manifest["capabilities"]
        return {(r["plugin"], r["hook"]): (r["status"], r["why"]) for r in rows}


class Counting(Counted):
    """A context: inside of it, plugins count. Afterwards `archive`, `total` and `parts` tell what they counted."""

    def __init__(
        self, folder: Path, options: str, netns: str = "", more: str = "", wrapper: tuple[str, ...] = ()
    ):  # fmt: skip
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._runbook = (
            f"{{name: counting, duration: 20m, captures: [{{collect: [{more}{{ebpf: {{interval: 1s, {options}}}}}]}}]}}"
        )
        self._netns, self._wrapper = netns, wrapper

    def __enter__(self) -> Counting:
        self.run = Run(self._runbook, self._folder, netns=self._netns, wrapper=self._wrapper)
        try:
            self.run.wait_for("window")
            # The counters are zeroed at T0 and a first line is written at once: from then on everything counts.
            eventually(self._sampled, "a first sample at T0")
        except BaseException:
            self.kill()
            raise
        return self

    def _sampled(self) -> bool:
        return any(path.stat().st_size > 0 for path in self.run.work.rglob("series.jsonl"))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
            return
        self.run.signal(signal.SIGINT)
        assert self.run.end() == 130, self.run.events
        self.read(self.run.archive())

    def kill(self) -> None:
        """Give up: the runner is told, and waited for."""
        if self.run.process.poll() is None:
            self.run.signal(signal.SIGTERM)
            try:
                self.run.process.wait(60)
            except subprocess.TimeoutExpired:
                self.run.signal(signal.SIGKILL)


def without_bcc(folder: Path) -> tuple[str, ...]:
    """A wrapper for a run: BCC's module is hidden by an empty folder, in a mount namespace of the run's own."""
    (folder / "empty").mkdir(parents=True, exist_ok=True)
    (hidden,) = Path("/usr/lib/python3/dist-packages").glob("bcc")
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {folder / "empty"} {hidden} && exec "$@"', "sh")


def python(namespace: str, code: str, *arguments: str) -> str:
    """Run a piece of Python in a namespace; its stdout."""
    return sh("ip", "netns", "exec", namespace, sys.executable, "-c", code, *arguments)


def counters(namespace: str) -> dict[str, int]:
    """/proc/net/snmp and netstat of a namespace, by nstat(8)'s names: another reader than ours."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        lines = sh("ip", "netns", "exec", namespace, "cat", f"/proc/net/{file}").splitlines()
        for names, values in zip(lines[::2], lines[1::2]):  # noqa: B905 - Python 3.9 has no strict, and guests run this
            group = names.partition(":")[0]
            pairs = zip(names.split()[1:], values.split()[1:])  # noqa: B905
            found.update({group + n: int(v) for n, v in pairs})
    return found


def device(namespace: str, interface: str) -> dict[str, int]:
    """/proc/net/dev of one interface."""
    for line in sh("ip", "netns", "exec", namespace, "cat", "/proc/net/dev").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            n = [int(x) for x in numbers.split()]
            return {"rx_bytes": n[0], "rx_packets": n[1], "tx_bytes": n[8], "tx_packets": n[9]}
    raise AssertionError(f"no {interface} in {namespace}")


def quiet(namespace: str) -> None:
    """No multicast reports and solicitations of the kernel's own accord among the packets that are counted."""
    sh("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.igmp_link_local_mcast_reports=0", check=False)
    for kind in ("143", "131", "132", "133", "135"):
        sh(
            "ip",
            "netns",
            "exec",
            namespace,
            "ip6tables",
            "-I",
            "OUTPUT",
            "-p",
            "icmpv6",
            "--icmpv6-type",
            kind,
            "-j",
            "DROP",
        )


class Background:
    """A piece of Python that runs in a namespace until it is closed; it has said "ready" before this returns."""

    def __init__(self, namespace: str, code: str, *arguments: str):
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def say(self, line: str) -> None:
        """A line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
