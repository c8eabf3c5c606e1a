"""Until a Job's pod runs, or why it never will: the scheduler's, the kubelet's and the admission's own words. And until it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from retina_runner.executors import LinkRefused
from retina_runner.executors.kubernetes.api import Denied
from retina_runner.executors.kubernetes.session import Session

LOOK_S = 2.0
"""How often events are asked for while a pod doesn't run."""
HOPELESS = (
    "ErrImageNeverPull", "InvalidImageName", "ImagePullBackOff", "ImageInspectError", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError", "StartError", "CrashLoopBackOff",
)  # fmt: skip
"""Reasons of the kubelet for a container that waits, which waiting doesn't cure."""
NEVER_MOUNTED = ("hostPath type check failed",)
"""In the kubelet's words on a mount that failed: it tries again for ever, and the folder isn't there."""


def wait_for_pod(
    session: Session, namespace: str, job: str, ready_timeout_s: float, give_up: threading.Event | None = None
) -> str:
    """The name of the Job's pod, when its container runs. Raises LinkRefused with the reason; also soon after `give_up` is set."""
    began, asked = time.monotonic(), 0.0
    while give_up is None or not give_up.is_set():
        pod = session.pod(namespace, job)
        if pod is not None:
            if running(pod):
                return str(pod["metadata"]["name"])
            why = hopeless(pod)
            if why:
                raise _refused(job, why)
        left = began + ready_timeout_s - time.monotonic()
        if left <= 0:
            raise _refused(job, _reason(session, namespace, job, pod), f"not running after {ready_timeout_s:.0f} s: ")
        if time.monotonic() - max(asked, began) > LOOK_S:
            asked = time.monotonic()
            if pod is None:
                refusal = _refusal_of_the_job(session, namespace, job)
                if refusal:
                    raise LinkRefused(f"Job {job}", refusal, _admission_hint(refusal, namespace))
            elif _scheduled(pod):
                why = _never_mounted(session, namespace, str(pod["metadata"]["name"]))
                if why:
                    raise _refused(job, why)
        session.wait_for_change(namespace, job, pod, min(left, 1.0))
    raise LinkRefused(f"pod of Job {job}", "interrupted")


def wait_until_gone(session: Session, namespace: str, job: str, limit_s: float) -> None:
    """Until the Job's pod isn't there any more, or for that time: the cluster goes on by itself."""
    deadline = time.monotonic() + limit_s
    session.wait_for_list(namespace, limit_s)
    while (pod := session.pod(namespace, job)) is not None and time.monotonic() < deadline:
        session.wait_for_change(namespace, job, pod, 1.0)


def check_node(session: Session, node: str) -> None:
    """Raises LinkRefused when nothing of ours can run on it, as far as this user may know."""
    try:
        why = unfit(session.api.call("GET", f"/api/v1/nodes/{node}"))
    except Denied as denied:
        if denied.status == 403:
            return  # whoever may not read nodes finds out from the pod
        raise LinkRefused(f"node {node}", str(denied)) from None
    if why:
        raise LinkRefused(f"node {node}", why, f"kubectl describe node {node}")


def check_pod(session: Session, namespace: str, pod: str, hint: str = "") -> None:
    """Raises LinkRefused, with the reason and that hint, when the pod can't answer any more."""
    try:
        found = session.api.call("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")
    except Denied as denied:
        why = "it was deleted" if denied.status == 404 else str(denied)
        raise LinkRefused(f"pod {pod}", why, hint) from None
    if not running(found):
        raise LinkRefused(f"pod {pod}", ended(found), hint)


def _refused(job: str, why: str, prefix: str = "") -> LinkRefused:
    return LinkRefused(f"pod of Job {job}", prefix + why, _image_hint(why))


def _refusal_of_the_job(session: Session, namespace: str, job: str) -> str:
    """Why the Job controller can't make the pod: quotas, PodSecurity, a service account that isn't there."""
    for event in session.events_of(namespace, "Job", job):
        if event.get("reason") == "FailedCreate":
            return str(event.get("message"))
    return ""


def _never_mounted(session: Session, namespace: str, pod: str) -> str:
    for event in session.events_of(namespace, "Pod", pod):
        message = str(event.get("message"))
        if event.get("reason") == "FailedMount" and any(words in message for words in NEVER_MOUNTED):
            return f"FailedMount: {message}"
    return ""


def _reason(session: Session, namespace: str, job: str, pod: Mapping[str, Any] | None) -> str:
    if pod is None:
        return _refusal_of_the_job(session, namespace, job) or "the Job has no pod yet"
    for condition in pod["status"].get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return f"{condition.get('reason')}: {condition.get('message')}"
    events = session.events_of(namespace, "Pod", str(pod["metadata"]["name"]))
    warnings = [e for e in events if e.get("type") == "Warning"] or events
    if warnings:
        return f"{warnings[-1].get('reason')}: {warnings[-1].get('message')}"
    return f"phase {pod['status'].get('phase')}"


def _scheduled(pod: Mapping[str, Any]) -> bool:
    return any(c["type"] == "PodScheduled" and c["status"] == "True" for c in pod["status"].get("conditions") or [])


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


def permission_hint(denied: Denied) -> str:
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
