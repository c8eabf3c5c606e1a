"""An archive comes here whole or not at all, and what came before a break isn't fetched twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.executors import LinkLost
from retina_runner.fetching import Throttle, fetch

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FREE = Throttle(None)


class Node:
    """Hands the content out in pieces; the link breaks after `breaks` bytes of each of the first connections, or what comes
    from it just ends there (`quietly`)."""

    def __init__(self, content: bytes = CONTENT, breaks: tuple[int, ...] = (), quietly: bool = False):
        self.content, self.breaks, self.quietly = content, list(breaks), quietly
        self.asked: list[int] = []

    def read(self, offset: int) -> Iterator[bytes]:
        self.asked.append(offset)
        limit = self.breaks.pop(0) if self.breaks else None
        given = 0
        for begin in range(offset, len(self.content), 1000):
            if limit is not None and given >= limit:
                if self.quietly:
                    return
                raise LinkLost("cut")
            yield self.content[begin : begin + 1000]
            given += 1000


def test_it_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    node, path = Node(breaks=(300_000, 200_000)), tmp_path / "a.tar.gz"
    for _ in range(2):
        with pytest.raises(LinkLost):
            fetch(node.read, path, len(CONTENT), DIGEST, FREE)
        assert not path.exists()
    assert fetch(node.read, path, len(CONTENT), DIGEST, FREE) == ""
    assert node.asked == [0, 300_000, 500_000]
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_a_stream_that_ends_too_soon_is_asked_for_the_rest(tmp_path: Path) -> None:
    """Without a word that it was cut short."""
    node, path = Node(breaks=(300_000, 200_000), quietly=True), tmp_path / "a.tar.gz"
    assert fetch(node.read, path, len(CONTENT), DIGEST, FREE) == ""
    assert node.asked == [0, 300_000, 500_000]
    assert path.read_bytes() == CONTENT


def test_what_is_here_already_is_not_fetched_again(tmp_path: Path) -> None:
    node, path = Node(), tmp_path / "a.tar.gz"
    path.write_bytes(CONTENT)
    assert fetch(node.read, path, len(CONTENT), DIGEST, FREE) == ""
    assert node.asked == []


def test_a_part_that_is_of_something_else_is_thrown_away(tmp_path: Path) -> None:
    node, path = Node(), tmp_path / "a.tar.gz"
    (tmp_path / "a.tar.gz.part").write_bytes(b"x" * 5000)
    assert fetch(node.read, path, len(CONTENT), DIGEST, FREE) == ""
    assert node.asked == [5000, 0]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_what_differs_from_the_node_s_digest_never_gets_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    wrong = fetch(Node(content).read, path, len(CONTENT), DIGEST, FREE)
    assert f"{len(content)} of {len(CONTENT)} B came over" in wrong
    assert list(tmp_path.iterdir()) == []


def test_a_throttle_takes_at_least_its_time() -> None:
    throttle, begun = Throttle(1_000_000), time.monotonic()
    for _ in range(4):
        throttle.take(50_000)
    assert time.monotonic() - begun >= 0.2


def test_a_throttle_s_wait_is_over_when_somebody_gives_up() -> None:
    asked: list[float] = []
    throttle = Throttle(1.0, asked.append)
    throttle.take(3600)
    assert asked == [pytest.approx(3600)]
