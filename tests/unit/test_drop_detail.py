"""What the probes of bpf/dropreason.c remember of an skb, as labels. With a mocked map: real probes are in tests/kernels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from retina_runner.agent.ebpf import kprobes
from retina_runner.agent.ebpf.decode import DropReason, Place
from retina_runner.agent.ebpf.tables import Sums

NETFILTER, NO_SOCKET, CONNTRACK = 8, 3, 0x80
IP, ARP, NETDEV, BRIDGE, IP6 = 2, 3, 5, 7, 10


class MockedMap:
    """A per-CPU hash of two CPUs with the given rows."""

    def __init__(self, rows: dict[bytes, int]):
        self._rows = rows

    def items(self) -> Any:
        return [(key, [struct.pack("=QQ", n, 100 * n), struct.pack("=QQ", 0, 0)]) for key, n in self._rows.items()]


def key(reason: int, detail: int) -> bytes:
    return struct.pack("=QIIHBBBBxx", 0, reason, 7, 0x0008, 1, 17, 0, detail)


def counted(reason: int, detail: int) -> dict[str, dict[str, str]]:
    """Metric to the labels of its one sample."""
    facts = {
        "enumerations": {
            "skb_drop_reason": {NETFILTER: "SKB_DROP_REASON_NETFILTER_DROP", NO_SOCKET: "SKB_DROP_REASON_NO_SOCKET"}
        },
        "tracepoints": {"kfree_skb": 3},
    }
    maps: Any = {"drops": MockedMap({key(reason, detail): 5})}
    decoder, sums = DropReason(maps, facts, Place({}, False, "", dict)), Sums()
    decoder.read(sums)
    assert set(sums.found.values()) == {5, 500}
    return {metric: dict(labels) for metric, labels in sums.found}


@pytest.mark.parametrize(
    ("family", "hook", "chain"),
    [
        (IP, 0, "PREROUTING"), (IP, 1, "INPUT"), (IP6, 2, "FORWARD"), (IP, 3, "OUTPUT"), (IP6, 4, "POSTROUTING"),
        (1, 5, "ingress"), (NETDEV, 0, "ingress"), (NETDEV, 1, "egress"), (ARP, 1, "OUT"), (BRIDGE, 2, "bridge FORWARD"),
        (ARP, 5, ""), (0, 0, ""),
    ],
)  # fmt: skip
def test_the_hook_has_the_name_that_netfilter_gives_it(family: int, hook: int, chain: str) -> None:
    told = counted(NETFILTER, family << 3 | hook)
    assert told["retinarun_drop_packets_total"]["chain"] == chain
    assert told["retinarun_drop_packets_total"]["cause"] == ""
    assert told["networkobservability_drop_count"]["reason"] == "IPTABLE_RULE_DROP"


def test_a_connection_that_could_not_be_entered_has_retinas_reason_and_the_kernels() -> None:
    told = counted(NETFILTER, CONNTRACK | IP << 3 | 4)
    assert told["networkobservability_drop_count"]["reason"] == "CONNTRACK_ADD_DROP"
    assert told["networkobservability_drop_bytes"]["reason"] == "CONNTRACK_ADD_DROP"
    labels = told["retinarun_drop_packets_total"]
    assert (labels["reason"], labels["cause"], labels["chain"]) == ("NETFILTER_DROP", "conntrack_insert", "POSTROUTING")
    alone = counted(NETFILTER, CONNTRACK)["retinarun_drop_packets_total"]  # without the option chains
    assert (alone["cause"], alone["chain"]) == ("conntrack_insert", "")


def test_what_netfilter_let_pass_and_something_else_dropped_has_no_chain() -> None:
    told = counted(NO_SOCKET, IP << 3 | 1)
    labels = told["retinarun_drop_packets_total"]
    assert (labels["reason"], labels["chain"], labels["cause"]) == ("NO_SOCKET", "", "")
    assert told["networkobservability_drop_count"]["reason"] == "NO_SOCKET"


def test_a_kernel_without_kprobes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no kprobes" in kprobes.lacking(str(tmp_path / "none"))
    (tmp_path / "type").write_text("6\n")
    assert kprobes.lacking(str(tmp_path)) == ""
    monkeypatch.setattr(kprobes, "NUMBERS", {})
    assert "function's arguments" in kprobes.lacking(str(tmp_path))
