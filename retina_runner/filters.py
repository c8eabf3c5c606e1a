"""pcap-filter(7) expressions, built as trees and rendered with parentheses around everything. Pure.

Scope, include, source, destination and the user's own text are AND-ed; exclude is AND NOT. So a filter only ever
narrows a scope. (Where a scope is OR-ed to a filter, either of them has no effect.)

What the words mean is libpcap's: `host` and `net` match IPv4, ARP and RARP, or IPv6; `port` matches TCP, UDP and SCTP,
of a fragmented IPv4 packet only the first piece, and in IPv6 nothing behind an extension header. `IP:port` is `host IP
and port P`, as Retina has it: the port may be the other end's.

VLAN: `vlan`, `mpls`, `pppoes` and `geneve` shift the offsets of all that follows them. They are never added here, and
the user's text is rendered last, so that they shift nothing of ours; but then ours doesn't look inside a tag that is
still in the packet. On `any` (Linux cooked capture) libpcap refuses `vlan` and Ethernet addresses altogether.

Large lists cost (measured, libpcap 1.10.3): 300 IPv4 hosts compile in 1.2 s, 500 in 6 s, 1000 in 50 s, whenever a
tcpdump starts. Beyond 4096 instructions (BPF_MAXINSNS, linux/bpf_common.h: some 230 IPv6 or 700 IPv4 hosts) the kernel
refuses the program and tcpdump filters by itself, which loses packets sooner. Networks are the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from retina_runner.endpoints import Endpoint, Network, minimal, networks, parse_endpoint

MOST_RAW_CHARACTERS = 16384
MOST_CHARACTERS = 65536
"""Of a whole filter. It is one argv element, of which Linux allows 128 KiB (MAX_ARG_STRLEN, execve(2))."""
Direction = Literal["", "src", "dst"]


@dataclass(frozen=True)
class Everything:
    """Matches every packet."""


@dataclass(frozen=True)
class Host:
    """Packets from or to a network, or an address (a /32 or /128)."""

    network: Network
    direction: Direction = ""


@dataclass(frozen=True)
class Port:
    """TCP, UDP or SCTP packets from or to one of the ports first..last."""

    first: int
    last: int
    direction: Direction = ""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ValueError(f"{self.first}-{self.last} is not a range of ports; ports are 1 to 65535")


@dataclass(frozen=True)
class Raw:
    """The user's own text; what `check_raw` refuses can't be one."""

    text: str

    def __post_init__(self) -> None:
        check_raw(self.text)


@dataclass(frozen=True)
class And:
    """Every part matches."""

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)


@dataclass(frozen=True)
class Or:
    """At least one part matches."""

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)


@dataclass(frozen=True)
class Not:
    """The part doesn't match."""

    part: Expression

    def __post_init__(self) -> None:
        _check_parts((self.part,))


Expression = Everything | Host | Port | Raw | And | Or | Not


def _check_parts(parts: Sequence[Expression]) -> None:
    # Nothing and everything have no text inside an expression: `()` and `( or …)` are syntax errors on the node only.
    if not parts or any(isinstance(p, Everything) for p in parts):
        raise ValueError("a part of an expression must be one that can be written")


def render(expression: Expression) -> str:
    """The expression's text, in parentheses throughout; empty for everything.

    Parentheses also keep libpcap from carrying `host` or `port` over from one part to a bare address of the next.
    """
    match expression:
        case Everything():
            return ""
        case Host(network, direction):
            lead = f"{direction} " if direction else ""
            if network.prefixlen == network.max_prefixlen:
                return f"({lead}host {network.network_address})"
            return f"({lead}net {network})"
        case Port(first, last, direction):
            lead = f"{direction} " if direction else ""
            return f"({lead}port {first})" if first == last else f"({lead}portrange {first}-{last})"
        case Raw(text):
            return f"({text.strip()})"
        case Not(part):
            return f"(not {render(part)})"
        case And(parts):
            return "(" + " and ".join(render(p) for p in parts) + ")"
        case Or(parts):
            return "(" + " or ".join(render(p) for p in parts) + ")"


def _all(parts: Iterable[Expression]) -> Expression:
    kept = tuple(p for p in parts if not isinstance(p, Everything))
    return kept[0] if len(kept) == 1 else And(kept) if kept else Everything()


def _some(parts: Sequence[Expression]) -> Expression:
    """At least one; of no parts everything, as an empty list asks for nothing."""
    return parts[0] if len(parts) == 1 else Or(tuple(parts)) if parts else Everything()


def _of(endpoint: Endpoint) -> Expression:
    parts: list[Expression] = []
    if endpoint.network is not None:
        parts.append(Host(endpoint.network))
    if endpoint.ports is not None:
        parts.append(Port(*endpoint.ports))
    return _all(parts)


def check_raw(text: str) -> None:
    """Refuse a user's text that could leave our parentheses or be taken for an option. Raises ValueError.

    Measured with tcpdump 4.99.3: `--` is accepted. `-w file` in one argument is an option without it and a syntax
    error behind it, and `(-w file)` never is an option. So only a text that begins with `-` is refused, as a mistake;
    hyphens further in (`my-host`, `tcp-syn`, `len > -1`) are pcap-filter's own. Its scanner knows no quotes and no
    comments, and its backslash can't escape a parenthesis, so that counting brackets is exact.
    """
    inner = text.strip()
    if not inner:
        raise ValueError("the filter is empty; leave it out to capture everything")
    if len(text) > MOST_RAW_CHARACTERS:
        raise ValueError(f"the filter has {len(text)} characters; {MOST_RAW_CHARACTERS} are allowed")
    odd = re.search(r"[^ -~]", inner)
    if odd:
        hint = "; a filter is one line (in YAML: `filter: >-`)" if odd[0] in "\n\r" else "; plain ASCII only"
        raise ValueError(f"the filter holds {odd[0]!a} (U+{ord(odd[0]):04X}) at character {odd.start() + 1}{hint}")
    if inner.startswith("-"):
        raise ValueError(
            f"the filter begins like an option of tcpdump ({inner.split()[0]}); write a pcap-filter expression only"
        )
    opened: list[str] = []
    for character in inner:
        if character in "([":
            opened.append(character)
        elif character in ")]" and (not opened or opened.pop() + character not in ("()", "[]")):
            raise ValueError(f"the filter closes a {character!r} that it didn't open")
    if opened:
        raise ValueError(f"the filter opens a {opened[-1]!r} that it doesn't close")


def scope_addresses(addresses: Iterable[str]) -> Expression:
    """Packets from or to any of these addresses: what a capture of pods is AND-ed with. Raises ValueError for none."""
    found = networks(addresses)
    if not found:
        raise ValueError("a scope of no addresses would match everything")
    return _some([Host(n) for n in found])


def build(
    filter: str = "",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    source: Iterable[str] = (),
    destination: Iterable[str] = (),
    scope: Expression | None = None,
) -> Expression:
    """The whole filter of a capture; `Everything()` when nothing is asked.

    The same for any order of the lists. Raises ValueError for a bad entry or text, and for more than MOST_CHARACTERS.
    """
    parts: list[Expression] = [scope or Everything()]
    included = minimal(parse_endpoint(t) for t in include)
    parts.append(_some([_of(e) for e in included]))
    excluded = minimal(parse_endpoint(t) for t in exclude)
    if excluded:
        parts.append(Not(_some([_of(e) for e in excluded])))
    parts.append(_some([Host(n, "src") for n in networks(source)]))
    parts.append(_some([Host(n, "dst") for n in networks(destination)]))
    if filter:
        parts.append(Raw(filter))
    whole = _all(parts)
    size = len(render(whole))
    if size > MOST_CHARACTERS:
        raise ValueError(
            f"the whole filter has {size} characters; {MOST_CHARACTERS} are allowed: write networks, not addresses"
        )
    return whole
