"""Three independent witnesses of one loss: two pcaps, a firewall rule's counter, and the kernel's own drop event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ebpf.counting import Counting
from tests.lab import Lab, sh

pytestmark = pytest.mark.root


@pytest.fixture
def router(two_links: Lab) -> Iterator[Lab]:
    """b stands between a and a third namespace: what a sends to 10.95.0.9 goes in at eth0 and out at eth2."""
    lab, far = two_links, f"{two_links.b}-far"
    sh("ip", "netns", "add", far)
    try:
        sh("ip", "-n", lab.b, "link", "add", "eth2", "type", "veth", "peer", "name", "eth0", "netns", far)
        for node, link, last in ((lab.b, "eth2", "1"), (far, "eth0", "9")):
            sh("ip", "-n", node, "addr", "add", f"10.95.0.{last}/24", "dev", link)
            sh("ip", "-n", node, "addr", "add", f"fd95::{last}/64", "dev", link, "nodad")
            sh("ip", "-n", node, "link", "set", link, "up")
        given = json.loads(sh("ip", "-n", far, "-j", "link", "show", "eth0"))[0]["address"]
        for address in ("10.95.0.9", "fd95::9"):
            sh("ip", "-n", lab.b, "neigh", "replace", address, "lladdr", given, "dev", "eth2", "nud", "permanent")
        sh("ip", "-n", lab.a, "route", "add", "10.95.0.0/24", "via", "10.93.0.2")
        sh("ip", "-n", lab.a, "route", "add", "fd95::/64", "via", "fd93:0::2")
        lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield lab
    finally:
        sh("ip", "netns", "del", far, check=False)


@pytest.mark.parametrize("address", ["10.95.0.9", "fd95::9"])
def test_500_packets_lost_are_500_in_the_pcaps_the_rule_and_the_kernels_event(
    router: Lab, tmp_path: Path, address: str
) -> None:
    """1,500 come in, every third is dropped by a rule, 1,000 go out: each of three says 500, in one archive."""
    rule = ["-p", "udp", "--dport", "7000", "-m", "statistic", "--mode", "nth", "--every", "3", "--packet", "0"]
    tables = "ip6tables" if ":" in address else "iptables"
    router.inside(router.b, tables, "-A", "FORWARD", *rule, "-j", "DROP")
    evidence = "{tcpdump: {interfaces: [eth0, eth2], filter: udp port 7000, buffer_size: 16MiB}}, iptables, "
    with Counting(tmp_path, "plugins: [dropreason], scope: netns", router.b, more=evidence) as counting:
        router.send(address, 7000, 1500)
    archive = counting.archive
    came, left = (
        next(frames for name, frames in archive.pcaps().items() if name.endswith(f"-{link}.pcap"))
        for link in ("eth0", "eth2")
    )
    in_pcaps = len(came) - len(left)
    sources = archive.json("state/delta/iptables.json")["sources"]
    by_rule = sum(r["packets"] for r in sources[f"{tables}-nft"]["rules"] if r["chain"] == "FORWARD")
    by_event = counting.total("retinarun_drop_packets_total", reason="NETFILTER_DROP")
    assert (in_pcaps, by_rule, by_event) == (500, 500, 500)
    assert len(came) == 1500
    assert counting.total("networkobservability_drop_count", reason="IPTABLE_RULE_DROP") == 500
