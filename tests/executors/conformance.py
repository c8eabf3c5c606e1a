"""What every executor's link promises (executors.Link), as one suite: each executor's tests inherit it with a bench of its own.

Nothing here needs a right on the node: the plan runs `echo`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from retina_runner import planning
from retina_runner.bundle import agent_bundle
from retina_runner.executors import Link, LinkRefused
from retina_runner.runbook_reading import parse_runbook

RUNBOOK = b"""
name: conformance
duration: %ds
captures:
  - collect: [{command: {argv: [echo, %s], when: [before]}}]
"""


def plan_of(executor: str, node: str = "node", duration_s: int = 1, word: str = "hello") -> planning.NodePlan:
    """A plan that takes no rights."""
    runbook = parse_runbook(RUNBOOK % (duration_s, word.encode()), "conformance.yaml")
    places = {"": [planning.Place(node, executor)]}
    (plan,) = planning.build(runbook, places, "conformance-20261123031658UTC", agent_bundle())
    return plan


@dataclass(frozen=True)
class Bench:
    """`first` makes a link that may install; `again` one to the same place, as another runner would have."""

    executor: str
    work: str
    first: Callable[[], Link]
    again: Callable[[], Link]

    def directory(self) -> str:
        return f"{self.work}/conformance-{secrets.token_hex(4)}"


def open_link(make: Callable[[], Link]) -> Link:
    link = make()
    link.connect()
    link.install(agent_bundle())
    return link


def follow(link: Link, directory: str, until: str, first: int = 0) -> list[dict[str, Any]]:
    """The events from number `first` to the first of that name."""
    found: list[dict[str, Any]] = []
    for event in link.events(directory, first, threading.Event()):
        found.append(event)
        if event["event"] == until:
            return found
    raise AssertionError(f"the events ended without {until}: {found}")


def release(link: Link, directory: str, in_s: float = 1.0) -> None:
    t0 = time.time() + in_s
    told = {"t0": t0, "reference_t0": t0, "offset_s": 0.0, "offset_error_s": 0.0}
    assert link.call("release", directory, stdin=json.dumps(told).encode())["ok"]


class Conformance:
    """Inherit, and give a fixture `bench`."""

    def test_a_plan_from_check_to_remove(self, bench: Bench) -> None:
        # Whoever hears of T0 when the window is over has nothing to bring home: it is as long as a busy machine takes for a call.
        plan, directory = plan_of(bench.executor, duration_s=5), bench.directory()
        link = open_link(bench.first)
        link.install(agent_bundle())
        assert link.call("check", "--directory", bench.work, stdin=plan.text)["ok"]
        assert link.call("start", directory, stdin=plan.text)["ok"]
        assert link.call("start", directory, stdin=plan.text)["state"] == "already"
        seen = follow(link, directory, "ready")
        release(link, directory)
        seen += follow(link, directory, "end", len(seen))
        assert [e["seq"] for e in seen] == list(range(len(seen)))
        (archive,) = [e for e in seen if e["event"] == "archive"]
        whole = b"".join(link.fetch(directory, archive["name"], 0))
        assert len(whole) == archive["size_bytes"]
        assert hashlib.sha256(whole).hexdigest() == archive["sha256"]
        assert b"".join(link.fetch(directory, archive["name"], 1000)) == whole[1000:]
        assert b"".join(link.fetch(directory, archive["name"], len(whole))) == b""
        assert follow(link, directory, "end", 2) == seen[2:]
        assert link.call("remove", directory)["removed"]
        assert link.call("remove", directory)["removed"]
        link.close()
        link.close()

    def test_another_runner_finds_the_agent(self, bench: Bench) -> None:
        """The agent isn't concerned by a link that goes away."""
        plan, directory = plan_of(bench.executor, duration_s=100), bench.directory()
        link = open_link(bench.first)
        link.call("start", directory, stdin=plan.text)
        seen = follow(link, directory, "ready")
        release(link, directory)
        link.close()
        other = open_link(bench.again)
        assert other.call("alive", directory)["alive"]
        known = follow(other, directory, "window")
        assert known[: len(seen)] == seen
        assert other.call("stop", directory)["signalled"]
        assert follow(other, directory, "end", len(known))[-1]["state"] == "collected"
        assert other.call("remove", directory)["removed"]
        other.close()

    def test_the_clock_is_measured_with_its_error(self, bench: Bench) -> None:
        """All of these benches are on one machine, so the truth is 0."""
        link = open_link(bench.first)
        try:
            clock = link.clock()
            assert abs(clock.offset_s) <= clock.error_s + 0.001
            assert clock.error_s < 30
        finally:
            link.call("remove", bench.directory())
            link.close()

    def test_what_the_agent_refuses_is_refused_with_its_reason(self, bench: Bench) -> None:
        directory = bench.directory()
        link = open_link(bench.first)
        try:
            with pytest.raises(LinkRefused):
                link.call("start", directory, stdin=b'{"format": "none"}')
            link.call("start", directory, stdin=plan_of(bench.executor).text)
            with pytest.raises(LinkRefused) as refused:
                link.call("start", directory, stdin=plan_of(bench.executor, word="other").text)
            assert "holds another plan" in refused.value.why
        finally:
            assert link.call("remove", directory)["removed"]
            link.close()

    def test_whoever_gives_up_is_not_kept_waiting(self, bench: Bench) -> None:
        directory, give_up = bench.directory(), threading.Event()
        link = open_link(bench.first)
        try:
            link.call("start", directory, stdin=plan_of(bench.executor).text)
            for event in link.events(directory, 0, give_up):
                if event["event"] == "ready":
                    give_up.set()  # nothing else will come: nobody releases it
            assert give_up.is_set()
        finally:
            assert link.call("remove", directory)["removed"]
            link.close()


class SharedFolder:
    """Inherit this, too, where the runs of one node share a folder there, and in it the agent's file."""

    def test_a_run_that_ends_takes_the_agent_away_from_no_other(self, bench: Bench) -> None:
        """The file is shared: the last one to go removes it, however often one ends while another begins."""
        over = threading.Event()
        troubles: list[BaseException] = []

        def come_and_go() -> None:
            try:
                while not over.is_set():
                    passing = open_link(bench.again)
                    passing.call("remove", bench.directory())
                    passing.close()
            except BaseException as error:
                troubles.append(error)

        others = [threading.Thread(target=come_and_go) for _ in range(2)]
        for other in others:
            other.start()
        try:
            for _ in range(8):
                link, directory = open_link(bench.first), bench.directory()
                plan = plan_of(bench.executor)
                assert link.call("check", "--directory", bench.work, stdin=plan.text)["ok"]
                assert link.call("start", directory, stdin=plan.text)["ok"]
                follow(link, directory, "ready")
                release(link, directory, 0.1)
                follow(link, directory, "end")
                assert link.call("remove", directory)["removed"]
                link.close()
        finally:
            over.set()
            for other in others:
                other.join()
        assert not troubles, troubles
