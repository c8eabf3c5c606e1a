"""A node of a cluster, as executors.Link: a Job on it, and exec into its pod for each of the agent's verbs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from retina_runner.bundle import AgentBundle
from retina_runner.executors import EXACT_S, Clock, LinkLost, LinkRefused
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.api import STDERR, STDOUT, Denied, Exec, Unsuccessful
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.executors.kubernetes.session import Session
from retina_runner.executors.kubernetes.waiting import (
    check_node,
    check_pod,
    permission_hint,
    running,
    wait_for_pod,
    wait_until_gone,
)
from retina_runner.executors.local import answer_of

FOLLOW_S, STALL_S, POLL_S = 20.0, 60.0, 0.2
PINGS = 7
GONE_S = 60.0


class PodLink:
    """A link to the pod of one Job; see `executors.Link`.

    `job` is the manifest; None for a Job of another runner: then a pod is used if it runs, and nothing is created.
    """

    def __init__(self, session: Session, to: PodReach, job: Mapping[str, Any] | None):
        self._session, self._to, self._job = session, to, job
        self._ready_timeout_s = to.ready_timeout_s
        self._agent: AgentBundle | None = None
        self._argv: list[str] = []
        self._pod = ""
        self._started: set[str] = set()
        self._used = False

    # -- the connection ------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """The Job is made by `install`, which knows the agent; here the node is looked at. After LinkLost, the pod is."""
        if self._pod:
            self._look()
            return
        if self._job is not None:
            check_node(self._session, self._to.node)

    def install(self, agent: AgentBundle) -> None:
        if self._pod:
            return
        self._agent = agent
        self._argv = objects.agent_argv(agent.name)
        if self._job is None:
            self._pod = self._find()
            return
        try:
            self._session.create(self._job, agent)
            self._pod = wait_for_pod(self._session, self._to.namespace, self._to.job, self._ready_timeout_s)
        except Denied as denied:
            raise LinkRefused(f"Job {self._to.job}", str(denied), permission_hint(denied)) from None
        except BaseException:
            self._discard()
            raise

    def _find(self) -> str:
        """The pod of a Job that is there already, if it runs; empty otherwise."""
        query = {"labelSelector": f"batch.kubernetes.io/job-name={self._to.job}"}
        try:
            for pod in self._session.api.pages(f"/api/v1/namespaces/{self._to.namespace}/pods", query):
                if running(pod):
                    return str(pod["metadata"]["name"])
        except Denied as denied:
            raise LinkRefused(f"Job {self._to.job}", str(denied), permission_hint(denied)) from None
        return ""

    def _look(self) -> None:
        check_pod(self._session, self._to.namespace, self._pod, "what it had collected is lost")

    def close(self) -> None:
        """Where nothing was started, nothing is kept."""
        if self._job is not None and self._pod and not self._used:
            try:
                self._discard()
            except (LinkRefused, LinkLost):
                pass  # the Job's own limit ends it

    # -- the agent -----------------------------------------------------------------------------------------------------

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        if verb == "start":
            self._used = True
            self._started.add(arguments[0])
        if verb == "remove":
            return self._remove(*arguments, limit_s=limit_s)
        return self._call(verb, *arguments, stdin=stdin, limit_s=limit_s)

    def _remove(self, *arguments: str, limit_s: float) -> dict[str, Any]:
        """The last directory goes with its pod; an agent that still runs is ended first, so that it can say if it can't be."""
        answer: dict[str, Any] = {"removed": True}
        try:
            if self._pod:
                answer = self._call("remove", *arguments, limit_s=limit_s)
        except LinkRefused:
            pass  # the pod has ended, and its directory with it
        if answer.get("removed"):
            self._started.difference_update(arguments[:1])
        if answer.get("removed") and not self._started:
            self._discard()
        return answer

    def _call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        process = self._exec(verb, *arguments, stdin=True)
        out, err = bytearray(), bytearray()
        try:
            process.write(stdin)
            process.end_input()
            deadline = time.monotonic() + limit_s
            while (got := process.read(max(0.05, deadline - time.monotonic()))) is not None:
                if got[0] == STDOUT:
                    out += got[1]
                elif got[0] == STDERR:
                    err += got[1]
                else:
                    break
            else:
                raise LinkLost(f"agent {verb}: no answer within {limit_s:.0f} s")
            return answer_of(verb, process.exit_status(), bytes(out), bytes(err))
        except LinkLost:
            self._look()
            raise
        finally:
            process.close()

    def events(self, directory: str, first: int, give_up: threading.Event) -> Iterator[dict[str, Any]]:
        while not give_up.is_set():
            got = 0
            for line in self._lines(directory, first, give_up):
                event: dict[str, Any] = json.loads(line)
                if "event" not in event:
                    return  # the directory is gone
                got, first = got + 1, first + 1
                yield event
                if event["event"] == "end":
                    return
            if not got and not give_up.is_set() and not self.call("alive", directory)["alive"]:
                return

    def _lines(self, directory: str, first: int, give_up: threading.Event) -> Iterator[bytes]:
        process = self._exec("events", directory, "--from", str(first), "--follow", str(FOLLOW_S))
        rest, quiet_since = b"", time.monotonic()
        try:
            while not give_up.is_set():
                got = process.read(POLL_S)
                if got is None:
                    if time.monotonic() - quiet_since > FOLLOW_S + STALL_S:
                        raise LinkLost("events: nothing came, and no end")
                    continue
                quiet_since = time.monotonic()
                if got[0] == STDOUT:
                    *lines, rest = (rest + got[1]).split(b"\n")
                    yield from lines
                elif got[0] != STDERR:
                    process.exit_status()
                    return
        except LinkLost:
            self._look()
            raise
        finally:
            process.close()

    def fetch(self, directory: str, name: str, offset: int) -> Iterator[bytes]:
        process = self._exec("fetch", directory, "--name", name, "--offset", str(offset))
        try:
            yield from process.stdout(STALL_S)
        except Unsuccessful as why:
            self._look()
            raise LinkLost(f"fetching {name} ended early: {why}") from None
        except LinkLost:
            self._look()
            raise
        finally:
            process.close()

    def clock(self, enough_s: float = EXACT_S) -> Clock:
        """The best of several round trips over one open exec: the node's time lies within half of that one."""
        best = Clock(0.0, float("inf"))
        process = self._exec("clock", stdin=True)
        try:
            for _ in range(PINGS):
                sent, sent_wall = time.monotonic(), time.time()  # in this order; see ServedLink.clock
                process.write(b"\n")
                answer = _line(process, 30.0)
                took = time.monotonic() - sent
                if took / 2 < best.error_s:
                    best = Clock(float(answer) - (sent_wall + took / 2), took / 2)
                if best.error_s <= enough_s:
                    break
            process.end_input()
        except ValueError as error:
            raise LinkLost(f"clock: {error}") from error
        finally:
            process.close()
        return best

    def _exec(self, verb: str, *arguments: str, stdin: bool = False) -> Exec:
        if not self._pod:
            raise LinkRefused("agent", "it isn't installed yet")
        try:
            return self._session.api.exec(
                self._to.namespace, self._pod, objects.CONTAINER, [*self._argv, verb, *arguments], stdin
            )
        except Denied as denied:
            if denied.status == 403:
                raise LinkRefused(f"pod {self._pod}", str(denied), permission_hint(denied)) from None
            self._look()
            raise LinkLost(f"exec: {denied}") from None
        except LinkLost:
            self._look()
            raise

    def _discard(self) -> None:
        """Delete the Job; returns when its pod is gone, or GONE_S have passed."""
        to = self._to
        try:
            self._session.delete(to.namespace, to.job)
        except Denied as denied:
            raise LinkRefused(f"Job {to.job}", str(denied), permission_hint(denied)) from None
        wait_until_gone(self._session, to.namespace, to.job, GONE_S)
        self._pod = ""


def _line(process: Exec, limit_s: float) -> bytes:
    """The next line of its stdout, which has nothing else to say. (Each stream begins with an empty message.)"""
    line, deadline = b"", time.monotonic() + limit_s
    while not line.endswith(b"\n"):
        got = process.read(max(0.05, deadline - time.monotonic()))
        if got is None or got[0] not in (STDOUT, STDERR):
            raise LinkLost("clock: no answer")
        line += got[1] if got[0] == STDOUT else b""
    return line
