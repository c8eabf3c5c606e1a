"""What network-state collects, as data: an item is a name and the ways to get it, the first that works wins.

Commands are gated by the kernel modules that they would otherwise make the kernel load. Nothing here prints keys:
`wg show` without `dump`, no `ip xfrm state`.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

from retina_runner.agent import counters
from retina_runner.agent.records import dataclass


@dataclass(frozen=True)
class Way:
    """A command (argv) or a file (`path`); `needs` are modules that must be there already."""

    argv: Tuple[str, ...] = ()
    path: str = ""
    needs: Tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.path or " ".join(self.argv)


@dataclass(frozen=True)
class Item:
    """`parse` is set for counters: they are read at T0 and at the end, and their delta is taken.

    `optional` items are no gap where none of their ways works: the node simply has no such thing. `per_netns` is False
    for what is the machine's own. `interface` is whose it is, if one's: it may be gone by the window's end.
    """

    name: str
    ways: Tuple[Way, ...]
    parse: Optional[Callable[[str], counters.Snapshot]] = None
    optional: bool = False
    per_netns: bool = True
    interface: str = ""


def command(*argv: str, needs: Tuple[str, ...] = ()) -> Way:
    return Way(argv=argv, needs=needs)


def file(path: str) -> Way:
    return Way(path=path)


DIAG = ("inet_diag", "tcp_diag", "udp_diag")
"""ss(8) speaks sock_diag, whose handlers the kernel loads on demand."""

COUNTERS: Tuple[Item, ...] = (
    Item("snmp", (file("/proc/net/snmp"),), counters.parse_snmp),
    Item("netstat", (file("/proc/net/netstat"),), counters.parse_snmp),
    Item("snmp6", (file("/proc/net/snmp6"),), counters.parse_pairs, optional=True),
    Item("sockstat", (file("/proc/net/sockstat"),), counters.parse_sockstat),
    Item("sockstat6", (file("/proc/net/sockstat6"),), counters.parse_sockstat, optional=True),
    Item("dev", (file("/proc/net/dev"),), counters.parse_dev),
    Item("softnet", (file("/proc/net/softnet_stat"),), counters.parse_softnet, per_netns=False),
    Item("softirqs", (file("/proc/softirqs"),), counters.parse_softirqs, per_netns=False),
    Item(
        "conntrack-stats",
        (
            command("conntrack", "-S", needs=("nf_conntrack", "nfnetlink", "nf_conntrack_netlink")),
            file("/proc/net/stat/nf_conntrack"),
        ),
        counters.parse_conntrack,
        optional=True,
    ),
    Item(
        "conntrack-count",
        (file("/proc/sys/net/netfilter/nf_conntrack_count"),),
        counters.parse_number("conntrack.count"),
        optional=True,
    ),
    Item("tc-qdisc", (command("tc", "-s", "-j", "qdisc", "show"),), counters.parse_qdisc),
)

DESCRIPTIVE: Tuple[Item, ...] = (
    Item(
        "ip-addr",
        (command("ip", "-d", "-j", "addr", "show"), command("ip", "addr", "show"), file("/proc/net/if_inet6")),
    ),
    Item(
        "ip-link",
        (
            command("ip", "-d", "-s", "-s", "-j", "link", "show"),
            command("ip", "-s", "link", "show"),
            file("/proc/net/dev"),
        ),
    ),
    Item(
        "ip-neigh", (command("ip", "-s", "-j", "neigh", "show"), command("ip", "neigh", "show"), file("/proc/net/arp"))
    ),
    Item("ip-route", (command("ip", "-4", "-d", "-j", "route", "show", "table", "all"), file("/proc/net/route"))),
    Item("ip6-route", (command("ip", "-6", "-d", "-j", "route", "show", "table", "all"), file("/proc/net/ipv6_route"))),
    Item("ip-rule", (command("ip", "-4", "-j", "rule", "show"),)),
    Item("ip6-rule", (command("ip", "-6", "-j", "rule", "show"),)),
    Item("ip-maddr", (command("ip", "-j", "maddr", "show"), file("/proc/net/igmp"))),
    Item("ip-netns", (command("ip", "-j", "netns", "list"),), per_netns=False),
    Item("ip-tcp-metrics", (command("ip", "-j", "tcp_metrics", "show", needs=("tcp_metrics",)),), optional=True),
    Item("bridge-link", (command("bridge", "-d", "-j", "link", "show"),)),
    Item("bridge-fdb", (command("bridge", "-s", "-j", "fdb", "show"),)),
    Item("bridge-vlan", (command("bridge", "-j", "vlan", "show"),)),
    Item("tc-class", (command("tc", "-s", "-j", "class", "show"),), optional=True),
    Item("ss-summary", (command("ss", "-s"), file("/proc/net/sockstat"))),
    Item("ss-sockets", (command("ss", "-tuapionme", needs=DIAG), file("/proc/net/tcp"))),
    Item("udp", (file("/proc/net/udp"),)),
    Item("tcp6", (file("/proc/net/tcp6"),), optional=True),
    Item("udp6", (file("/proc/net/udp6"),), optional=True),
    # -s: without it nstat writes a history file on the node.
    Item("nstat", (command("nstat", "-a", "-s", "-j", "-z"), command("nstat", "-a", "-s", "-z"))),
    Item("conntrack-max", (file("/proc/sys/net/netfilter/nf_conntrack_max"),), optional=True),
    Item("protocols", (file("/proc/net/protocols"),)),
    Item("ptype", (file("/proc/net/ptype"),)),
    Item("packet", (file("/proc/net/packet"),)),
    Item("xfrm-stat", (file("/proc/net/xfrm_stat"),), optional=True),
    Item("arp-cache-stat", (file("/proc/net/stat/arp_cache"),), optional=True),
    Item("rt-cache-stat", (file("/proc/net/stat/rt_cache"),), optional=True),
    Item("fib-triestat", (file("/proc/net/fib_triestat"),), optional=True),
    Item("interrupts", (file("/proc/interrupts"),), per_netns=False),
    Item("loadavg", (file("/proc/loadavg"),), per_netns=False),
    Item("meminfo", (file("/proc/meminfo"),), per_netns=False),
    Item("pressure-cpu", (file("/proc/pressure/cpu"),), optional=True, per_netns=False),
    Item("pressure-memory", (file("/proc/pressure/memory"),), optional=True, per_netns=False),
    Item("modules", (file("/proc/modules"),), optional=True, per_netns=False),
    Item("cmdline", (file("/proc/cmdline"),), per_netns=False),
    Item("os-release", (file("/etc/os-release"),), optional=True, per_netns=False),
    Item("uname", (command("uname", "-a"),), per_netns=False),
    Item("resolv.conf", (file("/etc/resolv.conf"),), optional=True, per_netns=False),
    Item("hosts", (file("/etc/hosts"),), optional=True, per_netns=False),
    Item("nsswitch.conf", (file("/etc/nsswitch.conf"),), optional=True, per_netns=False),
    Item(
        "time-sync",
        (command("chronyc", "-n", "tracking"), command("timedatectl", "show")),
        optional=True,
        per_netns=False,
    ),
    Item("bpf-programs", (command("bpftool", "-j", "prog", "show"),), optional=True, per_netns=False),
    Item("bpf-net", (command("bpftool", "-j", "net", "show"),), optional=True),
    Item("wireguard", (command("wg", "show", needs=("wireguard",)),), optional=True),
)
CONNTRACK_TABLE = Item(
    "conntrack-table",
    (
        command("conntrack", "-L", "-o", "extended", needs=("nf_conntrack", "nfnetlink", "nf_conntrack_netlink")),
        file("/proc/net/nf_conntrack"),
    ),
)
ETHTOOL = {
    "ethtool-driver": "-i",
    "ethtool-features": "-k",
    "ethtool-ring": "-g",
    "ethtool-coalesce": "-c",
    "ethtool-pause": "-a",
}
"""Descriptive ethtool listings, made for each interface; those that a driver doesn't support are no gap."""

NODE_WIDE: Tuple[str, ...] = (*(item.name for item in (*COUNTERS, *DESCRIPTIVE) if not item.per_netns), "dmesg")
"""What says nothing of one network namespace."""
