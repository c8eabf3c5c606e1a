"""From a runbook's `nodes: {kubernetes: …}` to places, Jobs and ways to reach them: what hosts.py is for inventories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from retina_runner import planning
from retina_runner.bundle import AgentBundle
from retina_runner.errors import DocumentError, UsageError
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.reach import PodReach, reach_of
from retina_runner.inventory.connection import Connection, connection_of
from retina_runner.runbook import Capture, KubernetesNodes, Runbook

if TYPE_CHECKING:
    # Imported where a cluster is asked: that takes a run elsewhere a tenth of its start.
    from retina_runner.executors.kubernetes import choosing

Reach = Connection | PodReach


class Pods:
    """What was chosen, by capture; `jobs` are the manifests by name, once `reach` has been asked.

    `notes` say which of the chosen nodes are cordoned, tainted or not ready. `moving` are the selections by pods, by capture.
    """

    def __init__(self) -> None:
        self._selected: dict[str, choosing.Selected] = {}
        self.jobs: dict[str, Mapping[str, Any]] = {}
        self.notes: tuple[str, ...] = ()
        self.moving: dict[str, Mapping[str, Any]] = {}

    def places(self, runbook: Runbook, capture: Capture, nodes: KubernetesNodes) -> list[planning.Place]:
        """The capture's nodes; asks the cluster. Raises DocumentError."""
        from retina_runner.executors.kubernetes import choosing

        try:
            selected = choosing.select(nodes.selection)
        except UsageError as error:
            path = (*capture.path, "nodes", "kubernetes")
            raise DocumentError([runbook.problem(path, str(error))]) from None
        if selected.missing:
            path = (*capture.path, "nodes", "kubernetes", "pod_names")
            raise DocumentError([runbook.problem(path, message) for message in selected.missing])
        shelves = sorted({str(u.options["base"]) for u in runbook.uploads if u.kind == "host_path"})
        claim = str((nodes.selection.get("job") or {}).get("claim") or "")
        if claim and len(shelves) != 1:
            path = (*capture.path, "nodes", "kubernetes", "job", "claim")
            message = "a claim stands in for one host_path; upload has " + (
                f"{len(shelves)} bases" if shelves else "none"
            )
            raise DocumentError([runbook.problem(path, message, "upload: [{host_path: {path: incidents}}]")])
        selected = replace(selected, settings=replace(selected.settings, shelves=tuple(shelves), claim=claim))
        self.notes += selected.notes
        self._selected[capture.name] = selected
        if choosing.by_pods(nodes.selection):
            self.moving[capture.name] = nodes.selection
        return places_of(selected.nodes)

    def selected(self, capture: str) -> choosing.Selected:
        """What is known of a capture."""
        return self._selected[capture]

    def again(self, capture: str) -> choosing.Selected:
        """Choose a capture's pods once more; none is an answer too. Raises UsageError. `accept` makes it what is known."""
        from retina_runner.executors.kubernetes import choosing

        known = self._selected[capture]
        try:
            found = choosing.select(self.moving[capture])
        except choosing.NoPods:
            return replace(known, nodes=(), unsettled=())
        return replace(known, nodes=found.nodes, unsettled=found.unsettled)

    def accept(self, capture: str, selected: choosing.Selected) -> None:
        self._selected[capture] = selected

    def reach(self, plans: Sequence[planning.NodePlan], token: str, agent: AgentBundle) -> dict[str, Reach]:
        """By plan id, for the plans of clusters."""
        self.jobs = {}
        return {
            plan.id: self.reach_one(plan, number, token, agent)
            for number, plan in enumerate(plans)
            if plan.executor == "kubernetes"
        }

    def reach_one(self, plan: planning.NodePlan, number: int, token: str, agent: AgentBundle) -> PodReach:
        """For one plan, which from now on has its Job among `jobs`."""
        selected = self._selected[plan.capture]
        to = selected.reach(plan.node, token, number, plan.document["ready_timeout_s"])
        self.jobs[to.job] = objects.job(token, number, plan.node, agent.name, plan.document, selected.settings)
        return to

    def as_record(self) -> dict[str, dict[str, Any]]:
        """What a run keeps of its Jobs, by capture, so that a later runner can make such pods again."""
        return {capture: asdict(selected.settings) for capture, selected in self._selected.items()}


def places_of(chosen: Sequence[choosing.Chosen]) -> list[planning.Place]:
    return [planning.Place(c.node, "kubernetes", c.scope, c.pod) for c in chosen]


def chosen_of(selected: choosing.Selected) -> dict[str, tuple[str, ...]]:
    """The pods that each place was chosen for, by `Place.id`."""
    return {place.id: c.pods for place, c in zip(places_of(selected.nodes), selected.nodes, strict=True)}


def again(
    to: PodReach,
    capture: str,
    terms: Mapping[str, Any] | None,
    token: str,
    number: int,
    plan: Mapping[str, Any],
    agent: str,
) -> tuple[PodReach, dict[str, Any]]:
    """The reach and the Job of a node that an earlier run had, for another run of that token. Raises UsageError."""
    settings = settings_from(terms, capture)
    job = objects.job(token, number, to.node, agent, plan, settings)
    return replace(to, job=objects.job_name(token, number), token=token, namespace=settings.namespace), job


def settings_from(terms: Mapping[str, Any] | None, capture: str) -> objects.JobSettings:
    """What the Jobs of a capture were like, from a run's record. Raises UsageError."""
    given = ((terms or {}).get("jobs") or {}).get(capture)
    if given is None:
        raise UsageError(
            "the run's record doesn't say what its Jobs were like (an older version wrote it): run the runbook again, "
            "or copy what nodes keep with kubectl"
        )
    return objects.settings_of(given)


def reach_from(given: Mapping[str, Any] | None) -> Reach | None:
    """From a run's journal: how a node was reached; None for this machine."""
    return (reach_of(given) if given else None) or connection_of(given)
