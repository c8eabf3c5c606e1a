"""What all nodes of a run share in a cluster: one connection's worth of identity, one watch of its pods, one ConfigMap.

The watch is list, watch, and the list again after any trouble: a restarted API server, an expired version, a lost
connection. Nobody waits for an event that may have been missed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retina_runner.bundle import AgentBundle
from retina_runner.executors import LinkLost
from retina_runner.executors.kubernetes import kubeconfig, objects
from retina_runner.executors.kubernetes.api import Api, Denied

OWNERS = 10
STATUS = ("phase", "reason", "message", "conditions", "containerStatuses")
RELIST_FIRST_S, RELIST_MOST_S = 0.5, 15.0
STRATEGIC = "application/strategic-merge-patch+json"


class Session:
    """One cluster and one run. Used by the threads of all its nodes; `creates` bounds how many ask at a time."""

    def __init__(self, kubeconfig_path: str, context: str, token: str, creates: int = 50):
        self.api = Api(kubeconfig.Access(kubeconfig.find(kubeconfig_path, context)))
        self.token = token
        self.creates = threading.BoundedSemaphore(creates)
        self._pods: dict[tuple[str, str], dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._watched: set[str] = set()
        self._listed: set[str] = set()
        self._shared: dict[str, Shared] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    # -- objects -------------------------------------------------------------------------------------------------------

    def create(self, job: Mapping[str, Any], agent: AgentBundle) -> None:
        """Create the Job, and the namespace's ConfigMap with the first. Idempotent. Raises Denied, LinkLost."""
        namespace = str(job["metadata"]["namespace"])
        with self._lock:
            if namespace not in self._shared:
                run = str(job["metadata"]["annotations"][objects.RUN_NOTE])
                made = objects.config_map(self.token, namespace, run, agent.name, agent.content)
                self._post(f"/api/v1/namespaces/{namespace}/configmaps", made)
                self._shared[namespace] = Shared()
            shared = self._shared[namespace]
        with self.creates:
            created = self._post(f"/apis/batch/v1/namespaces/{namespace}/jobs", job)
            if created is None:
                created = self.api.call("GET", self.job_path(namespace, str(job["metadata"]["name"])))
            with shared.lock:
                self._own(namespace, shared.joined(objects.owner(created)))

    def _own(self, namespace: str, owners: Sequence[Mapping[str, Any]]) -> None:
        """Have the ConfigMap go with these Jobs too."""
        if owners:
            path = f"/api/v1/namespaces/{namespace}/configmaps/{objects.config_map_name(self.token)}"
            change = {"metadata": {"ownerReferences": list(owners)}}
            self.api.call("PATCH", path, change, content_type=STRATEGIC)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Create; None when it is there already: an earlier try's answer may have been lost."""
        try:
            return self.api.call("POST", path, body)
        except Denied as denied:
            if denied.status == 409 and denied.reason == "AlreadyExists":
                return None
            raise

    def delete(self, namespace: str, job: str) -> None:
        """Delete the Job with its pod, and the ConfigMap with the namespace's last one. Idempotent."""
        with self._lock:
            shared = self._shared.setdefault(namespace, Shared())
        with shared.lock:
            heirs = shared.heirs(job)
            self._own(namespace, heirs)
            shared.leaving(job, heirs)
        self.delete_job(namespace, job)
        with shared.lock:
            last = shared.left(job)
        if last:
            self._delete(f"/api/v1/namespaces/{namespace}/configmaps/{objects.config_map_name(self.token)}")

    def create_job(self, job: Mapping[str, Any]) -> None:
        """Create a Job that needs no agent. Idempotent. Raises Denied, LinkLost."""
        with self.creates:
            self._post(f"/apis/batch/v1/namespaces/{job['metadata']['namespace']}/jobs", job)

    def delete_job(self, namespace: str, job: str) -> None:
        """Delete a Job with its pod, and nothing else. Idempotent."""
        with self.creates:
            self._delete(self.job_path(namespace, job))

    def jobs(self, namespace: str) -> list[tuple[str, str]]:
        """(token, name) of every Job of any run in the namespace. Raises Denied, LinkLost."""
        query = {"labelSelector": objects.RUN_LABEL}
        listed = self.api.pages(f"/apis/batch/v1/namespaces/{namespace}/jobs", query)
        return [(str(j["metadata"]["labels"][objects.RUN_LABEL]), str(j["metadata"]["name"])) for j in listed]

    def _delete(self, path: str) -> None:
        try:
            self.api.call("DELETE", path, {"propagationPolicy": "Background"})
        except Denied as denied:
            if denied.status != 404:
                raise

    @staticmethod
    def job_path(namespace: str, job: str) -> str:
        return f"/apis/batch/v1/namespaces/{namespace}/jobs/{job}"

    # -- pods ----------------------------------------------------------------------------------------------------------

    def pod(self, namespace: str, job: str) -> dict[str, Any] | None:
        """The Job's pod as it was last seen."""
        self._watch(namespace)
        with self._changed:
            return self._pods.get((namespace, job))

    def wait_for_list(self, namespace: str, timeout_s: float) -> None:
        """Return when it is known which pods there are, or after that time: until then there seem to be none."""
        self._watch(namespace)
        with self._changed:
            self._changed.wait_for(lambda: namespace in self._listed, timeout_s)

    def wait_for_change(self, namespace: str, job: str, seen: Mapping[str, Any] | None, timeout_s: float) -> None:
        """Return when the Job's pod isn't what was seen any more, or after that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._pods.get((namespace, job)) is not seen, timeout_s)

    def close(self) -> None:
        """Stop watching. What is in the cluster stays."""
        self._stop.set()

    def _watch(self, namespace: str) -> None:
        with self._lock:
            if namespace in self._watched:
                return
            self._watched.add(namespace)
        threading.Thread(target=self._follow, args=(namespace,), name=f"pods of {namespace}", daemon=True).start()

    def _follow(self, namespace: str) -> None:
        path, query = f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": f"{objects.RUN_LABEL}={self.token}"}
        delay_s = RELIST_FIRST_S
        while not self._stop.is_set():
            try:
                items, version = self.api.listed(path, query)
                with self._changed:
                    self._pods = {k: v for k, v in self._pods.items() if k[0] != namespace}
                    for pod in items:
                        self._pods[namespace, _job_of(pod)] = kept(pod)
                    self._listed.add(namespace)
                    self._changed.notify_all()
                delay_s = RELIST_FIRST_S
                for event in self.api.watch(path, query, version, self._stop):
                    self._take(namespace, event)
            except (LinkLost, Denied, ValueError):
                self._stop.wait(delay_s)
                delay_s = min(2 * delay_s, RELIST_MOST_S)

    def _take(self, namespace: str, event: Mapping[str, Any]) -> None:
        pod = event["object"]
        key = (namespace, _job_of(pod))
        with self._changed:
            if event["type"] == "DELETED":
                self._pods.pop(key, None)
            elif event["type"] in ("ADDED", "MODIFIED"):
                self._pods[key] = kept(pod)
            self._changed.notify_all()

    def events_of(self, namespace: str, kind: str, name: str) -> list[dict[str, Any]]:
        """What the cluster says of an object, oldest first; nothing where that may not be read."""
        fields = f"involvedObject.kind={kind},involvedObject.name={name}"
        try:
            found = list(self.api.pages(f"/api/v1/namespaces/{namespace}/events", {"fieldSelector": fields}))
        except (Denied, LinkLost):
            return []
        return sorted(found, key=lambda e: json.dumps([e.get("lastTimestamp") or e.get("eventTime") or ""]))


@dataclass
class Shared:
    """The Jobs of one namespace, which share a ConfigMap. A few of them own it, so that it goes when a dead runner's Jobs
    have gone: with thousands of owners it would be too large to be stored, and each change of it as large. As long as there
    are Jobs, one of them is an owner. Used under `lock`."""

    owners: set[str] = field(default_factory=set)
    others: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def joined(self, owner: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """A Job is there, as an owner would be written; those that are to be owners now."""
        name = str(owner["name"])
        if len(self.owners | {name}) <= OWNERS:
            self.owners.add(name)
            return [owner]
        self.others[name] = owner
        return []

    def heirs(self, name: str) -> list[Mapping[str, Any]]:
        """Those that must be owners before this Job is deleted, if it is the last one: the newest."""
        if self.owners - {name}:
            return []
        return [o for n, o in self.others.items() if n != name][-OWNERS:]

    def leaving(self, name: str, heirs: Sequence[Mapping[str, Any]]) -> None:
        """The heirs are owners, and this Job is about to be deleted."""
        self.owners |= {str(h["name"]) for h in heirs}
        for gone in (name, *(str(h["name"]) for h in heirs)):
            self.others.pop(gone, None)

    def left(self, name: str) -> bool:
        """A Job has been deleted; whether it was the last."""
        self.owners.discard(name)
        return not self.owners and not self.others


def kept(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth remembering of a pod, a small part: a run may have thousands."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    return {
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "status": {k: status[k] for k in STATUS if k in status},
    }


def _job_of(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-name", ""))
