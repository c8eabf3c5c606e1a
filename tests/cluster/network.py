"""The cluster's network: a namespace for the control plane with a bridge, a namespace a node, joined by veth pairs.

Nothing of it is in the machine's own namespace. Node N is 10.99.0.(10+N) and fd99::(10+N), its pods are in
10.99.(10+N).0/24 and fd99:0:0:(10+N)::/64, services in 10.99.240.0/20 and fd99:0:0:f0::/112.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster.places import call

CONTROL_PLANE = "10.99.0.1"
SERVICES = ("10.99.240.0/20", "fd99:0:0:f0::/112")
FIRST_SERVICE = "10.99.240.1"
PODS = "10.99.0.0/17,fd99:0:0:0::/57"


def node_addresses(number: int) -> tuple[str, str]:
    return f"10.99.0.{10 + number}", f"fd99::{10 + number}"


def pod_networks(number: int) -> tuple[str, str]:
    return f"10.99.{10 + number}.0/24", f"fd99:0:0:{10 + number}::/64"


class Network:
    """The namespaces of one cluster, `rrc-<cluster>-cp` and `rrc-<cluster>-<number>`."""

    def __init__(self, cluster: str, nodes: int):
        self.control_plane = f"rrc-{cluster}-cp"
        self.nodes = {number: f"rrc-{cluster}-{number}" for number in range(1, nodes + 1)}

    def up(self) -> None:
        """Make what isn't there."""
        if self._make(self.control_plane):
            self._ip(self.control_plane, "link", "add", "nodes", "type", "bridge")
            self._ip(self.control_plane, "addr", "add", f"{CONTROL_PLANE}/24", "dev", "nodes")
            self._ip(self.control_plane, "addr", "add", "fd99::1/64", "dev", "nodes", "nodad")
            self._ip(self.control_plane, "link", "set", "nodes", "up")
        for number, name in self.nodes.items():
            if not self._make(name):
                continue
            port = f"node{number}"
            self._ip(self.control_plane, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip(self.control_plane, "link", "set", port, "master", "nodes", "up")
            v4, v6 = node_addresses(number)
            self._ip(name, "addr", "add", f"{v4}/24", "dev", "eth0")
            self._ip(name, "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
            self._ip(name, "link", "set", "eth0", "up")
            self._ip(name, "route", "add", "default", "via", CONTROL_PLANE)
            self._ip(name, "-6", "route", "add", "default", "via", "fd99::1")
            for other in [self.control_plane, *(n for n in self.nodes.values() if n != name)]:
                if Path("/run/netns", other).exists():
                    self._routes(other, number)
            for other_number in self.nodes:
                if other_number != number:
                    self._routes(name, other_number)

    def down(self) -> None:
        """Remove the namespaces; the links go with them."""
        for name in [*self.nodes.values(), self.control_plane]:
            if Path("/run/netns", name).exists():
                call("ip", "netns", "del", name)

    def _routes(self, name: str, number: int) -> None:
        for network, address in zip(pod_networks(number), node_addresses(number), strict=True):
            self._ip(name, "route", "replace", network, "via", address)

    def _make(self, name: str) -> bool:
        if Path("/run/netns", name).exists():
            return False
        call("ip", "netns", "add", name)
        self._ip(name, "link", "set", "lo", "up")
        settings = ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv6.conf.default.accept_dad=0")
        for setting in (*settings, "ipv6.conf.all.accept_dad=0", "ipv6.conf.default.router_solicitations=0"):
            call("ip", "netns", "exec", name, "sysctl", "-qw", f"net.{setting}")
        return True

    def _ip(self, name: str, *argv: str) -> None:
        call("ip", "-n", name, *argv)
