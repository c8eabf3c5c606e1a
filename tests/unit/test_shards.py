"""Shards: every node in exactly one, the same one whatever else there is, and about as many in each."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.errors import UsageError
from retina_runner.shards import Shard, parse, shard_of

NAMES = st.lists(st.text(min_size=1, max_size=30), max_size=50, unique=True)


@given(NAMES, st.integers(1, 40))
def test_shards_are_disjoint_and_complete(names: list[str], of: int) -> None:
    shards = [[n for n in names if Shard(i, of).holds(n)] for i in range(1, of + 1)]
    assert sorted(n for shard in shards for n in shard) == sorted(names)


@given(NAMES, NAMES, st.integers(1, 40))
def test_a_node_stays_in_its_shard_whatever_else_there_is(names: list[str], others: list[str], of: int) -> None:
    alone = {n: next(i for i in range(1, of + 1) if Shard(i, of).holds(n)) for n in names}
    among = {n: shard_of(n, of) for n in [*others, *names]}
    assert all(among[n] == alone[n] for n in names)


def test_the_shard_of_a_name_never_changes() -> None:
    """Written down, as runners of different versions must agree."""
    assert [shard_of(f"node{i}", 7) for i in range(10)] == [2, 5, 6, 4, 2, 4, 5, 6, 3, 2]


def test_shards_are_about_even() -> None:
    counts = [0] * 100
    for number in range(10_000):
        counts[shard_of(f"node{number:05d}.example", 100) - 1] += 1
    assert max(counts) < 100 + 4 * math.sqrt(100)
    assert min(counts) > 100 - 4 * math.sqrt(100)


def test_a_shard_is_written_i_of_n() -> None:
    assert parse("3/10") == Shard(3, 10)
    assert str(parse(" 1/1 ")) == "1/1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("3", "expected i/n"),
        ("0/4", "count from 1"),
        ("5/4", "no shard 5 of 4"),
        ("1/0", "1 to 10000"),
        ("1/10001", "1 to 10000"),
        ("-1/4", "expected i/n"),
        ("a/b", "expected i/n"),
    ],
)
def test_words_that_are_no_shard(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(text)
