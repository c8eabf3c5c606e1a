"""Host patterns and ranges: the rules of Ansible's documentation, each by an example, and laws that hold for all of them."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.inventory import patterns, ranges
from retina_runner.inventory.host_words import read, split_port
from retina_runner.inventory.model import Inventory


def fleet() -> Inventory:
    """web1-4, db1-2, canary web4; eu has web1, web3, db1; prod contains web and db."""
    made = Inventory()
    for group, hosts in {
        "web": ["web1", "web2", "web3", "web4"],
        "db": ["db1.example", "db2.example"],
        "eu": ["web1", "web3", "db1.example"],
        "canary": ["web4"],
    }.items():
        for host in hosts:
            made.add_host(host, group)
    made.group("prod").children.update({"web": None, "db": None})
    made.group("empty")
    made.add_host("lonely", "all")
    return made


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("web", "web1 web2 web3 web4"),
        ("web:db", "web1 web2 web3 web4 db1.example db2.example"),
        ("web,db", "web1 web2 web3 web4 db1.example db2.example"),
        ("db:web", "db1.example db2.example web1 web2 web3 web4"),
        ("web:&eu", "web1 web3"),
        ("&eu:web", "web1 web3"),
        ("web:&eu:!canary", "web1 web3"),
        ("web:!canary", "web1 web2 web3"),
        ("!canary:web", "web1 web2 web3"),
        ("!web", "db1.example db2.example lonely"),
        ("&eu", "web1 db1.example web3"),
        ("web1", "web1"),
        ("web1:web1:web", "web1 web2 web3 web4"),
        ("web*", "web1 web2 web3 web4"),
        ("*.example", "db1.example db2.example"),
        ("web?:!web[!34]", "web3 web4"),
        ("~(web|db)1.*", "web1 db1.example"),
        ("~.*2", "web2 db2.example"),
        ("web[0]", "web1"),
        ("web[-1]", "web4"),
        ("web[0:1]", "web1 web2"),
        ("web[1:]", "web2 web3 web4"),
        ("web[0:99]", "web1 web2 web3 web4"),
        ("prod[0:4]:!web[0]", "web2 web3 web4 db1.example"),
        ("prod", "web1 web2 web3 web4 db1.example db2.example"),
        ("prod:!db", "web1 web2 web3 web4"),
        ("all:!prod", "lonely"),
        ("ungrouped", "lonely"),
        ("*:!prod", "lonely"),
        ("web[1:3]", "web2 web3 web4"),
        ("db[1:2].example", "db1.example db2.example"),
        (" web1 , db1.example ", "web1 db1.example"),
        ("web:!empty", "web1 web2 web3 web4"),
        ("web:!nothing*", "web1 web2 web3 web4"),
    ],
)
def test_a_pattern_means(pattern: str, meant: str) -> None:
    found = patterns.match(fleet(), pattern)
    if pattern == "&eu":  # in the order of `all`
        assert set(found) == set(meant.split())
    else:
        assert found == tuple(meant.split())


def test_of_many_hosts_their_number_and_the_groups_are_told() -> None:
    made = fleet()
    for name in ranges.expand("node[01:40]"):
        made.add_host(name)
    assert patterns.near("xyz", made) == "there are 47 hosts and the groups web, db, eu, canary, prod, empty"
    assert patterns.near("xyz", Inventory()) == "there are none"


def test_a_range_is_of_names_where_no_group_is_so_called() -> None:
    made = Inventory()
    for name in ranges.expand("node[01:20]"):
        made.add_host(name)
    assert patterns.match(made, "node[03:05]") == ("node03", "node04", "node05")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("wbe", "wbe is no host and no group; did you mean web?"),
        ("web:!cannary", "cannary is no host and no group; did you mean canary?"),
        ("web:&eur", "eur is no host and no group; did you mean eu?"),
        ("web[7]", "web[7]: web has 4 hosts, counted from 0"),
        ("web:!web[12]", "web[12]: web has 4 hosts, counted from 0"),
        ("nothing*", "nothing* is no host and no group; there are web, db, eu, canary, prod, empty,"),
        ("empty", "empty means no host of 7"),
        ("", "an empty pattern means no host; all means every one"),
        (",", "an empty pattern means no host"),
        ("canary:!web", "canary:!web means no host of 7"),
        ("~web(", "~web( is not a regular expression"),
    ],
)
def test_a_pattern_that_means_nothing_is_an_error_with_the_nearest_name(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        patterns.match(fleet(), pattern)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a:b:!c", ["a", "b", "!c"]),
        ("a,b:c", ["a", "b:c"]),
        ("web[0:2]:&eu", ["web[0:2]", "&eu"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("~a:b", ["~a", "b"]),
        ("", []),
        ("!db:db:db", ["!db", "db", "db"]),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert patterns.split(text) == parts


NAMES = st.lists(st.sampled_from(fleet().names), min_size=1, max_size=6)
GROUPS = st.sampled_from(["web", "db", "eu", "canary", "prod", "all", "empty", "ungrouped"])
ATOMS = st.one_of(
    GROUPS, st.sampled_from([*fleet().names, "web*", "~.*1", "web?", "*2*", "web[0]", "prod[1:3]", "all[2:]", "db[-1]"])
)


@given(st.lists(ATOMS, min_size=1, max_size=4), st.lists(ATOMS, max_size=2), st.lists(ATOMS, max_size=2))
def test_parts_are_sets(plain: list[str], both: list[str], without: list[str]) -> None:
    """The union of the plain ones, cut by each `&`, less each `!`, whatever the order and the separator."""
    known = fleet()

    def one(part: str) -> set[str]:
        return set(patterns.select(known, [part]))

    expected = set[str]().union(*map(one, plain))
    for part in both:
        expected &= one(part)
    for part in without:
        expected -= one(part)
    parts = [*plain, *("&" + p for p in both), *("!" + p for p in without)]
    for order in (parts, parts[::-1]):
        for separator in (":", ","):
            assert set(patterns.select(known, patterns.split(separator.join(order)))) == expected
    found = patterns.select(known, parts)
    assert len(set(found)) == len(found)


@given(st.text("web12db.*?[]!", min_size=1, max_size=8))
def test_a_glob_is_fnmatch_of_names_and_groups(text: str) -> None:
    known = fleet()
    if text[0] in "!&~" or patterns._SLICE.fullmatch(text) or ":" in text:
        return
    groups = [g for g in ("all", "ungrouped", *known.group_names) if fnmatch.fnmatchcase(g, text)]
    expected = {h for g in groups for h in known.members(g)}
    if not groups or any(c in text for c in ".*?["):
        expected |= {n for n in known.names if fnmatch.fnmatchcase(n, text)}
    if text in known.names:
        expected = {text}
    assert set(patterns.select(known, [text])) == expected


# -- ranges and ports --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("web1", ["web1"]),
        ("db[01:03].example", ["db01.example", "db02.example", "db03.example"]),
        ("db[8:11]", ["db8", "db9", "db10", "db11"]),
        ("db[098:101]", ["db098", "db099", "db100", "db101"]),
        ("x[a:c]", ["xa", "xb", "xc"]),
        ("x[0:10:5]", ["x0", "x5", "x10"]),
        ("x[:2]", ["x0", "x1", "x2"]),
        ("r[1:2]n[1:2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_a_range_is_written_out(text: str, names: list[str]) -> None:
    assert ranges.expand(text) == names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("db[01:100]", "same number of digits"),
        ("db[5:1]", "before the beginning"),
        ("db[c:a]", "before the beginning"),
        ("db[0:9:0]", "at least 1"),
        ("db[ab:cd]", "single ones"),
        ("db[0:100000]", "more than 100000"),
        ("db[0:999][0:999]", "more than 100000"),
    ],
)
def test_a_range_that_is_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ranges.expand(text)


@given(st.integers(0, 500), st.integers(0, 200), st.integers(1, 7), st.integers(3, 5))
def test_a_range_counts_like_range(first: int, count: int, step: int, width: int) -> None:
    last = first + count
    text = f"n[{first:0{width}d}:{last:0{width}d}:{step}]x"
    assert ranges.expand(text) == [f"n{i:0{width}d}x" for i in range(first, last + 1, step)]


@pytest.mark.parametrize(
    ("word", "host", "port"),
    [
        ("web1", "web1", None),
        ("web1:2222", "web1", 2222),
        ("db[1:3]:22", "db[1:3]", 22),
        ("db[1:3]", "db[1:3]", None),
        ("2001:db8::1", "2001:db8::1", None),
        ("[2001:db8::1]:22", "2001:db8::1", 22),
        ("[2001:db8::1]", "2001:db8::1", None),
    ],
)
def test_a_port_behind_a_host(word: str, host: str, port: int | None) -> None:
    assert split_port(word) == (host, port)


@pytest.mark.parametrize("word", ["web1:", "web1:ssh", "web1:0", "web1:65536", "", " web1", "---"])
def test_a_word_that_is_no_host(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(word)
