"""Label selectors: the whole syntax, the API server's semantics, what is refused and where."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.label_selectors import Requirement, Selector, SelectorError, from_mapping, parse, read

LABELS = {"app": "web", "tier": "b", "gen": "7", "example.com/zone": "eu", "empty": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app", True),
        ("!app", False),
        ("!absent", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web , tier=b", True),
        ("app!=web", False),
        ("absent!=web", True),
        ("absent=web", False),
        ("tier in (a, b)", True),
        ("tier in (a)", False),
        ("tier notin (a,c)", True),
        ("absent notin (a)", True),
        ("tier notin (b)", False),
        ("gen>6", True),
        ("gen > 7", False),
        ("gen<8", True),
        ("app>1", False),
        ("example.com/zone=eu", True),
        ("empty=", True),
        ("empty in (,x)", True),
        ("in in (in)", False),
        ("app=web,!canary,tier notin (x),gen<100", True),
    ],
)
def test_matches_as_the_api_server_does(text: str, matches: bool) -> None:
    assert parse(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("app=web,", "ends with a comma", 8),
        ("app web", "expected =, !=, in, notin", 4),
        ("tier in a", r"expected \(", 8),
        ("tier in (a", r"\) is missing", 10),
        ("tier in (a b)", r"\) is missing", 11),
        ("=web", "expected a label's key", 0),
        ("!", "expected a label's key, found the end", 1),
        ("a=b c=d", "expected a comma", 4),
        ("ok,-bad", "no label's key", 3),
        ("UPPER.example/x=1", "no label's key", 0),
        ("app=-x", "no label's value", 0),
        ("app=" + "x" * 64, "no label's value", 0),
        ("gen>x", "no integer", 0),
        ("a,(b)", "expected a label's key", 2),
    ],
)
def test_refused_with_the_place(text: str, message: str, offset: int) -> None:
    with pytest.raises(SelectorError, match=message) as told:
        parse(text)
    assert told.value.offset == offset


def test_both_forms_are_one() -> None:
    manifest = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["b", "a"]},
            {"key": "canary", "operator": "DoesNotExist"},
        ],
    }
    assert from_mapping(manifest) == parse("!canary,tier in (a,b),app=web")
    assert read({"app": "web"}) == read("app=web")
    assert from_mapping({}) == Selector()


@pytest.mark.parametrize(
    "given",
    [
        {"matchLabels": {}, "app": "web"},
        {"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]},
        {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]},
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
        {"matchExpressions": [{"operator": "Exists"}]},
        {"app": True},
    ],
)
def test_mappings_refused(given: Mapping[str, Any]) -> None:
    with pytest.raises(SelectorError):
        from_mapping(given)


_keys = st.from_regex(r"\A(?:[a-z0-9]{1,8}\.[a-z]{2,3}/)?[A-Za-z0-9][-_.A-Za-z0-9]{0,5}[A-Za-z0-9]\Z")
_values = st.from_regex(r"\A(?:[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,5}[A-Za-z0-9])?)?\Z")
_requirements = st.one_of(
    st.builds(lambda k, o, v: Requirement(k, o, tuple(sorted(v))), _keys, st.sampled_from(["In", "NotIn"]),
              st.sets(_values, min_size=1, max_size=4)),
    st.builds(Requirement, _keys, st.sampled_from(["Exists", "DoesNotExist"])),
    st.builds(lambda k, o, n: Requirement(k, o, (str(n),)), _keys, st.sampled_from(["Gt", "Lt"]), st.integers(0, 999)),
)  # fmt: skip


@given(st.lists(_requirements, max_size=5))
def test_written_and_read_again_is_the_same(requirements: list[Requirement]) -> None:
    selector = Selector(tuple(sorted(set(requirements), key=lambda r: (r.key, r.operator, r.values))))
    assert parse(selector.text) == selector
