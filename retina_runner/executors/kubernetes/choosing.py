"""Which nodes are meant, and the addresses of which pods: the runbook's `nodes: {kubernetes: …}` against the cluster.

Only reads. Nothing that is asked for is left out silently: no match is an error with the nearest names, and a node that is
cordoned, tainted, not ready or of another system is chosen, and says so when it is reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from retina_runner import filters
from retina_runner.documents import nearest
from retina_runner.errors import UsageError
from retina_runner.executors import LinkLost
from retina_runner.executors.kubernetes import kubeconfig
from retina_runner.executors.kubernetes.api import Api, Denied, NoCredential
from retina_runner.executors.kubernetes.objects import JobSettings, job_name, names, pairs
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.label_selectors import SelectorError, read

OWNERS = {
    "deployment": "apis/apps/v1", "replicaset": "apis/apps/v1", "statefulset": "apis/apps/v1", "daemonset": "apis/apps/v1",
    "job": "apis/batch/v1",
}  # fmt: skip
IMAGE_VARIABLE = "RETINA_RUN_NODE_IMAGE"
POD_KEYS = ("pods", "pod_names", "owner", "service")
ALIVE = ("Running", "Pending")
INSIDE = "pod-netns"
"""The `scope` of a capture inside each pod's network namespace."""
STATIC_UID = "kubernetes.io/config.hash"
"""A static pod's annotation with the UID that its kubelet knows it by; the API server's mirror of it has another."""


@dataclass(frozen=True)
class Chosen:
    """A node, and what every filter there is AND-ed with; or a pod on it (see schemas/plan.json), to look inside.

    `pods` are those that it was chosen for, as people read them: `shop/web-1 (10.0.1.5, fd00::5)`.
    """

    node: str
    scope: filters.Expression | None = None
    pod: Mapping[str, str] | None = None
    pods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The nodes in the order of their names. `unsettled` pods are meant too, and have no node or no address yet; `missing`
    says of each pod that was named and isn't there what is near."""

    nodes: tuple[Chosen, ...]
    notes: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class NoPods(UsageError):
    """No pod is what the selection means, or none of them can be captured yet."""


@dataclass(frozen=True)
class Selected:
    """The nodes of one capture, how their cluster is reached, and what their Jobs are like."""

    nodes: tuple[Chosen, ...]
    kubeconfig: str
    context: str
    settings: JobSettings
    notes: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def reach(self, node: str, token: str, number: int, ready_timeout_s: float) -> PodReach:
        """The Job of that number, on that node."""
        return PodReach(
            self.kubeconfig,
            self.context,
            self.settings.namespace,
            job_name(token, number),
            node,
            token,
            ready_timeout_s,
        )


def select(selection: Mapping[str, Any]) -> Selected:
    """Carry out the runbook's `nodes: {kubernetes: …}`. Raises UsageError."""
    context = kubeconfig.find(str(selection.get("kubeconfig") or ""), str(selection.get("context") or ""))
    settings = _settings(selection, context.namespace)
    found = choose(Api(kubeconfig.Access(context)), selection, context.namespace)
    return Selected(found.nodes, context.files, context.name, settings, found.notes, found.unsettled, found.missing)


def _settings(selection: Mapping[str, Any], default_namespace: str) -> JobSettings:
    job = selection.get("job") or {}
    image = str(selection.get("image") or os.environ.get(IMAGE_VARIABLE, ""))
    if not image:
        raise UsageError(
            f"name the image that holds the tools: image: here, or {IMAGE_VARIABLE} in the environment; "
            "images/node/Containerfile makes one"
        )
    return JobSettings(
        namespace=str(job.get("namespace") or selection.get("namespace") or default_namespace),
        image=image,
        image_pull_policy=str(job.get("image_pull_policy") or "IfNotPresent"),
        pull_secrets=names(job.get("pull_secrets")),
        service_account=str(job.get("service_account") or ""),
        annotations=pairs(job.get("annotations")),
        labels=pairs(job.get("labels")),
        priority_class=str(job.get("priority_class") or ""),
        requests=pairs(job.get("requests")),
        limits=pairs(job.get("limits")),
        capabilities=names(job.get("capabilities")),
        privileged=bool(job.get("privileged")),
    )


def choose(api: Api, selection: Mapping[str, Any], default_namespace: str) -> Choice:
    """Carry out a selection. Raises UsageError for no node, NoPods for no pod, UsageError for what the server refuses."""
    try:
        nodes = _nodes(api, selection)
        if not by_pods(selection):
            return Choice(tuple(Chosen(n) for n in sorted(nodes)), notes_of(nodes[n] for n in sorted(nodes)))
        chosen, unsettled, missing = _of_pods(api, selection, default_namespace, nodes)
        notes = [f"pod {name} has no address yet; it is looked for again before T0" for name in unsettled]
        return Choice(
            chosen, (*notes_of(nodes[n] for n in dict.fromkeys(c.node for c in chosen)), *notes), unsettled, missing
        )
    except Denied as denied:
        raise UsageError(f"Kubernetes, context {api.access.context.name}: {denied}") from None
    except NoCredential as none:
        raise UsageError(f"Kubernetes, {none}") from None
    except LinkLost as lost:
        raise UsageError(f"Kubernetes, context {api.access.context.name}: {lost}") from None


def by_pods(selection: Mapping[str, Any]) -> bool:
    """Whether nodes are chosen for the pods on them, which may move."""
    return any(selection.get(k) for k in POD_KEYS)


def _nodes(api: Api, selection: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All nodes that the selection's own words for nodes leave."""
    selector = selector_text(selection.get("node_selector"))
    found = {n["metadata"]["name"]: _looked_at(n) for n in api.pages("/api/v1/nodes", _query(selector))}
    wanted = selection.get("nodes")
    if isinstance(wanted, str):
        wanted = None if wanted == "all" else [wanted]
    if wanted is not None:
        for name in wanted:
            if name not in found:
                hint = nearest(name, found)
                raise UsageError(f"the cluster has no node {name}" + (f"; {hint}" if hint else ""))
        found = {name: found[name] for name in wanted}
    if not found:
        labels = sorted(
            {f"{k}={v}" for n in api.pages("/api/v1/nodes") for k, v in n["metadata"].get("labels", {}).items()}
        )
        raise UsageError(f"no node has labels {selector}; {nearest(selector, labels)}".rstrip("; "))
    return found


def _looked_at(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a node that is looked at; the rest, its images above all, is most of it."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    return {
        "metadata": {"name": metadata["name"]},
        "spec": {k: spec[k] for k in ("unschedulable", "taints") if k in spec},
        "status": {"conditions": [c for c in status.get("conditions") or [] if c["type"] == "Ready"]},
    }


def _of_pods(
    api: Api, selection: Mapping[str, Any], default_namespace: str, nodes: Mapping[str, Any]
) -> tuple[tuple[Chosen, ...], tuple[str, ...], tuple[str, ...]]:
    """The nodes for their pods, the names of pods that are to come, and what there is to say of those that aren't there."""
    namespaces = _namespaces(api, selection, default_namespace)
    found = [pod for namespace in namespaces for pod in _pods(api, selection, namespace)]
    inside = selection.get("scope") == INSIDE
    alive = [p for p in found if p["status"].get("phase") in ALIVE]
    # The packets of a pod that is about to end are still its packets; its namespace is about to be taken apart.
    alive = [p for p in alive if not (inside and p["metadata"].get("deletionTimestamp"))]
    on: dict[str, list[dict[str, Any]]] = {}
    unsettled = []
    for pod in sorted(alive, key=name_of):
        if not settled(pod):
            unsettled += [] if pod["metadata"].get("deletionTimestamp") else [name_of(pod)]
        elif pod["spec"]["nodeName"] in nodes:
            on.setdefault(pod["spec"]["nodeName"], []).append(pod)
    if not on and unsettled:
        raise NoPods(f"pod {unsettled[0]} and the others that were chosen have no address yet: wait until they run")
    if not on:
        raise NoPods(_no_pod(api, selection, namespaces, found))
    if inside:
        chosen = [
            Chosen(node, pod=view, pods=(told(pod),))
            for node, pods in sorted(on.items())
            for pod, view in zip(pods, views_of(pods), strict=True)
        ]
    else:
        chosen = [Chosen(node, scope_of(pods), pods=tuple(map(told, pods))) for node, pods in sorted(on.items())]
    return tuple(chosen), tuple(unsettled), tuple(_missing(api, selection, namespaces, found))


def _missing(
    api: Api, selection: Mapping[str, Any], namespaces: Sequence[str], found: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Of each pod that is named, by itself or besides other words, and that no namespace has: what is near."""
    known = {p["metadata"]["name"] for p in found}
    absent = [name for name in selection.get("pod_names") or () if name not in known]
    if not absent:
        return
    there = {p["metadata"]["name"] for n in namespaces for p in api.pages(f"/api/v1/namespaces/{quote(n)}/pods")}
    for name in absent:
        if name not in there:  # else other words leave it out, which they are there for
            hint = nearest(name, sorted(there))
            yield f"no pod of {_where(namespaces)} is called {name}" + (f"; {hint}" if hint else "")


def _where(namespaces: Sequence[str]) -> str:
    return f"namespace {namespaces[0]}" if len(namespaces) == 1 else f"{len(namespaces)} namespaces"


def name_of(pod: Mapping[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def settled(pod: Mapping[str, Any]) -> bool:
    """Whether it is known where it is and what its packets are: it has a node, and there an address or the node's own."""
    return bool(pod["spec"].get("nodeName") and (pod["spec"].get("hostNetwork") or pod["status"].get("podIPs")))


def told(pod: Mapping[str, Any]) -> str:
    """As people read it."""
    addresses = [a["ip"] for a in pod["status"].get("podIPs") or []]
    return name_of(pod) + (f" ({', '.join(addresses)})" if addresses else "")


def views_of(pods: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The `pod` of a plan for each of these pods of one node. Raises UsageError for one without a network of its own."""
    found = []
    for pod in pods:
        metadata = pod["metadata"]
        if pod["spec"].get("hostNetwork"):
            raise UsageError(
                f"pod {name_of(pod)} has its node's network, and none of its own to look inside; "
                "leave `scope: pod-netns` out for it, or choose others"
            )
        known = {"namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
        static = (metadata.get("annotations") or {}).get(STATIC_UID)
        found.append({**known, **({"cgroup": str(static)} if static else {})})
    return found


def _namespaces(api: Api, selection: Mapping[str, Any], default: str) -> list[str]:
    if selection.get("namespaces"):
        selector = selector_text(selection["namespaces"])
        found = [n["metadata"]["name"] for n in api.pages("/api/v1/namespaces", _query(selector))]
        if not found:
            raise UsageError(f"no namespace has labels {selector}")
        return sorted(found)
    return [str(selection.get("namespace") or default)]


def _pods(api: Api, selection: Mapping[str, Any], namespace: str) -> list[dict[str, Any]]:
    """The pods of one namespace that all words for pods mean."""
    selectors = [selector_text(selection.get("pods"))]
    if selection.get("owner"):
        selectors.append(_owner_selector(api, str(selection["owner"]), namespace))
    if selection.get("service"):
        selectors.append(_service_selector(api, str(selection["service"]), namespace))
    selector = ",".join(s for s in selectors if s)
    found = list(api.pages(f"/api/v1/namespaces/{quote(namespace)}/pods", _query(selector)))
    wanted = selection.get("pod_names")
    return [p for p in found if wanted is None or p["metadata"]["name"] in wanted]


def _owner_selector(api: Api, text: str, namespace: str) -> str:
    kind, _, name = text.partition("/")
    kind = kind.lower().removesuffix("s")
    if kind not in OWNERS or not name:
        raise UsageError(f"owner {text}: expected one of {', '.join(OWNERS)}, a slash, and its name")
    owner = _one(api, f"/{OWNERS[kind]}/namespaces/{quote(namespace)}/{kind}s", name, kind, namespace)
    return selector_text(owner["spec"]["selector"])


def _service_selector(api: Api, name: str, namespace: str) -> str:
    service = _one(api, f"/api/v1/namespaces/{quote(namespace)}/services", name, "service", namespace)
    if not service["spec"].get("selector"):
        raise UsageError(f"service {name} of namespace {namespace} selects no pods")
    return selector_text(service["spec"]["selector"])


def _one(api: Api, path: str, name: str, kind: str, namespace: str) -> Any:
    try:
        return api.call("GET", f"{path}/{quote(name)}")
    except Denied as denied:
        if denied.status != 404:
            raise
        hint = nearest(name, [o["metadata"]["name"] for o in api.pages(path)])
        raise UsageError(f"namespace {namespace} has no {kind} {name}" + (f"; {hint}" if hint else "")) from None


def _no_pod(api: Api, selection: Mapping[str, Any], namespaces: Sequence[str], found: Sequence[Any]) -> str:
    where = _where(namespaces)
    words = {k: selection[k] for k in POD_KEYS if selection.get(k)}
    words |= {"pods": selector_text(words["pods"])} if "pods" in words else {}
    meant = ", ".join(f"{k} {' '.join(word) if isinstance(word, list) else word}" for k, word in words.items())
    if found and not any(p["status"].get("phase") in ALIVE for p in found):
        return f"{len(found)} pods of {where} match {meant}, and all of them have ended"
    if found:
        return f"{len(found)} pods of {where} match {meant}, and none of them is on a chosen node"
    pods = [p for n in namespaces[:5] for p in api.pages(f"/api/v1/namespaces/{quote(n)}/pods")]
    known = [p["metadata"]["name"] for p in pods] if selection.get("pod_names") else []
    labels = sorted({f"{k}={v}" for p in pods for k, v in p["metadata"].get("labels", {}).items()})
    word = str(selection["pod_names"][0]) if known else selector_text(selection.get("pods")) or meant
    hint = nearest(word, known or labels)
    if not pods and selection.get("namespace"):
        there = [n["metadata"]["name"] for n in api.pages("/api/v1/namespaces")]
        if selection["namespace"] not in there:
            return f"the cluster has no namespace {selection['namespace']}; {nearest(selection['namespace'], there)}".rstrip(
                "; "
            )
    return f"no pod of {where} matches {meant}" + (f"; {hint}" if hint else "")


def scope_of(pods: Iterable[Mapping[str, Any]]) -> filters.Expression:
    """Packets of these pods of one node: by address, of both families; those with the node's network by their ports."""
    parts: list[filters.Expression] = []
    addresses: list[str] = []
    for pod in pods:
        if pod["spec"].get("hostNetwork"):
            ports = {int(p["containerPort"]) for c in pod["spec"]["containers"] for p in c.get("ports") or []}
            if not ports:
                raise UsageError(
                    f"pod {pod['metadata']['name']} has its node's network and names no port: choose its node, with a filter"
                )
            parts += [filters.Port(p, p) for p in sorted(ports)]
        else:
            addresses += [a["ip"] for a in pod["status"].get("podIPs") or []]
    if addresses:
        parts.append(filters.scope_addresses(addresses))
    if not parts:
        raise UsageError("the pods that were chosen have no address yet: wait until they run")
    return parts[0] if len(parts) == 1 else filters.Or(tuple(parts))


def selector_text(given: Any) -> str:
    """A selector as the API takes it, from text, labels, or a LabelSelector object. Raises UsageError."""
    try:
        return read(given or "").text
    except SelectorError as error:
        raise UsageError(f"label selector {given!r}: {error}") from None


def notes_of(nodes: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What keeps ordinary pods from nodes that were chosen, one line a node: cordoned, tainted, not ready."""
    told = []
    for node in nodes:
        why = ["cordoned"] if node["spec"].get("unschedulable") else []
        taints = [t for t in node["spec"].get("taints") or [] if t["key"] != "node.kubernetes.io/unschedulable"]
        why += [f"taint {t['key']}" + (f"={t['value']}" if t.get("value") else "") + f":{t['effect']}" for t in taints]
        for condition in node["status"].get("conditions") or []:
            if condition["type"] == "Ready" and condition["status"] != "True":
                why.append(f"not ready ({condition.get('reason')})")
        if why:
            told.append(f"node {node['metadata']['name']}: {', '.join(why)}; it is asked nevertheless")
    return tuple(told)


def _query(selector: str) -> dict[str, str]:
    return {"labelSelector": selector} if selector else {}
