"""The agent's records are the standard library's dataclasses to whoever uses them, and cost a starting agent less."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent import records
from retina_runner.bundle import agent_bundle

# What runs, where type checkers are shown the standard library's.
OURS = SimpleNamespace(
    dataclass=records._dataclass, field=records._Field, asdict=records._asdict, replace=records._replace
)


def classes(kind: Any) -> SimpleNamespace:
    """The same classes, made by either."""

    @kind.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2
        more: dict[str, int] = kind.field(default_factory=dict, repr=False)

        def sum(self) -> int:
            return self.x + self.y

    @kind.dataclass
    class Path_:
        points: list[Any] = kind.field(default_factory=list)
        named: Any = None

    return SimpleNamespace(Point=Point, Path=Path_, kind=kind)


BOTH = classes(OURS), classes(dataclasses)


def outcome(act: Any) -> Any:
    """What it returns, or the kind of error that it raises."""
    try:
        return act()
    except (TypeError, AttributeError) as error:
        return TypeError if isinstance(error, TypeError) else AttributeError


words = st.sampled_from(["x", "y", "more", "z"])
values = st.integers(0, 3)


@given(st.lists(values, max_size=4), st.dictionaries(words, values))
def test_a_record_is_made_from_the_same_words(positional: list[int], named: dict[str, int]) -> None:
    ours, theirs = (outcome(lambda made=made: repr(made.Point(*positional, **named))) for made in BOTH)
    if isinstance(theirs, str):
        theirs, ours = (text.rpartition("Point(")[2] for text in (theirs, ours))
    assert ours == theirs


@given(values, values, values, values)
def test_records_are_compared_and_hashed_by_their_values(a: int, b: int, c: int, d: int) -> None:
    for made in BOTH:
        first, second = made.Point(a, b, ()), made.Point(c, d, ())
        assert (first == second) is ((a, b) == (c, d))
        assert len({first, second}) == 1 + ((a, b) != (c, d))
        assert made.Path([first]) == made.Path([made.Point(a, b, ())])
        assert first != (a, b, ())
        assert outcome(lambda made=made: hash(made.Path())) is TypeError


def test_a_frozen_one_stays_as_it_is_and_another_can_be_changed() -> None:
    for made in BOTH:
        point, path = made.Point(1), made.Path()
        assert outcome(lambda point=point: setattr(point, "x", 2)) is AttributeError
        assert outcome(lambda point=point: delattr(point, "x")) is AttributeError
        path.named = 3
        assert (point.x, point.sum(), path.named, made.Path().named) == (1, 3, 3, None)
        assert copy.deepcopy(point) == point


def test_each_record_has_defaults_of_its_own() -> None:
    for made in BOTH:
        made.Path().points.append(1)
        assert made.Path().points == []
        assert made.Point(1).more is not made.Point(1).more


def test_records_become_objects_all_the_way_down_and_others_with_changes() -> None:
    ours, theirs = (
        made.kind.asdict(made.Path([made.Point(1), (made.Point(2),)], {"a": made.Point(3)})) for made in BOTH
    )
    assert ours == theirs
    for made in BOTH:
        assert made.kind.replace(made.Point(1, 5), x=4) == made.Point(4, 5)
        assert outcome(lambda made=made: made.kind.replace(made.Point(1), z=4)) is TypeError


def test_a_serving_agent_has_imported_nothing_that_only_some_plans_need(tmp_path: Path) -> None:
    """Every millisecond of its start is one of each node's, and comes before T0."""
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(agent_bundle().content)
    seldom = [
        "dataclasses",
        "inspect",
        "ast",
        "traceback",
        "socket",
        "tarfile",
        "ctypes.util",
        "argparse",
        "http.client",
    ]
    seldom += [
        f"retina_runner.agent.{name}"
        for name in ("archive", "manifest", "recorder", "conditions", "counters", "pcap", "pod", "rescue")
    ]
    script = (
        "import json, sys; sys.argv[:] = [sys.argv[1], 'serve']; sys.path.insert(0, sys.argv[0])\n"
        "import os; os._exit = lambda status: print(json.dumps(sorted(sys.modules))) or sys.stdout.flush() or sys.exit()\n"
        "from retina_runner.agent.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(agent)], input="", capture_output=True, text=True, check=True
    )
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "retina_runner.agent.session" in imported
    assert [name for name in seldom if name in imported] == []


@pytest.mark.parametrize("path", sorted(Path(records.__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_the_agent_makes_no_dataclass_of_the_standard_library(path: Path) -> None:
    if path.name != "records.py":
        assert "dataclasses import" not in path.read_text()
