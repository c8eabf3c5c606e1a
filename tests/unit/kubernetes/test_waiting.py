"""A Job's pod that is waited for, by a mocked API server that answers when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from retina_runner.executors.kubernetes import kubeconfig
from retina_runner.executors.kubernetes import session as sessions
from retina_runner.executors.kubernetes.session import Session
from retina_runner.executors.kubernetes.waiting import unfit, wait_until_gone

POD = {
    "metadata": {"name": "job-1-x", "labels": {"batch.kubernetes.io/job-name": "job-1"}},
    "status": {"phase": "Running"},
}
WAIT_S = 30.0


class MockedApi:
    """Lists one pod when `answers` is set, and tells that it is deleted when `gone` is."""

    def __init__(self) -> None:
        self.answers, self.gone = threading.Event(), threading.Event()

    def listed(self, path: str, query: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
        self.answers.wait(WAIT_S)
        return [POD], "1"

    def watch(self, path: str, query: dict[str, str], version: str, stop: threading.Event) -> Iterator[dict[str, Any]]:
        self.gone.wait(WAIT_S)
        yield {"type": "DELETED", "object": POD}
        stop.wait(WAIT_S)


def test_a_pod_that_is_not_known_of_yet_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a runner that adopts another's run: it has looked at no pods before."""
    api = MockedApi()
    monkeypatch.setattr(sessions, "Api", lambda access: api)
    monkeypatch.setattr(kubeconfig, "Access", lambda found: None)
    monkeypatch.setattr(kubeconfig, "find", lambda path, context: None)
    session = Session("", "", "token")
    waiting = threading.Thread(target=wait_until_gone, args=(session, "here", "job-1", WAIT_S))
    waiting.start()
    try:
        waiting.join(0.2)
        assert waiting.is_alive(), "nobody has said yet which pods there are"
        api.answers.set()
        session.wait_for_list("here", WAIT_S)
        waiting.join(0.2)
        assert waiting.is_alive(), "it is there"
    finally:
        api.answers.set()
        api.gone.set()
        waiting.join(WAIT_S)
        session.close()
    assert not waiting.is_alive()
    assert session.pod("here", "job-1") is None


@pytest.mark.parametrize(
    ("labels", "ready", "why"),
    [
        ({"kubernetes.io/os": "windows"}, "True", "it runs windows; the agent needs Linux"),
        ({"kubernetes.io/os": "linux"}, "True", ""),
        ({}, "True", ""),
        ({}, "Unknown", "not ready: NodeStatusUnknown: Kubelet stopped posting node status."),
    ],
)
def test_a_node_on_which_nothing_of_ours_runs_is_refused_with_its_reason(
    labels: dict[str, str], ready: str, why: str
) -> None:
    said = {"reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."} if ready != "True" else {}
    node = {
        "metadata": {"labels": labels},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": ready, **said}]},
    }
    assert unfit(node) == why
