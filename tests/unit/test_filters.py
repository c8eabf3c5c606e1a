"""Filters: what is refused, what is written, and that libpcap's reading of it is the one that was meant."""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_runner import filters
from retina_runner.agent import process
from retina_runner.endpoints import Endpoint, Network, parse_address, parse_endpoint
from retina_runner.filter_compiling import compile_check
from retina_runner.filters import (
    And,
    Everything,
    Host,
    Not,
    Or,
    Port,
    Raw,
    build,
    render,
)
from retina_runner.planning import compile_here
from tests.unit import reference_matcher as reference

LINKTYPES = {reference.ETHERNET: "EN10MB", reference.COOKED2: "LINUX_SLL2"}


def net(text: str) -> Network:
    return ipaddress.ip_network(text)


class Sample:
    """Packets in a savefile, and what the reference sees in them."""

    def __init__(self, path: Path, packets: tuple[reference.Packet, ...]):
        self.path, self.packets = path, packets

    def __repr__(self) -> str:
        return f"<{len(self.packets)} packets in {self.path.name}>"

    def matched(self, text: str) -> set[int] | None:
        """The packets that tcpdump finds; None when it can't compile the text."""
        outcome = process.run(["tcpdump", "-O", "-r", str(self.path), "-w", "-", "--", text])
        if b"rejects all packets" in outcome.stderr:
            return set()
        return reference.numbers(outcome.stdout) if outcome.ok else None

    def expected(self, wanted: Callable[[reference.Packet], bool]) -> set[int]:
        return {number for number, packet in enumerate(self.packets) if wanted(packet)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Sample]:
    folder = tmp_path_factory.mktemp("packets")
    made = {}
    for linktype, name in LINKTYPES.items():
        frames = reference.frames(7, 1500, linktype)
        path = folder / f"{name}.pcap"
        path.write_bytes(reference.write_pcap(frames, linktype))
        made[linktype] = Sample(path, tuple(reference.parse(f, linktype) for f in frames))
    return made


# Endpoints


@pytest.mark.parametrize(
    ("text", "network", "ports"),
    [
        ("10.0.0.1", "10.0.0.1/32", None),
        ("10.0.0.1/32", "10.0.0.1/32", None),
        ("10.1.0.0/16", "10.1.0.0/16", None),
        ("0.0.0.0/0", "0.0.0.0/0", None),
        ("80", None, (80, 80)),
        ("65535", None, (65535, 65535)),
        ("8000-8080", None, (8000, 8080)),
        ("10.0.0.1:80", "10.0.0.1/32", (80, 80)),
        ("10.0.0.1:80-90", "10.0.0.1/32", (80, 90)),
        ("10.1.0.0/16:80", "10.1.0.0/16", (80, 80)),
        ("10.0.0.1:*", "10.0.0.1/32", None),
        ("*:53", None, (53, 53)),
        ("*:53-54", None, (53, 54)),
        ("fd00::1", "fd00::1/128", None),
        ("FD00:0:0::1", "fd00::1/128", None),
        ("fd00::1:80", "fd00::1:80/128", None),
        ("::", "::/128", None),
        ("fd00::/64", "fd00::/64", None),
        ("[fd00::1]", "fd00::1/128", None),
        ("[fd00::1]:443", "fd00::1/128", (443, 443)),
        ("[fd00::1]:*", "fd00::1/128", None),
        ("[fd00::/64]:443-444", "fd00::/64", (443, 444)),
    ],
)
def test_endpoints(text: str, network: str | None, ports: tuple[int, int] | None) -> None:
    assert parse_endpoint(text) == Endpoint(net(network) if network else None, ports)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" 10.0.0.1", "did you mean 10.0.0.1?"),
        ("10.0.0.1\n", "did you mean 10.0.0.1?"),
        ("10.0.0.1 :80", "did you mean 10.0.0.1:80?"),
        ("*", "is everything"),
        ("*:*", "is everything"),
        ("[*]:80", "did you mean *:80?"),
        ("10.0.0.1:80:90", "did you mean 10.0.0.1:80?"),
        ("*:80:90", "did you mean *:80?"),
        ("a:80:90", "is not an IP address"),
        ("10.0.0.1:", "nothing after the colon; did you mean 10.0.0.1?"),
        (":80", "nothing before the colon; did you mean 80?"),
        ("80:90", "did you mean the range 80-90"),
        ("0", "ports are 1 to 65535"),
        ("70000", "ports are 1 to 65535"),
        ("99999999999", "ports are 1 to 65535"),
        ("10.0.0.1:0", "ports are 1 to 65535"),
        ("080", "did you mean 80?"),
        ("90-80", "did you mean 80-90?"),
        ("80-", "is not an IP address"),
        ("*:http", "'http' is not a port"),
        ("10.0.0.1:80,443", "'80,443' is not a port"),
        ("10.0.0.1:\u0668\u0660", "is not a port"),
        ("\u0668\u0660", "is not an IP address"),
        ("web1", "is not an IP address"),
        ("web1:80", "is not an IP address"),
        ("10.0.0.256", "is not an IP address"),
        ("10.0.0.01", "did you mean 10.0.0.1?"),
        ("010.0.0.0/8", "did you mean 10.0.0.0/8?"),
        ("10.1", "did you mean 10.1.0.0/16?"),
        ("10.1/12", "did you mean 10.1.0.0/12?"),
        ("10.0.0.1/16", "did you mean 10.0.0.0/16, or the host 10.0.0.1?"),
        ("10.0.0.1/16:80", "did you mean 10.0.0.0/16"),
        ("fd00::1/64", "did you mean fd00::/64, or the host fd00::1?"),
        ("10.0.0.0/255.0.0.0", "is not a prefix length"),
        ("10.0.0.0/08", "is not a prefix length"),
        ("10.0.0.0/", "is not a prefix length"),
        ("10.0.0.0/33", "is not an IP address"),
        ("fe80::1%eth0", "did you mean fe80::1?"),
        ("[fe80::1%eth0]:80", "did you mean fe80::1?"),
        ("::ffff:10.0.0.1", "did you mean 10.0.0.1?"),
        ("[::ffff:a00:1]:80", "did you mean 10.0.0.1?"),
        ("fd00::/64:443", "did you mean [fd00::/64]:443?"),
        ("1:2:3:4:5:6:7:8:443", "did you mean [1:2:3:4:5:6:7:8]:443?"),
        ("[10.0.0.1]:80", "did you mean 10.0.0.1:80?"),
        ("[fd00::1", "write [IPv6]:PORT"),
        ("[fd00::1]443", "write [IPv6]:PORT"),
        ("[fd00::1]:", "write [IPv6]:PORT"),
        ("[]:80", "brackets are for IPv6"),
    ],
)
def test_what_is_no_endpoint_is_refused_with_the_nearest_form(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["10.0.0.1:80", "*", "80", "[fd00::1]", "web1", "10.0.0.1/8", ""])
def test_source_and_destination_take_addresses_only(text: str) -> None:
    with pytest.raises(ValueError, match=r"IP address|bits set"):
        build(source=[text])
    with pytest.raises(ValueError, match=r"IP address|bits set"):
        build(destination=[text])


@given(st.text(alphabet="0123456789abf:.*/[]- %x", max_size=20))
@settings(max_examples=1000)
def test_any_text_is_an_endpoint_or_a_valueerror(text: str) -> None:
    try:
        parse_endpoint(text)
    except ValueError:
        return
    assert render(build(include=[text])).startswith("(")


# Rendering and joining


def test_the_parts_are_anded_and_exclude_is_negated() -> None:
    whole = build(
        filter=" tcp or udp ",
        include=["10.0.0.2:80", "fd00::/64", "*:53", "8000-8080"],
        exclude=["22", "10.0.0.9"],
        source=["10.0.0.1", "10.1.0.0/16"],
        destination=["fd00::1"],
        scope=filters.scope_addresses(["10.0.0.7", "fd00::7"]),
    )
    assert render(whole) == (
        "(((host 10.0.0.7) or (host fd00::7))"
        " and ((port 53) or (portrange 8000-8080) or ((host 10.0.0.2) and (port 80)) or (net fd00::/64))"
        " and (not ((port 22) or (host 10.0.0.9)))"
        " and ((src host 10.0.0.1) or (src net 10.1.0.0/16))"
        " and (dst host fd00::1)"
        " and (tcp or udp))"
    )


def test_nothing_asked_is_everything() -> None:
    assert build() == Everything()
    assert render(build()) == ""
    assert render(build(scope=Everything())) == ""
    assert render(build(filter="tcp")) == "(tcp)"
    assert render(build(exclude=["22"])) == "(not (port 22))"
    assert render(Port(1, 2, "src")) == "(src portrange 1-2)"


def test_a_scope_without_addresses_is_refused() -> None:
    with pytest.raises(ValueError, match="no addresses"):
        filters.scope_addresses([])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: And(()), "must be one that can be written"),
        (lambda: Or(()), "must be one that can be written"),
        (lambda: Or((Host(net("10.0.0.1/32")), Everything())), "must be one that can be written"),
        (lambda: Not(Everything()), "must be one that can be written"),
        (lambda: Port(0, 1), "0-1 is not a range of ports"),
        (lambda: Port(2, 1), "2-1 is not a range of ports"),
        (lambda: Port(1, 65536), "1-65536 is not a range of ports"),
        (lambda: Raw("tcp) or (udp"), "closes a '\\)'"),
    ],
)
def test_what_has_no_text_cannot_be_built(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


@pytest.mark.parametrize(
    ("given_entries", "kept"),
    [
        (["10.0.0.1", "10.0.0.1:80"], "(host 10.0.0.1)"),
        (["*:80", "10.0.0.1:80"], "(port 80)"),
        (["10.0.0.0/24", "10.0.0.1", "10.0.0.0/25", "10.0.0.5:80"], "(net 10.0.0.0/24)"),
        (["10.0.0.1", "10.0.0.1/32", "10.0.0.1:*", "10.0.0.1"], "(host 10.0.0.1)"),
        (["80-90", "85", "10.0.0.1:80-81"], "(portrange 80-90)"),
        (["10.0.0.0/24:80", "10.0.0.1:80"], "((net 10.0.0.0/24) and (port 80))"),
        (["fd00::/64", "[fd00::1]:443", "fd00::2"], "(net fd00::/64)"),
        (["::/0", "10.0.0.1"], "((host 10.0.0.1) or (net ::/0))"),
        (["10.0.0.0/24:80", "10.0.0.1"], "(((net 10.0.0.0/24) and (port 80)) or (host 10.0.0.1))"),
    ],
)
def test_absorbed_entries_are_left_out_in_any_order(given_entries: list[str], kept: str) -> None:
    chance = random.Random(3)
    for _ in range(10):
        chance.shuffle(given_entries)
        assert render(build(include=given_entries)) == kept


# What libpcap makes of it


def _net_text(n: reference.Net) -> str:
    whole = 32 if n.version == 4 else 128
    bits = n.bits >> (whole - n.length) << (whole - n.length)
    address = str(ipaddress.IPv4Address(bits) if n.version == 4 else ipaddress.IPv6Address(bits))
    return address if n.length == whole else f"{address}/{n.length}"


def _entry_text(e: reference.Entry) -> str:
    if e.ports is None:
        assert e.net is not None
        return _net_text(e.net)
    ports = str(e.ports[0]) if e.ports[0] == e.ports[1] else f"{e.ports[0]}-{e.ports[1]}"
    if e.net is None:
        return ports if e.ports[0] % 2 else f"*:{ports}"
    return f"{_net_text(e.net)}:{ports}" if e.net.version == 4 else f"[{_net_text(e.net)}]:{ports}"


nets = st.one_of(
    st.builds(
        reference.Net, st.just(4), st.sampled_from(reference.IPV4), st.sampled_from((32, 32, 25, 24, 23, 31, 8, 0))
    ),
    st.builds(
        reference.Net, st.just(6), st.sampled_from(reference.IPV6), st.sampled_from((128, 128, 121, 64, 63, 127, 3, 0))
    ),
)
port = st.sampled_from(reference.PORTS)
port_ranges = st.one_of(port.map(lambda p: (p, p)), st.tuples(port, port).map(lambda r: (min(r), max(r))))
entries = st.one_of(
    st.builds(reference.Entry, nets, port_ranges),
    st.builds(reference.Entry, nets, st.none()),
    st.builds(reference.Entry, st.none(), port_ranges),
)


@given(
    linktype=st.sampled_from(sorted(LINKTYPES)),
    scope=st.lists(nets, max_size=4),
    include=st.lists(entries, max_size=6),
    exclude=st.lists(entries, max_size=4),
    source=st.lists(nets, max_size=3),
    destination=st.lists(nets, max_size=3),
    raw=st.sampled_from(("", "", "", *reference.RAW)),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=400, deadline=None)
def test_libpcap_finds_what_the_reference_finds(
    samples: dict[int, Sample],
    linktype: int,
    scope: list[reference.Net],
    include: list[reference.Entry],
    exclude: list[reference.Entry],
    source: list[reference.Net],
    destination: list[reference.Net],
    raw: str,
    chance: random.Random,
) -> None:
    """The reference knows nothing of minimisation: so leaving out what is absorbed changes no result either."""

    def built(order: Callable[[list[str]], object]) -> filters.Expression:
        lists = ([_entry_text(e) for e in include], [_entry_text(e) for e in exclude],
                 [_net_text(n) for n in source], [_net_text(n) for n in destination])  # fmt: skip
        addresses = [_net_text(n) for n in scope]
        for texts in (*lists, addresses):
            order(texts)
        return build(raw, *lists, scope=filters.scope_addresses(addresses) if addresses else None)

    whole = built(lambda texts: None)
    assert whole == built(chance.shuffle)
    assert whole == built(lambda texts: texts.extend(texts[:2]))
    found = samples[linktype].matched(render(whole))
    wanted = samples[linktype].expected(
        lambda p: reference.matches(p, scope, include, exclude, source, destination, raw)
    )
    assert found == wanted, render(whole)


@pytest.mark.parametrize("linktype", sorted(LINKTYPES))
def test_the_sample_tells_filters_apart(samples: dict[int, Sample], linktype: int) -> None:
    """Guards the test above: were every packet alike, any two filters would agree."""
    packets = samples[linktype].packets
    assert {p.version for p in packets} == {0, 4, 6}
    for text, wanted in reference.RAW.items():
        found = samples[linktype].expected(wanted)
        assert (0 < len(found) < len(packets)) or text == "len > -1", text
    later = [p for p in packets if p.version == 4 and p.protocol == reference.TCP and p.ports is None]
    assert len(later) > 10, "later fragments"
    assert sum(p.version == 6 and p.protocol == reference.TCP and p.ports is None for p in packets) > 10, (
        "IPv6 fragments"
    )


@pytest.mark.parametrize("entries_given", [["10.0.0.1", "10.0.0.1:80"], ["10.0.0.1:80", "10.0.0.1"]])
def test_both_orders_compile(entries_given: list[str]) -> None:
    """Retina renders the first as `(host 10.0.0.1 and port )`, which only the node refuses."""
    assert compile_check(build(include=entries_given), run=compile_here) is None


@pytest.mark.parametrize("asked", [{"exclude": ["22"]}, {"include": ["80"]}, {"filter": "tcp or not tcp"}])
def test_a_filter_only_narrows_its_scope(samples: dict[int, Sample], asked: dict[str, object]) -> None:
    """Retina ORs the pods' addresses on, and then matches everything."""
    scope = filters.scope_addresses(["10.0.0.1", "fd00::1"])
    sample = samples[reference.ETHERNET]
    inside, both = sample.matched(render(scope)), sample.matched(render(build(scope=scope, **asked)))  # type: ignore[arg-type]
    assert inside is not None
    assert both is not None
    assert 0 < len(both) <= len(inside) < len(sample.packets)
    assert both <= inside


# The user's own text

REFUSED = [
    ("   ", "empty"),
    ("\n", "empty"),
    ("tcp\nudp", "one line"),
    ("tcp\r\nudp", "one line"),
    ("tcp\tport 80", "U+0009"),
    ("tcp\0", "U+0000"),
    ("tcp \x1b[2J", "U+001B"),
    ("tcp\x7f port 80", "U+007F"),
    ("tcp\xa0port 80", "U+00A0"),
    ("host \u201ca\u201d", "U+201C"),
    ("host \udcff", "U+DCFF"),
    ("-w /tmp/x", "like an option of tcpdump (-w)"),
    ("-w/tmp/x", "like an option"),
    ("  -z sh", "like an option"),
    ("--version", "like an option"),
    ("-", "like an option"),
    ("-- tcp", "like an option"),
    ("tcp) or (udp", "closes a ')'"),
    (") or (", "closes a ')'"),
    ("tcp)", "closes a ')'"),
    ("(tcp", "opens a '('"),
    ("tcp[13", "opens a '['"),
    ("tcp[(13])", "closes a ']'"),
    ("tcp]", "closes a ']'"),
    ("tcp" + " or tcp" * 3000, "16384 are allowed"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_a_text_that_could_escape_is_refused(text: str, said: str) -> None:
    for refuse in (filters.check_raw, Raw, build):
        with pytest.raises(ValueError, match=re.escape(said)):
            refuse(text)


@pytest.mark.parametrize(
    "text",
    [
        "tcp[tcpflags] & tcp-syn != 0",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 127.0.0.0/8",
        "port 80 or len > -1",
        "(tcp) or (udp)",
        "icmp[icmptype] == icmp-echo || icmp6",
        r"ether proto \ip",
        "ip[((2))] > 3",
        "ether host 00-11-22-33-44-55",
        "vlan 100 and tcp port 80",
        "inbound",
        "tcp port http\n",
    ],
)
def test_pcap_filter_own_forms_are_accepted_and_compile(text: str) -> None:
    whole = build(filter=text, exclude=["22"])
    assert render(whole) == f"((not (port 22)) and ({text.strip()}))"
    assert compile_check(whole, run=compile_here) is None


@pytest.mark.parametrize(
    "text",
    [
        "tcp -w {0}",
        "tcp -- -w {0}",
        "tcp' -w {0} '",
        "tcp port 80 -z {0}",
        "tcp; touch {0}",
        "`touch {0}`",
        "$(touch {0})",
        "tcp | tee {0}",
        "tcp && touch {0}",
        "tcp > {0}",
        "tcp \\",
        "port 80 or -1",
        "()",
        "and tcp",
        "10.0.0.5",
        "80",
    ],
)
def test_what_isnt_a_filter_stays_a_syntax_error(tmp_path: Path, text: str) -> None:
    """Bare addresses too: libpcap would take `host` or `port` over from our parts, without parentheses between."""
    target = tmp_path / "made"
    for whole in (
        build(filter=text.format(target)),
        build(filter=text.format(target), source=["10.0.0.1"], include=["80"]),
    ):
        why = compile_check(whole, run=compile_here)
        assert why is not None
        assert "syntax error" in why
    assert not target.exists()


WORDS = "tcp udp host port net and or not ( ) src dst ip ip6 arp len > = - & [ ] portrange"
VALUES = "10.0.0.1 10.0.0.0/24 80 53 fd00::1 -1 tcp[13] 80-90"


@given(st.lists(st.sampled_from(f"{WORDS} {VALUES}".split()), min_size=1, max_size=7).map(" ".join))
@settings(max_examples=500, deadline=None)
def test_a_text_means_the_same_behind_our_parts_as_alone(samples: dict[int, Sample], text: str) -> None:
    sample = samples[reference.ETHERNET]
    scope = build(source=["10.0.0.0/24", "fd00::/64"], include=["*:80", "*:53", "10.0.0.1"])
    try:
        whole = build(filter=text, scope=scope)
    except ValueError:
        return
    alone, inside, both = sample.matched(text), sample.matched(render(scope)), sample.matched(render(whole))
    assert inside
    assert both == (None if alone is None else alone & inside)


# Compiling


def test_a_filter_that_compiles_for_one_link_type_is_left_to_the_node() -> None:
    assert compile_check(Raw("vlan 3"), run=compile_here) is None
    assert compile_check("(ether host 00:11:22:33:44:55)", run=compile_here) is None
    why = compile_check(Raw("vlan 3"), linktypes=("LINUX_SLL2",), run=compile_here)
    assert why == "no VLAN support for Linux cooked v2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp prot 80", "can't parse filter expression: syntax error"),
        ("port nosuchservice", "unknown port 'nosuchservice'"),
        # A label of 64 characters is refused by the resolver itself (RFC 1035, 2.3.4): no DNS server is asked.
        (f"host {'x' * 64}", f"unknown host '{'x' * 64}': this machine can't resolve the name; write its address"),
        ("src host 10.0.0.1 and dst host fd00::1", "expression rejects all packets: its parts exclude each other"),
    ],
)
def test_why_it_doesnt_compile_is_libpcaps_answer(text: str, said: str) -> None:
    assert compile_check(Raw(text), run=compile_here) == said


@dataclass
class Answering:
    """Stands for another tcpdump: answers every call alike, and remembers them."""

    exit_status: int = 0
    stderr: bytes = b""
    timed_out: bool = False

    def __post_init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> process.Outcome:
        self.calls.append(list(argv))
        return process.Outcome(tuple(argv), self.exit_status, b"", self.stderr, 0.0, 10.0, self.timed_out)


def test_the_filter_is_one_argument_behind_two_dashes() -> None:
    run = Answering()
    assert compile_check("-w x", snaplen=96, run=run) is None
    assert run.calls == [["tcpdump", "-d", "-y", "EN10MB", "-s", "96", "--", "-w x"]]


def test_everything_needs_no_compiler() -> None:
    run = Answering(exit_status=1)
    assert compile_check(Everything(), run=run) is None
    assert run.calls == []


@pytest.mark.parametrize(
    "stderr",
    [
        b"tcpdump: eth0: You don't have permission to capture on that device\n(socket: Operation not permitted)\n",
        b"tcpdump: invalid data link type LINUX_SLL2\n",
    ],
)
def test_a_tcpdump_that_cant_say_is_no_refusal(stderr: bytes) -> None:
    assert compile_check(Raw("tcp"), run=Answering(1, stderr)) is None


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            Answering(-9, b"", timed_out=True),
            "no end within 10 s: a name in it that DNS doesn't answer, or too many addresses",
        ),
        (
            Answering(1, b"Warning: x\ntcpdump: syntax error\n  tcp prot 80\n      ^\n"),
            "syntax error\n  tcp prot 80\n      ^",
        ),
        (Answering(-11, b""), "tcpdump: killed by signal 11"),
    ],
)
def test_other_endings_have_their_own_words(run: Answering, said: str) -> None:
    why = compile_check(Raw("tcp"), run=run)
    assert why is not None
    assert why.startswith(said)


def test_a_filter_as_long_as_the_limit_compiles_and_a_longer_one_is_refused() -> None:
    # Addresses of one length, so that the text grows by the same step with each.
    many = [f"fd00:1111:2222:3333:4444:5555:{n:x}:1" for n in range(0x1000, 0x1000 + 1600)]
    sizes = {n: len(render(filters.scope_addresses(many[:n]))) for n in (2, 3)}
    each = sizes[3] - sizes[2]
    most = (65536 - sizes[2]) // each + 2
    longest = build(include=many[:most])
    assert 65536 - each < len(render(longest)) <= 65536

    def patient(argv: Any, **options: Any) -> process.Outcome:
        return process.run(argv, **{**options, "limit_s": 150.0})  # it takes seconds of a processor that others use too

    assert compile_check(longest, linktypes=("EN10MB",), run=patient) is None
    with pytest.raises(ValueError, match="65536 are allowed: write networks, not addresses"):
        build(include=many[: most + 1])


def test_parse_address_is_the_network_itself() -> None:
    assert parse_address("10.1.0.0/16") == net("10.1.0.0/16")
    assert parse_address("fd00::1") == net("fd00::1/128")


def test_the_filter_runs_as_it_was_generated(samples: dict[int, Sample]) -> None:
    """libpcap's optimiser makes another filter of this one; where a newer libpcap doesn't, the first assertion holds alone."""
    from retina_runner.agent.packets import command

    options = {
        "snaplen": 96,
        "buffer_size": 32 << 20,
        "promiscuous": True,
        "expression": "(net fd00::/63) and (dst net fd00::/63)",
    }
    assert "-O" in command.argv(options, "eth0", "t.pcap")
    network = reference.Net(6, int(ipaddress.IPv6Address("fd00::")), 63)
    wanted = samples[1].expected(lambda p: reference.matches(p, [network], [], [], [], [network], ""))
    assert len(wanted) > 10
    assert samples[1].matched(str(options["expression"])) == wanted
