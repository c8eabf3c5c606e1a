"""What a user writes for an end of a connection: an address or a network, ports, or both. Pure.

Read strictly: what tools read in different ways is refused, with the nearest form that means one thing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]


@dataclass(frozen=True)
class Endpoint:
    """An entry of `include` or `exclude`: a network, ports, or both. None means any."""

    network: Network | None
    ports: PortRange | None


def _ports_cover(outer: PortRange | None, inner: PortRange | None) -> bool:
    if outer is None:
        return True
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def parse_address(text: str) -> Network:
    """An IP address, or a network in CIDR form. Raises ValueError with the nearest legal form where there is one."""
    address, slash, length = text.partition("/")
    if "%" in text:
        raise ValueError(f"{text!r}: a filter knows no zones; did you mean {re.sub('%[^/]*', '', text)}?")
    if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        raise ValueError(f"{text!r}: {length!r} is not a prefix length; write a network like 10.1.0.0/16 or fd00::/64")
    octets = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){1,3}", address)
    if octets:
        # Some tools read 010 as 8, others as 10, and `net 10.1` means 10.1.0.0/16 to tcpdump alone.
        plain = [str(int(o)) for o in address.split(".")]
        full = ".".join(plain + ["0"] * (4 - len(plain)))
        if len(plain) < 4:
            raise ValueError(f"{text!r} is not a whole address; did you mean {full}/{length or 8 * len(plain)}?")
        if full != address:
            raise ValueError(
                f"{text!r}: numbers of an address have no leading zeros; did you mean {full}{slash}{length}?"
            )
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or a network like 10.1.0.0/16 or fd00::/64") from None
    if network.network_address != ipaddress.ip_address(address):
        raise ValueError(f"{text!r} has bits set beyond its prefix; did you mean {network}, or the host {address}?")
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        inner = ipaddress.ip_network((mapped, network.prefixlen - 96))
        shown = mapped if inner.prefixlen == 32 else inner
        raise ValueError(f"{text!r} is an IPv4 address to packets (only sockets write it so); did you mean {shown}?")
    return network


def _parse_ports(text: str, whole: str) -> PortRange:
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    if not found:
        raise ValueError(f"{whole!r}: {text!r} is not a port; ports are 1 to 65535, or a range like 8000-8080")
    numbers = [n for n in found.groups() if n is not None]
    first, last = int(numbers[0]), int(numbers[-1])
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"{whole!r}: ports are 1 to 65535")
    if any(n.startswith("0") for n in numbers):
        raise ValueError(
            f"{whole!r}: a port has no leading zeros; did you mean {'-'.join(n.lstrip('0') for n in numbers)}?"
        )
    if first > last:
        raise ValueError(f"{whole!r}: the range runs backwards; did you mean {last}-{first}?")
    return first, last


def parse_endpoint(text: str) -> Endpoint:
    """IP, CIDR, port, port range, IP:port, CIDR:port, [IPv6]:port, [IPv6/length]:port, *:port or IP:*.

    Raises ValueError with the nearest legal form where there is one. `fd00::80` is an address: a port needs brackets.
    """
    forms = "write IP, CIDR, PORT, IP:PORT, [IPv6]:PORT or *:PORT"
    if not text.strip():
        raise ValueError(f"{text!r} is empty; {forms}")
    if re.search(r"\s", text):
        raise ValueError(f"{text!r} holds blanks; did you mean {''.join(text.split())}?")
    if re.fullmatch(r"[0-9]+(-[0-9]+)?", text):
        return Endpoint(None, _parse_ports(text, text))
    if text.startswith("["):
        found = re.fullmatch(r"\[([^\[\]]*)\](?::(.+))?", text)
        if not found:
            raise ValueError(f"{text!r}: write [IPv6]:PORT or [IPv6/LENGTH]:PORT, like [fd00::1]:443")
        address, port = found[1], found[2]
        if ":" not in address:
            raise ValueError(f"{text!r}: brackets are for IPv6; did you mean {address}{':' + port if port else ''}?")
    elif text.count(":") >= 2:
        if re.match(r"(\*|[0-9]+\.[^:]*):", text):
            raise ValueError(f"{text!r} has more than one colon; did you mean {':'.join(text.split(':')[:2])}?")
        return Endpoint(_bare_ipv6(text), None)
    else:
        address, colon, port = text.partition(":")
        if colon and not (address and port):
            raise ValueError(
                f"{text!r} has nothing {'after' if address else 'before'} the colon; did you mean {address or port}?"
            )
        port = port or None
    if address == "*" and port in (None, "*"):
        raise ValueError(f"{text!r} is everything; leave the entry out")
    if re.fullmatch(r"[0-9]+", address) and port is not None:
        raise ValueError(
            f"{text!r}: {address!r} is not an IP address; did you mean the range {address}-{port}, or two entries?"
        )
    network = None if address == "*" else parse_address(address)
    return Endpoint(network, None if port in (None, "*") else _parse_ports(port, text))


def _bare_ipv6(text: str) -> Network:
    try:
        return parse_address(text)
    except ValueError:
        # fd00::/64:443 and 1:2:3:4:5:6:7:8:443 are what people write who don't know of the brackets.
        address, _, port = text.rpartition(":")
        try:
            parse_address(address)
            _parse_ports(port, text)
        except ValueError:
            pass
        else:
            raise ValueError(f"{text!r}: a port behind IPv6 needs brackets; did you mean [{address}]:{port}?") from None
        raise


def _order(endpoint: Endpoint) -> tuple[int, int, int, int, int]:
    network, ports = endpoint.network, endpoint.ports or (0, 0)
    if network is None:
        return 0, 0, 0, *ports
    return network.version, int(network.network_address), network.prefixlen, *ports


def minimal(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Sorted, without duplicates and without entries that another one covers; independent of the order given."""
    unique = sorted(set(endpoints), key=_order)
    ports_of: dict[Network | None, list[PortRange | None]] = {}
    for endpoint in unique:
        ports_of.setdefault(endpoint.network, []).append(endpoint.ports)
    lengths = sorted({(n.version, n.prefixlen) for n in ports_of if n is not None})

    def covered(entry: Endpoint) -> bool:
        # Only the networks around this one are looked up: a plan for each of many nodes has the same long lists.
        around: list[Network | None] = [None]
        if entry.network is not None:
            fitting = [n for v, n in lengths if v == entry.network.version and n <= entry.network.prefixlen]
            around += [entry.network.supernet(new_prefix=n) for n in fitting]
        return any(
            _ports_cover(ports, entry.ports) and (network, ports) != (entry.network, entry.ports)
            for network in around
            for ports in ports_of.get(network, ())
        )

    return [e for e in unique if not covered(e)]


def networks(addresses: Iterable[str]) -> list[Network]:
    return [e.network for e in minimal(Endpoint(parse_address(a), None) for a in addresses) if e.network is not None]
