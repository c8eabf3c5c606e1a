#!/usr/bin/env python3
"""The highest packet rate that is captured without a loss: a whole run (compressing meanwhile) against plain `tcpdump -w`.

    python benchmarks/capture_rate.py [--quick]      (as root: it makes two network namespaces)

Small UDP datagrams are sent over a veth pair at fixed rates, the same for three contenders, one after the other at each
rate: `tcpdump -w` with its default flags, `tcpdump -w` with the best flags known (-B 32768 -s 256), and retina-run's whole
path (the same flags; the pcap is read, cut, hashed and compressed while it grows). Printed: the share lost at each rate.
Loss is sent minus captured. On a machine with other work the scheduler decides: compare within a row, not across runs.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.lab import Lab, Run

SENDER = """
import socket, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("10.93.0.2", 9))
sender.setsockopt(socket.SOL_UDP, 103, 100)  # UDP_SEGMENT, udp(7): one call, many datagrams of 100 bytes
block = bytes(100 * 50)
begun, sent = time.monotonic(), 0
while (now := time.monotonic()) < begun + seconds:
    due = int((now - begun) * rate) - sent
    if due < 50:
        time.sleep(0.0005)
        continue
    try:
        sender.send(block)
        sent += 50
    except ConnectionRefusedError:
        pass
print(sent)
"""


def send(lab: Lab, rate: int, seconds: float) -> int:
    return int(lab.inside(lab.a, sys.executable, "-c", SENDER, str(rate), str(seconds)))


def whole_run(lab: Lab, folder: Path, rate: int, seconds: float) -> tuple[int, int]:
    run = Run(f"""
name: rate
duration: {int(seconds) + 3}s
captures:
  - collect:
      - tcpdump: {{interfaces: [eth0], filter: udp, snaplen: 256B, max_size: 1GB, buffer_size: 32MiB}}
""", folder, netns=lab.b)  # fmt: skip
    run.wait_for("window")
    sent = send(lab, rate, seconds)
    assert run.end() == 0, run.events[-3:]
    counts = next(v for v in run.archive().manifest["verdicts"] if v["artefact"].endswith(".pcap"))["counts"]
    return sent, sent - counts["in_window"]


def tcpdump(lab: Lab, folder: Path, rate: int, seconds: float, *flags: str) -> tuple[int, int]:
    argv = ["ip", "netns", "exec", lab.b, "tcpdump", "-i", "eth0", "-Z", "root", *flags, "-w", str(folder / "p.pcap")]
    process = subprocess.Popen([*argv, "udp"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "listening on" not in process.stderr.readline():
        pass
    sent = send(lab, rate, seconds)
    time.sleep(1.5)  # the kernel hands over its last block within a second
    process.send_signal(signal.SIGTERM)
    captured = re.search(r"(\d+) packets? captured", process.stderr.read())
    process.wait()
    assert captured is not None
    return sent, sent - int(captured[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rates, two seconds each")
    quick = parser.parse_args().quick
    rates = (20_000, 50_000) if quick else (20_000, 50_000, 100_000, 150_000, 200_000, 300_000)
    seconds = 2.0 if quick else 5.0
    print("datagrams/s  tcpdump -w, defaults   tcpdump -w -B 32768 -s 256   retina-run (lost of sent)")
    for rate in rates:
        cells = []
        with Lab() as lab, tempfile.TemporaryDirectory(prefix="benchmark-") as place:
            for name in (lab.a, lab.b):
                lab.inside(name, "ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
            folder = Path(place)
            cells.append(tcpdump(lab, folder, rate, seconds))
            cells.append(tcpdump(lab, folder, rate, seconds, "-B", "32768", "-s", "256"))
            cells.append(whole_run(lab, folder, rate, seconds))
        shown = "   ".join(f"{lost:8d}/{sent:<8d} {100 * lost / sent:5.2f} %" for sent, lost in cells)
        print(f"{rate:11d}  {shown}", flush=True)


if __name__ == "__main__":
    main()
