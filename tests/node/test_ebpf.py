"""BPF plugins where something is lacking, and without a scope: BCC, rights, a namespace to count in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ebpf.counting import Counting, without_bcc
from tests.lab import Lab, Run
from tests.node.test_metrics import check, totals

pytestmark = pytest.mark.root


def runbook(lab: Lab, plugins: str, duration: str = "8s", more: str = "", options: str = "") -> str:
    return (
        f"{{name: bpf, duration: {duration}, captures: [{{collect: [{more}"
        f"{{ebpf: {{plugins: [{plugins}], netns: [{lab.a}, {lab.b}], {options}}}}}]}}]}}"
    )


def test_without_a_scope_the_whole_node_is_counted_and_the_namespace_named(lab: Lab, tmp_path: Path) -> None:
    """Two runs at once: one of the node, one of another namespace; neither sees the other's maps."""
    lab.inside(lab.b, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "7001", "-j", "DROP")
    # One may be compiled seconds before the other: both count until the test has sent what is to be counted.
    whole = Counting(tmp_path / "node", "plugins: [dropreason]")
    alone = Counting(tmp_path / "other", f"plugins: [dropreason], netns: [{lab.a}]")
    with whole, alone:
        lab.send("10.93.0.2", 7001, 321)
    node, other = totals(whole.archive), totals(alone.archive)
    (counted,) = [
        v for k, v in node.items()
        if k[:2] == ("retinarun_drop_packets_total", "NETFILTER_DROP") and lab.b in k
    ]  # fmt: skip
    assert counted == 321
    assert node["networkobservability_drop_count", "IPTABLE_RULE_DROP", "ingress"] >= 321
    assert not any(k[1] == "IPTABLE_RULE_DROP" for k in other if k[0] == "networkobservability_drop_count")


def test_a_node_without_bcc_says_so_and_still_counts_the_rest(lab: Lab, tmp_path: Path) -> None:
    """BCC's module is hidden from the node by an empty folder mounted over it, in a mount namespace of this run's own."""
    run = Run(
        runbook(lab, "dropreason, linuxutil", "2s", more="iptables, "), tmp_path, wrapper=without_bcc(tmp_path)
    )  # fmt: skip
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (row,) = [r for r in archive.manifest["capabilities"] if r["plugin"] == "dropreason"]
    assert row["status"] == "failed"
    assert "BCC" in row["why"]
    assert "python3-bpfcc" in row["hint"]
    assert archive.manifest["collectors"]["iptables"]["status"] == "done"
    assert any(k[0] == "retinarun_protocol_total" for k in totals(archive))


def test_without_rights_nothing_is_tried(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        "{name: poor, duration: 2s, captures: [{collect: [{ebpf: {plugins: [dropreason, linuxutil]}}]}]}", tmp_path, netns=lab.a,
        wrapper=("setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon", "--inh-caps", "-sys_admin,-bpf,-perfmon", "--"),
    )  # fmt: skip
    assert run.end() == 0, run.events
    archive = run.archive()
    check(archive)
    (row,) = [r for r in archive.manifest["capabilities"] if r["plugin"] == "dropreason"]
    assert (row["status"], row["hint"]) == ("skipped", "run as root")
    assert "CAP_BPF" in row["why"]
