"""A node of a cluster, as executors.Link: a Job on it, and exec into its pod for each of the agent's verbs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from retina_runner.bundle import AgentBundle
from retina_runner.executors import Clock, LinkLost, LinkRefused
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.api import STDERR, STDOUT, Denied, Exec
from retina_runner.executors.kubernetes.session import Session
from retina_runner.executors.local import answer_of

FOLLOW_S, STALL_S, POLL_S = 20.0, 60.0, 0.2
PINGS = 7
GONE_S = 60.0
HOPELESS = (
    "ErrImageNeverPull", "InvalidImageName", "ImagePullBackOff", "ImageInspectError", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError", "StartError", "CrashLoopBackOff",
)  # fmt: skip
"""Reasons of the kubelet for a container that waits, which waiting doesn't cure."""


@dataclass(frozen=True)
class PodReach:
    """What a later runner needs to get to the same pod again. `ready_timeout_s` is how long the pod may take to run."""

    kubeconfig: str
    context: str
    namespace: str
    job: str
    node: str
    token: str
    ready_timeout_s: float = 60.0


def reach_of(given: Mapping[str, Any]) -> PodReach | None:
    """The inverse of dataclasses.asdict, also after JSON; None for what isn't a pod. Unknown fields are passed over."""
    if "job" not in given:
        return None
    known = {f.name for f in fields(PodReach)}
    return PodReach(**{k: v for k, v in given.items() if k in known})


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
        self._started = False

    # -- the connection ------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """The Job is made by `install`, which knows the agent; here the node is looked at. After LinkLost, the pod is."""
        if self._pod:
            self._look()
            return
        if self._job is None:
            return
        try:
            node = self._session.api.call("GET", f"/api/v1/nodes/{self._to.node}")
        except Denied as denied:
            if denied.status == 403:
                return  # whoever may not read nodes finds out from the pod
            raise LinkRefused(f"node {self._to.node}", str(denied)) from None
        why = unfit(node)
        if why:
            raise LinkRefused(f"node {self._to.node}", why, "kubectl describe node " + self._to.node)

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
            self._pod = self._wait_for_pod()
        except Denied as denied:
            raise LinkRefused(f"Job {self._to.job}", str(denied), _permission(denied)) from None
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
            raise LinkRefused(f"Job {self._to.job}", str(denied), _permission(denied)) from None
        return ""

    def _wait_for_pod(self) -> str:
        """The pod's name, when its container runs. Raises LinkRefused with the scheduler's or the kubelet's own reason."""
        began, asked = time.monotonic(), 0.0
        while True:
            pod = self._session.pod(self._to.namespace, self._to.job)
            if pod is not None:
                if running(pod):
                    return str(pod["metadata"]["name"])
                why = hopeless(pod)
                if why:
                    raise self._refused(why)
            left = began + self._ready_timeout_s - time.monotonic()
            if left <= 0:
                raise self._refused(self._reason(pod), f"not running after {self._ready_timeout_s:.0f} s: ")
            if pod is None and time.monotonic() - max(asked, began) > 2.0:
                asked = time.monotonic()
                refusal = self._refusal_of_the_job()
                if refusal:
                    raise LinkRefused(f"Job {self._to.job}", refusal, _admission_hint(refusal, self._to.namespace))
            self._session.wait_for_change(self._to.namespace, self._to.job, pod, min(left, 1.0))

    def _refused(self, why: str, prefix: str = "") -> LinkRefused:
        return LinkRefused(f"pod of Job {self._to.job}", prefix + why, _image_hint(why))

    def _refusal_of_the_job(self) -> str:
        """Why the Job controller can't make the pod: quotas, PodSecurity, a service account that isn't there."""
        for event in self._session.events_of(self._to.namespace, "Job", self._to.job):
            if event.get("reason") == "FailedCreate":
                return str(event.get("message"))
        return ""

    def _reason(self, pod: Mapping[str, Any] | None) -> str:
        if pod is None:
            return self._refusal_of_the_job() or "the Job has no pod yet"
        for condition in pod["status"].get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] != "True":
                return f"{condition.get('reason')}: {condition.get('message')}"
        events = self._session.events_of(self._to.namespace, "Pod", str(pod["metadata"]["name"]))
        warnings = [e for e in events if e.get("type") == "Warning"] or events
        if warnings:
            return f"{warnings[-1].get('reason')}: {warnings[-1].get('message')}"
        return f"phase {pod['status'].get('phase')}"

    def _look(self) -> None:
        """Raise LinkRefused when the pod can't answer any more, with the reason."""
        try:
            pod = self._session.api.call("GET", f"/api/v1/namespaces/{self._to.namespace}/pods/{self._pod}")
        except Denied as denied:
            why = "it was deleted" if denied.status == 404 else str(denied)
            raise LinkRefused(f"pod {self._pod}", why, "what it had collected is lost") from None
        if not running(pod):
            raise LinkRefused(f"pod {self._pod}", ended(pod), "what it had collected is lost")

    def close(self) -> None:
        """Where nothing was started, nothing is kept."""
        if self._job is not None and self._pod and not self._started:
            try:
                self._discard()
            except (LinkRefused, LinkLost):
                pass  # the Job's own limit ends it

    # -- the agent -----------------------------------------------------------------------------------------------------

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        self._started = self._started or verb == "start"
        if verb == "remove":
            return self._remove(*arguments, limit_s=limit_s)
        return self._call(verb, *arguments, stdin=stdin, limit_s=limit_s)

    def _remove(self, *arguments: str, limit_s: float) -> dict[str, Any]:
        """The directory goes with its pod; an agent that still runs is ended first, so that it can say if it can't be."""
        answer: dict[str, Any] = {"removed": True}
        try:
            if self._pod:
                answer = self._call("remove", *arguments, limit_s=limit_s)
        except LinkRefused:
            pass  # the pod has ended, and its directory with it
        if answer.get("removed"):
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
        said = bytearray()
        try:
            while (got := process.read(STALL_S)) is not None:
                if got[0] == STDOUT:
                    yield got[1]
                elif got[0] == STDERR:
                    said += got[1]
                else:
                    # A stream that was cut short can look like one that has ended: the caller counts and hashes too.
                    if process.exit_status() != 0:
                        raise LinkLost(f"fetching {name} ended early: {said.decode('utf-8', 'replace')[-300:]}")
                    return
            raise LinkLost(f"fetching {name}: nothing came for {STALL_S:.0f} s")
        except LinkLost:
            self._look()
            raise
        finally:
            process.close()

    def clock(self) -> Clock:
        """The best of several round trips over one open exec: the node's time lies within half of that one."""
        best = Clock(0.0, float("inf"))
        process = self._exec("clock", stdin=True)
        try:
            for _ in range(PINGS):
                sent_wall, sent = time.time(), time.monotonic()
                process.write(b"\n")
                answer = _line(process, 30.0)
                took = time.monotonic() - sent
                if took / 2 < best.error_s:
                    best = Clock(float(answer) - (sent_wall + took / 2), took / 2)
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
                raise LinkRefused(f"pod {self._pod}", str(denied), _permission(denied)) from None
            self._look()
            raise LinkLost(f"exec: {denied}") from None
        except LinkLost:
            self._look()
            raise

    def _discard(self) -> None:
        """Delete the Job; returns when its pod is gone, or GONE_S have passed: the cluster goes on by itself."""
        to = self._to
        try:
            self._session.delete(to.namespace, to.job)
        except Denied as denied:
            raise LinkRefused(f"Job {to.job}", str(denied), _permission(denied)) from None
        deadline = time.monotonic() + GONE_S
        while (pod := self._session.pod(to.namespace, to.job)) is not None and time.monotonic() < deadline:
            self._session.wait_for_change(to.namespace, to.job, pod, 1.0)
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


def running(pod: Mapping[str, Any]) -> bool:
    """Whether the agent's container runs now, also in a pod that is about to end."""
    return any("running" in (s.get("state") or {}) for s in pod["status"].get("containerStatuses") or [])


def hopeless(pod: Mapping[str, Any]) -> str:
    """Why the container will never run; empty while there is hope."""
    if pod["status"].get("phase") in ("Failed", "Succeeded"):
        return ended(pod)
    for status in pod["status"].get("containerStatuses") or []:
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in HOPELESS:
            return f"{waiting['reason']}: {waiting.get('message') or 'no message'}"
    return ""


def ended(pod: Mapping[str, Any]) -> str:
    """How a pod that doesn't run has ended."""
    status = pod["status"]
    for container in status.get("containerStatuses") or []:
        over = (container.get("state") or {}).get("terminated")
        if over:
            why = ": ".join(str(p) for p in (over.get("reason"), (over.get("message") or "").strip()[:500]) if p)
            return f"its container has ended with {over.get('exitCode')}" + (f" ({why})" if why else "")
    return (
        ": ".join(str(p) for p in (status.get("reason"), status.get("message")) if p) or f"phase {status.get('phase')}"
    )


def unfit(node: Mapping[str, Any]) -> str:
    """Why a node can't do it; empty when it can. Cordoned and tainted ones can: the pod tolerates that."""
    system = (node["metadata"].get("labels") or {}).get("kubernetes.io/os", "linux")
    if system != "linux":
        return f"it runs {system}; the agent needs Linux"
    for condition in node["status"].get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] != "True":
            return f"not ready: {condition.get('reason')}: {condition.get('message')}"
    return ""


def _permission(denied: Denied) -> str:
    return "deploy/rbac.yaml has the rights that retina-run needs" if denied.status in (401, 403) else ""


def _admission_hint(why: str, namespace: str) -> str:
    if "PodSecurity" in why:
        return (
            f"choose a namespace for the Jobs that allows it (job: namespace: …), or: kubectl label namespace {namespace} "
            "pod-security.kubernetes.io/enforce=privileged --overwrite"
        )
    return ""


def _image_hint(why: str) -> str:
    return (
        "image: must name an image that the node can get; images/node/Containerfile makes one" if "Image" in why else ""
    )
