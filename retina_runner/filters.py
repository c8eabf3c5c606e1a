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

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from retina_runner.agent.process import Outcome

MOST_RAW_CHARACTERS = 16384
MOST_CHARACTERS = 65536
"""Of a whole filter. It is one argv element, of which Linux allows 128 KiB (MAX_ARG_STRLEN, execve(2))."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]
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


@dataclass(frozen=True)
class Endpoint:
    """An entry of `include` or `exclude`: a network, ports, or both. None means any."""

    network: Network | None
    ports: PortRange | None

    def expression(self) -> Expression:
        parts: list[Expression] = []
        if self.network is not None:
            parts.append(Host(self.network))
        if self.ports is not None:
            parts.append(Port(*self.ports))
        return _all(parts)


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


def _minimal(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
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


def _networks(addresses: Iterable[str]) -> list[Network]:
    return [e.network for e in _minimal(Endpoint(parse_address(a), None) for a in addresses) if e.network is not None]


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
    networks = _networks(addresses)
    if not networks:
        raise ValueError("a scope of no addresses would match everything")
    return _some([Host(n) for n in networks])


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
    included = _minimal(parse_endpoint(t) for t in include)
    parts.append(_some([e.expression() for e in included]))
    excluded = _minimal(parse_endpoint(t) for t in exclude)
    if excluded:
        parts.append(Not(_some([e.expression() for e in excluded])))
    parts.append(_some([Host(n, "src") for n in _networks(source)]))
    parts.append(_some([Host(n, "dst") for n in _networks(destination)]))
    if filter:
        parts.append(Raw(filter))
    whole = _all(parts)
    size = len(render(whole))
    if size > MOST_CHARACTERS:
        raise ValueError(
            f"the whole filter has {size} characters; {MOST_CHARACTERS} are allowed: write networks, not addresses"
        )
    return whole


def compile_check(
    expression: Expression | str,
    snaplen: int = 262144,
    linktypes: Sequence[str] = ("EN10MB", "LINUX_SLL2"),
    *,
    run: Callable[[Sequence[str]], Outcome],
) -> str | None:
    """What libpcap says against the filter (or its text), or None when it compiles for at least one of the link types.

    At least one, as `vlan` or `ether host` is right for Ethernet and wrong for `any`: the node compiles once more, for
    its own interfaces. None also means that this tcpdump can't say. `snaplen` is in bytes. Raises what `run` raises.

    `tcpdump -d -y TYPE` compiles without a device, a file or rights (measured, 4.99.3, as root and as nobody), and for
    live traffic: with `-r` and an empty savefile, `inbound` on Ethernet is refused. Names are looked up by this
    machine, with `-n` too, and once more by the node: an address means the same everywhere.
    """
    text = expression if isinstance(expression, str) else render(expression)
    if not text:
        return None
    said: list[str] = []
    for linktype in linktypes:
        outcome = run(["tcpdump", "-d", "-y", linktype, "-s", str(snaplen), "--", text])
        if outcome.ok:
            return None
        why = _complaint(outcome)
        if why is None:
            return None
        if why not in said:
            said.append(why)
    return "; ".join(said) or None


# An older libpcap doesn't know LINUX_SLL2, and an older tcpdump opens a device even for -d.
_NO_ANSWER = re.compile(
    r"invalid data link type|permission|not permitted|no suitable device|no interfaces|not one of the DLTs"
)


def _complaint(outcome: Outcome) -> str | None:
    """tcpdump's own words without its name and notices; None when they aren't about the filter."""
    if outcome.timed_out:
        return (
            f"no end within {outcome.duration_s:.0f} s: a name in it that DNS doesn't answer, or too many addresses; "
            "write addresses for names, and networks for many addresses"
        )
    lines = outcome.stderr.decode("utf-8", "replace").rstrip().splitlines()
    kept = [
        line.removeprefix("tcpdump: ") for line in lines if not line.lower().startswith(("reading from", "warning:"))
    ]
    message = "\n".join(kept)  # more than one line only where libpcap points at the place
    if not message:
        return outcome.why()
    if _NO_ANSWER.search(message):
        return None
    if message.startswith(("unknown host", "unknown network")):
        return f"{message}: this machine can't resolve the name; write its address"
    if "rejects all packets" in message:
        return f"{message}: its parts exclude each other"
    return message
