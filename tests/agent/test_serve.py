"""What the serving process does itself, and what it leaves to a fork."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retina_runner import schema
from retina_runner.agent import collectors, process
from retina_runner.agent.serve import _looks_only
from tests.agent.test_verbs import plan


def entries(*names: str) -> list[dict[str, Any]]:
    return [{"id": name, "name": name, "options": {}} for name in names]


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({}, True),
        ({"collectors": entries("iptables", "network-state", "files")}, True),
        ({"collectors": entries("command", "tcpdump")}, False),
        ({"collectors": entries("ebpf")}, False),
        ({"collectors": entries("no-such")}, False),
        ({"pod": {"namespace": "a", "name": "b", "uid": "c"}}, False),
    ],
)
def test_a_check_that_only_looks_is_done_here(changes: dict[str, Any], here: bool) -> None:
    assert _looks_only(json.dumps(plan(**changes)).encode()) is here


def test_what_is_no_plan_is_not() -> None:
    assert not _looks_only(b"[]")
    assert not _looks_only(b"{")


@pytest.mark.parametrize("name", sorted(collectors.LOOKING))
def test_whoever_is_said_to_look_only_starts_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr(process, "run", started)
    options = schema.normalise({"argv": ["uname"], "paths": ["/etc/hosts"]}, schema.load(f"collectors/{name}"))
    collectors.problems(name, options)
