#!/usr/bin/env python3
"""What a flight recorder's `-U` costs: tcpdump's ring with it and without it, at once, on the same packets.

    python benchmarks/ring_flush.py [--quick]      (as root: it makes two network namespaces)

Small UDP datagrams are sent over a veth pair at fixed rates. Two tcpdumps listen to the same interface with the flags of a
ring (`-C 50 -B 32768 -s 128`), one of them with `-U`: what other work the machine has disturbs both alike. Printed for each
rate: CPU of each (user and system, from /proc/PID/stat) for a million packets, their ratio, and what each lost of what was
sent. The median of the ratios is the last line.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from capture_rate import send

from tests.lab import Lab

RING = ("-C", "50", "-B", "32768", "-s", "128", "-n", "-O", "-Z", "root")


@dataclass
class Contender:
    """One tcpdump that runs. `end` says what it took."""

    process: subprocess.Popen[str]

    @staticmethod
    def start(lab: Lab, folder: Path, *flags: str) -> Contender:
        folder.mkdir()
        argv = [
            "ip",
            "netns",
            "exec",
            lab.b,
            "tcpdump",
            "-i",
            "eth0",
            *RING,
            *flags,
            "-w",
            str(folder / "p.pcap"),
            "udp",
        ]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "listening on" not in process.stderr.readline():
            pass
        return Contender(process)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """Packets captured."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        captured = re.search(r"(\d+) packets? captured", self.process.stderr.read())
        self.process.wait()
        assert captured is not None
        return int(captured[1])


def one(rate: int, seconds: float) -> tuple[float, float, int, int, int]:
    """(CPU seconds for a million packets without and with -U, lost without and with, sent)."""
    with Lab() as lab, tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        for name in (lab.a, lab.b):
            lab.inside(name, "ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
        plain, flushed = (
            Contender.start(lab, Path(place) / "plain"),
            Contender.start(lab, Path(place) / "flushed", "-U"),
        )
        before = plain.cpu_s(), flushed.cpu_s()
        sent = send(lab, rate, seconds)
        time.sleep(1.5)  # the kernel hands over its last block within a second
        took = plain.cpu_s() - before[0], flushed.cpu_s() - before[1]
        got = plain.end(), flushed.end()
        return took[0] / got[0] * 1e6, took[1] / got[1] * 1e6, sent - got[0], sent - got[1], sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rates, three seconds each")
    quick = parser.parse_args().quick
    rates = (20_000, 50_000) if quick else (5_000, 20_000, 50_000, 100_000, 150_000, 200_000)
    ratios = []
    print("datagrams/s   CPU s a million: plain      -U   ratio   lost: plain          -U")
    for rate in rates:
        plain, flushed, lost, lost_flushed, sent = one(rate, 3.0 if quick else 10.0)
        ratios.append(flushed / plain if plain else float("nan"))
        print(f"{rate:11d}   {plain:21.2f}   {flushed:5.2f}   {ratios[-1]:5.2f}   "
              f"{100 * lost / sent:9.2f} %   {100 * lost_flushed / sent:7.2f} %", flush=True)  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
