"""Collector `tcpdump` with several interfaces: what goes wrong with one costs the others nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from retina_runner import schema
from retina_runner.agent import collectors
from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.context import Context, Record, Window
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
            made.arm(Window(time.time() + 1, 1.0), "base", writer.open_member, lambda: ((0, 1 << 62),))
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
