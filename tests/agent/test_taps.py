"""Collector `tcpdump` with several interfaces: what goes wrong with one costs the others nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from retina_runner import schema
from retina_runner.agent import collectors
from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.context import Context, Record, Window
from retina_runner.agent.packets import tap
from tests.lab import Lab, within

pytestmark = pytest.mark.root


def test_a_log_that_cannot_be_written_costs_no_packets_and_no_verdict(two_links: Lab, tmp_path: Path) -> None:
    for folder in ("out", "raw"):
        (tmp_path / folder).mkdir()
    options = schema.normalise({"interfaces": ["eth0", "eth1"]}, schema.load("collectors/tcpdump"))
    options["expression"] = "udp port 9"
    made = Context("tcpdump", options, tmp_path / "out", tmp_path / "raw", Record(), lambda event, **fields: None)
    writer = ArchiveWriter(tmp_path / "base.tar.gz", "base", 0)
    with within(two_links.a):
        collector = collectors.load("tcpdump", made)
        try:
            collector.prepare()
            # Every packet is one of the window's; T0 is so far ahead that tcpdump listens in time on any machine.
            made.arm(Window(time.time() + 60, 1.0), "base", writer.open_member, lambda: ((0, 1 << 62),))
            collector.begin()
            for link in range(2):
                two_links.send(f"10.93.{link}.2", 9, 50)
            time.sleep(collector.OVERRUN_S)
            (made.out / "logs").write_text("in the way")
            with pytest.raises(RuntimeError, match=r"eth0: .*File exists; eth1: .*File exists"):
                collector.finish()
        finally:
            collector.abandon()
            writer.abandon()
    found = {v.artefact: (v.verdict, v.counts["in_window"]) for v in made.record.verdicts}
    assert found == {"base-eth0.pcap": ("complete", 50), "base-eth1.pcap": ("complete", 50)}
    assert made.record.packets == {"base-eth0.pcap": 50, "base-eth1.pcap": 50}


STEADY = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("sending", flush=True)
while True:
    sender.sendto(b"x", ("127.0.0.1", 9))
"""


def test_a_loopback_that_never_rests_is_read_to_the_window_s_end(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts each of its packets twice, and libpcap tells one: tcpdump's counts never meet."""
    monkeypatch.setattr(tap, "DRAIN_LIMIT_S", 10.0)
    options = {
        **schema.normalise({"interfaces": ["lo"]}, schema.load("collectors/tcpdump")),
        "expression": "udp port 9",
    }
    for folder in ("out", "raw"):
        (tmp_path / folder).mkdir()
    made = Context("tcpdump", options, tmp_path / "out", tmp_path / "raw", Record(), lambda event, **fields: None)
    writer = ArchiveWriter(tmp_path / "base.tar.gz", "base", 0)
    with within(lab.a):
        steady = subprocess.Popen([sys.executable, "-c", STEADY], stdout=subprocess.PIPE)
        collector = collectors.load("tcpdump", made)
        try:
            assert steady.stdout is not None
            steady.stdout.readline()
            collector.prepare()
            t0 = time.time() + 1.0
            end = t0 + 8.0
            made.arm(Window(t0, 8.0), "base", writer.open_member, lambda: ((int(t0 * 1e9), int(end * 1e9)),))
            collector.begin()
            time.sleep(max(0.0, end + collector.OVERRUN_S - time.time()))
            collector.finish()
        finally:
            steady.kill()
            steady.wait()
            collector.abandon()
            writer.abandon()
    (verdict,) = made.record.verdicts
    assert verdict.counts["received_by_filter"] > 1.5 * verdict.counts["captured"]
    assert not [reason for reason in verdict.reasons if "still reading" in reason]
