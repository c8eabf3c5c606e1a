"""pcap-filter(7) expressions, built as trees and rendered with parentheses around everything. Pure but for `compile_check`.

Scope, include, source, destination and the user's own text are AND-ed; exclude is AND NOT. So a filter can only ever
narrow a scope. (Where a scope is OR-ed to a filter, either of them has no effect.)

`vlan` and the other keywords that shift the offsets of everything after them are left to the user's own text, which is
rendered last so that they shift nothing of ours. The finished text is one argv element behind `--`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from retina_runner.agent.process import Outcome

MOST_CHARACTERS = 16384
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]


@dataclass(frozen=True)
class Everything:
    """Matches every packet."""


@dataclass(frozen=True)
class Net:
    """Packets from or to a network; `direction` is "", "src" or "dst"."""

    network: Network
    direction: str = ""


@dataclass(frozen=True)
class Ports:
    """TCP, UDP or SCTP packets from or to one of the ports first..last."""

    first: int
    last: int


@dataclass(frozen=True)
class Raw:
    """The user's own text; see `check_raw`."""

    text: str


@dataclass(frozen=True)
class All:
    """Every part matches."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Some:
    """At least one part matches."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Not:
    """The part doesn't match."""

    part: Expression


Expression = Everything | Net | Ports | Raw | All | Some | Not


def render(expression: Expression) -> str:
    """The expression's text, in parentheses throughout; empty for everything."""
    match expression:
        case Everything():
            return ""
        case Net(network, direction):
            lead = f"{direction} " if direction else ""
            if network.prefixlen == network.max_prefixlen:
                return f"({lead}host {network.network_address})"
            return f"({lead}net {network})"
        case Ports(first, last):
            return f"(port {first})" if first == last else f"(portrange {first}-{last})"
        case Raw(text):
            return f"({text})"
        case Not(part):
            return f"(not {render(part)})"
        case All(parts):
            return "(" + " and ".join(render(p) for p in parts) + ")"
        case Some(parts):
            return "(" + " or ".join(render(p) for p in parts) + ")"


def _all(parts: Iterable[Expression]) -> Expression:
    kept = tuple(p for p in parts if not isinstance(p, Everything))
    return kept[0] if len(kept) == 1 else All(kept) if kept else Everything()


def _some(parts: Sequence[Expression]) -> Expression:
    return parts[0] if len(parts) == 1 else Some(tuple(parts)) if parts else Everything()


@dataclass(frozen=True)
class Endpoint:
    """An entry of `include` or `exclude`: a network, ports, or both. None means any."""

    network: Network | None
    ports: PortRange | None

    def expression(self) -> Expression:
        parts: list[Expression] = []
        if self.network is not None:
            parts.append(Net(self.network))
        if self.ports is not None:
            parts.append(Ports(*self.ports))
        return _all(parts)

    def covers(self, other: Endpoint) -> bool:
        """Whether every packet of `other` is one of this entry's too."""
        return _network_covers(self.network, other.network) and _ports_cover(self.ports, other.ports)


def _network_covers(outer: Network | None, inner: Network | None) -> bool:
    if outer is None:
        return True
    return inner is not None and outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _ports_cover(outer: PortRange | None, inner: PortRange | None) -> bool:
    if outer is None:
        return True
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def parse_address(text: str) -> Network:
    """An IP address or a network in CIDR form. Raises ValueError with the corrected form where there is one."""
    if "%" in text:
        raise ValueError(f"{text!r}: a filter knows no zones; write the address without %{text.partition('%')[2]}")
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or a network like 10.1.0.0/16 or fd00::/64") from None
    raise ValueError(f"{text!r} has bits set beyond its prefix; did you mean {network}, or the host {text.partition('/')[0]}?")


def _parse_ports(text: str, whole: str) -> PortRange:
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if not found:
        raise ValueError(f"{whole!r}: {text!r} is not a port; ports are 1 to 65535, or a range like 8000-8080")
    first, last = int(found[1]), int(found[2] or found[1])
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"{whole!r}: ports are 1 to 65535")
    if first > last:
        raise ValueError(f"{whole!r}: the range runs backwards; did you mean {last}-{first}?")
    return first, last


def parse_endpoint(text: str) -> Endpoint:
    """IP, CIDR, port, port range, IP:port, [IPv6]:port, *:port or IP:*. Raises ValueError."""
    forms = "write IP, CIDR, PORT, IP:PORT, [IPv6]:PORT or *:PORT"
    if not text or text != text.strip() or re.search(r"\s", text):
        raise ValueError(f"{text!r}: blanks or nothing; {forms}")
    if text in ("*", "*:*"):
        raise ValueError(f"{text!r} is everything; leave the entry out")
    if re.fullmatch(r"\d+(-\d+)?", text):
        return Endpoint(None, _parse_ports(text, text))
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.+))?", text)
    if bracketed:
        address, port = bracketed[1], bracketed[2]
        if ":" not in address:
            raise ValueError(f"{text!r}: brackets are for IPv6; did you mean {address}{':' + port if port else ''}?")
    elif text.count(":") >= 2 and not text.startswith("*"):
        if re.fullmatch(r"[0-9.]+(:\S*){2,}", text):
            raise ValueError(f"{text!r} has more than one colon; {forms}")
        return Endpoint(parse_address(text), None)
    else:
        address, colon, port = text.partition(":")
        if colon and (not port or ":" in port):
            raise ValueError(f"{text!r} has no port after the colon, or more than one; {forms}")
        port = port or None  # type: ignore[assignment]
    network = None if address == "*" else parse_address(address)
    ports = None if port in (None, "*") else _parse_ports(port, text)
    if network is None and ports is None:
        raise ValueError(f"{text!r} is everything; leave the entry out")
    return Endpoint(network, ports)


def _order(endpoint: Endpoint) -> tuple[int, int, int, int, int]:
    network, ports = endpoint.network, endpoint.ports or (0, 0)
    if network is None:
        return 0, 0, 0, *ports
    return network.version, int(network.network_address), network.prefixlen, *ports


def _minimal(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Sorted, without duplicates and without entries that another one covers; independent of the order given."""
    unique = sorted(set(endpoints), key=_order)
    return [e for e in unique if not any(o != e and o.covers(e) for o in unique)]


def check_raw(text: str) -> None:
    """Refuse a user's text that could end our parentheses or isn't a filter at all. Raises ValueError.

    Nothing here looks for hyphens: the text stands in parentheses behind `--`, so that it can't become an option.
    """
    if not text.strip():
        raise ValueError("the filter is empty; leave it out to capture everything")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the filter has {len(text)} characters; {MOST_CHARACTERS} are allowed")
    if re.match(r"\s*--?[A-Za-z]", text):
        raise ValueError(f"the filter begins like an option of tcpdump ({text.split()[0]}); write a pcap-filter expression only")
    control = re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    if control:
        raise ValueError(f"the filter holds the control character {control[0]!r}")
    opened: list[str] = []
    pairs = {")": "(", "]": "["}
    for character in text:
        if character in "([":
            opened.append(character)
        elif character in ")]":
            if not opened or opened.pop() != pairs[character]:
                raise ValueError(f"the filter closes a {character!r} that it didn't open")
    if opened:
        raise ValueError(f"the filter opens a {opened[-1]!r} that it doesn't close")


def scope_addresses(addresses: Iterable[str]) -> Expression:
    """Packets from or to any of these addresses: what a capture of pods is AND-ed with. Raises ValueError for none."""
    endpoints = _minimal(Endpoint(parse_address(a), None) for a in addresses)
    if not endpoints:
        raise ValueError("a scope of no addresses would match everything")
    return _some([e.expression() for e in endpoints])


def build(
    filter: str = "",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    source: Iterable[str] = (),
    destination: Iterable[str] = (),
    scope: Expression | None = None,
) -> Expression:
    """The whole filter of a capture; `Everything()` when nothing is asked. Raises ValueError for a bad entry or text."""
    parts: list[Expression] = [scope or Everything()]
    included = _minimal(parse_endpoint(t) for t in include)
    parts.append(_some([e.expression() for e in included]))
    excluded = _minimal(parse_endpoint(t) for t in exclude)
    if excluded:
        parts.append(Not(_some([e.expression() for e in excluded])))
    for direction, addresses in (("src", source), ("dst", destination)):
        nets = [e.network for e in _minimal(Endpoint(parse_address(a), None) for a in addresses)]
        parts.append(_some([Net(n, direction) for n in nets if n is not None]))
    if filter:
        check_raw(filter)
        parts.append(Raw(filter.strip()))
    return _all(parts)


def compile_check(text: str, run: Callable[[Sequence[str]], Outcome]) -> str | None:
    """What libpcap says against the filter, or None.

    Compiled for Ethernet without opening a device, so without rights (`tcpdump -d -y EN10MB` still wants one in some
    versions; reading an empty pcap of that link type doesn't). The node compiles again, for its own interfaces.
    """
    import tempfile

    from retina_runner.agent.pcap import header

    with tempfile.NamedTemporaryFile(suffix=".pcap") as empty:
        empty.write(header())
        empty.flush()
        outcome = run(["tcpdump", "-d", "-r", empty.name, "--", text])
    if outcome.ok:
        return None
    lines = [line for line in outcome.stderr.decode("utf-8", "replace").splitlines() if line.startswith("tcpdump:")]
    said = [line for line in lines if "reading from file" not in line]
    return said[-1].removeprefix("tcpdump: ") if said else outcome.why()
