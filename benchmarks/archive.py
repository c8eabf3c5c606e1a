#!/usr/bin/env python3
"""From the window's end to a finished archive: streamed while the capture runs, against capture first and `tar czf` after.

    python benchmarks/archive.py [--quick] [--compression zstd]      (as root: it makes two network namespaces)

UDP of random bytes (they don't compress: 64 blocks of 1,400 B in turn are more than a deflate window) is sent over a veth
pair until the pcap holds about the wanted size. The same traffic goes to a plain `tcpdump -w` that `tar czf` packs
afterwards, in the same round. Printed for each size: seconds from the end of the window (for the peer: from SIGTERM) to the
finished archive, the ratio, the packets lost by each, and the peak RSS of the agent by its own getrusage(2), which must
not grow with the size.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retina_runner.verification import read_manifest
from tests.lab import Lab, Run

SENDER = """
import os, socket, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
blocks = [os.urandom(1400) for _ in range(64)]
begun, sent = time.monotonic(), 0
while (now := time.monotonic()) < begun + seconds:
    due = int((now - begun) * rate / 1400) - sent
    for number in range(min(due, 64)):
        sender.sendto(blocks[(sent + number) % 64], ("10.93.0.2", 9))
    sent += min(due, 64)
    if due < 8:
        time.sleep(0.001)
print(sent)
"""
SNAPLEN = "256KiB"


def seconds_between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def send(lab: Lab, rate: int, seconds: float) -> int:
    """Send at that many bytes a second; how many datagrams it were."""
    return int(lab.inside(lab.a, sys.executable, "-c", SENDER, str(rate), str(seconds)))


def ours(lab: Lab, folder: Path, rate: int, seconds: float, compression: str) -> tuple[float, int, int, int, int]:
    """(seconds after the window, datagrams sent, lost, archive bytes, peak RSS bytes)."""
    window = int(seconds) + 3
    run = Run(f"""
name: archive
duration: {window}s
compression: {compression}
limits: {{node_bytes: 8GiB}}
captures:
  - collect:
      - tcpdump: {{interfaces: [eth0], filter: udp, snaplen: {SNAPLEN}, max_size: 4GB, buffer_size: 64MiB}}
""", folder, netns=lab.a)  # fmt: skip
    run.wait_for("window")
    sent = send(lab, rate, seconds)
    assert run.end() in (0,), run.events[-3:]
    over = run.all("phase")[[e["phase"] for e in run.all("phase")].index("collecting")]["time"]
    done = run.all("archive")[0]
    (path,) = (run.directory / "archives").iterdir()
    manifest = read_manifest(path)
    counts = next(v for v in manifest["verdicts"] if v["artefact"].endswith(".pcap"))["counts"]
    return (
        seconds_between(over, done["time"]), sent, sent - counts["in_window"], done["size_bytes"],
        manifest["cost"]["peak_rss_bytes"],
    )  # fmt: skip


def theirs(lab: Lab, folder: Path, rate: int, seconds: float) -> tuple[float, int, int]:
    """tcpdump with its own defaults, then `tar czf`: (seconds after the capture, datagrams sent, lost)."""
    pcap = folder / "peer.pcap"
    tcpdump = subprocess.Popen(
        ["ip", "netns", "exec", lab.a, "tcpdump", "-i", "eth0", "-Z", "root", "-w", str(pcap), "udp"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tcpdump.stderr is not None
    while "listening on" not in tcpdump.stderr.readline():
        pass
    sent = send(lab, rate, seconds)
    time.sleep(1.5)  # its kernel buffer hands over the last block within a second
    begun = time.monotonic()
    tcpdump.send_signal(signal.SIGTERM)
    words = tcpdump.stderr.read()
    tcpdump.wait()
    subprocess.run(["tar", "czf", str(folder / "peer.tar.gz"), "-C", str(folder), "peer.pcap"], check=True)
    took = time.monotonic() - begun
    captured = re.search(r"(\d+) packets? captured", words)
    assert captured is not None, words
    pcap.unlink()
    return took, sent, sent - int(captured[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 MB and 40 MB instead of 100 MB and 1 GB")
    parser.add_argument("--compression", choices=("gzip", "none", "zstd"), default="gzip", help="of ours")
    chosen = parser.parse_args()
    sizes = (10, 40) if chosen.quick else (100, 1000)
    print("size     ours: after the window    lost         RSS | tcpdump, then tar czf: after    lost | ratio")
    for megabytes in sizes:
        rate = min(20_000_000, megabytes * 200_000)
        seconds = megabytes * 1e6 / rate
        with Lab() as lab, tempfile.TemporaryDirectory(prefix="benchmark-") as place:
            after, sent, lost, size, rss = ours(lab, Path(place), rate, seconds, chosen.compression)
            other, other_sent, other_lost = theirs(lab, Path(place), rate, seconds)
        print(
            f"{megabytes:5d} MB {after:15.2f} s {lost:12d}/{sent} {rss / 1e6:8.1f} MB | {other:18.2f} s"
            f" {other_lost:12d}/{other_sent} | x{after / other:.3f}   (archive {size / 1e6:.0f} MB)"
        )


if __name__ == "__main__":
    main()
