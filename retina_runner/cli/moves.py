"""From plans to targets, and again when pods have moved: `moving.Watch` over the runbook's selections of pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from retina_runner import bytecode, planning
from retina_runner.cli.pods import Pods, chosen_of, places_of
from retina_runner.cli.resolve import Choices, Links, Places, Resolved, directory_of, work_directory_of
from retina_runner.errors import DocumentError, UsageError
from retina_runner.moving import Changes
from retina_runner.rundir import RunDirectory
from retina_runner.targets import Target

if TYPE_CHECKING:
    from retina_runner.executors.kubernetes.choosing import Selected

SETTLE_S, SETTLE_POLL_S = 10.0, 0.5
"""How long pods that are being made may take to have a node and an address; a deployment's new pod takes a second or two."""


class Moves:
    """The targets of one run, whose plans are kept in its directory."""

    def __init__(self, resolved: Resolved, links: Links, directory: RunDirectory):
        self._resolved, self._links, self._directory = resolved, links, directory
        self._known = bytecode.Store(bytecode.default_directory())
        self._plans = {plan.id: plan for plan in resolved.plans}
        self._targets: dict[str, Target] = {}
        self._numbers = 0
        self._found: tuple[dict[str, Selected], dict[str, planning.NodePlan]] = ({}, {})

    @property
    def possible(self) -> bool:
        """Whether anything was chosen that could move."""
        return bool(self._resolved.choices and self._resolved.choices.pods.moving)

    def target(self, plan: planning.NodePlan, number: int) -> Target:
        """A plan's target."""
        resolved = self._resolved
        self._numbers = max(self._numbers, number + 1)
        work, reach = work_directory_of(resolved, plan), resolved.reach.get(plan.id)
        compiles = self._known.concerns(plan.document)
        self._targets[plan.id] = Target(
            id=plan.id, node=plan.node, capture=plan.capture, executor=plan.executor,
            directory=directory_of(resolved, plan, number), duration_s=resolved.runbook.duration_s, compiles=compiles,
            plan=self._known.supply(plan.document) if compiles else plan.text,
            link=self._links.to(reach, work), work_directory=work, reach=reach,
        )  # fmt: skip
        return self._targets[plan.id]

    # -- moving.Watch --------------------------------------------------------------------------------------------------

    def look(self, give_up: Callable[[], bool]) -> Changes:
        choices = self._choices
        selected, troubles = self._select(choices.pods, give_up)
        for capture, now in selected.items():
            if now.unsettled:
                troubles[capture] = f"pod {', '.join(now.unsettled)} had no address before T0: nothing of it is here"
        unseen = {p.id: troubles[p.capture] for p in self._plans.values() if p.capture in troubles}
        if all(now.nodes == choices.pods.selected(capture).nodes for capture, now in selected.items()):
            return Changes(unseen=unseen)
        places = {**choices.places, **{capture: places_of(now.nodes) for capture, now in selected.items()}}
        try:
            plans = {p.id: p for p in self._build(choices, places)}
        except (DocumentError, UsageError) as error:
            return Changes(
                unseen={**unseen, **{p.id: str(error) for p in self._plans.values() if p.capture in selected}}
            )
        before = {
            i: pods
            for capture in selected
            for i, pods in self._named(capture, chosen_of(choices.pods.selected(capture))).items()
        }
        after = {
            i: pods for capture, now in selected.items() for i, pods in self._named(capture, chosen_of(now)).items()
        }
        self._found = (selected, plans)

        def why(identifier: str) -> str:
            return difference(before.get(identifier, ()), after.get(identifier, ()))

        return Changes(
            replanned={
                i: why(i) for i, p in plans.items() if i in self._plans and p.document != self._plans[i].document
            },
            left={i: why(i) for i in self._plans if i not in plans},
            joined={i: why(i) for i in plans if i not in self._plans},
            unseen=unseen,
        )

    def take(self, changes: Changes) -> Sequence[Target]:
        selected, plans = self._found
        for capture, now in selected.items():
            self._choices.pods.accept(capture, now)
            self._choices.places[capture] = places_of(now.nodes)
        made = []
        for identifier in changes.joined:
            plan, number = plans[identifier], self._numbers
            resolved = self._resolved
            resolved.reach[identifier] = self._choices.pods.reach_one(plan, number, resolved.token, resolved.agent)
            self._keep(plan)
            made.append(self.target(plan, number))
        for identifier in changes.replanned:
            made.append(self._replanned(plans[identifier]))
        self._plans = plans
        return made

    def late(self, identifier: str) -> Target:
        plan = self._found[1][identifier]
        return Target(identifier, plan.node, plan.capture, plan.executor, "", b"", 0.0, self._links.to(None, ""), "")

    # -- parts ---------------------------------------------------------------------------------------------------------

    @property
    def _choices(self) -> Choices:
        assert self._resolved.choices is not None
        return self._resolved.choices

    def _select(self, pods: Pods, give_up: Callable[[], bool]) -> tuple[dict[str, Selected], dict[str, str]]:
        """By capture: what its pods are now, or why that can't be known. Given some time, pods settle and servers answer."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            selected: dict[str, Selected] = {}
            troubles: dict[str, str] = {}
            for capture in pods.moving:
                try:
                    selected[capture] = pods.again(capture)
                except UsageError as error:
                    troubles[capture] = f"its pods couldn't be looked at again before T0: {error}"
            busy = troubles or any(unfinished(pods.selected(c), now) for c, now in selected.items())
            if not busy or give_up() or time.monotonic() >= deadline:
                return selected, troubles
            time.sleep(SETTLE_POLL_S)

    def _build(self, choices: Choices, places: Places) -> tuple[planning.NodePlan, ...]:
        resolved = self._resolved
        if not any(places.values()):
            return ()
        return planning.build(resolved.runbook, choices.narrowed(places), resolved.run, resolved.agent)

    def _named(self, capture: str, chosen: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """By the ids of plans instead of places."""
        several = len(self._resolved.runbook.captures) > 1
        return {planning.plan_id(capture, place, several): pods for place, pods in chosen.items()}

    def _keep(self, plan: planning.NodePlan) -> None:
        try:
            self._directory.write(self._directory.plan(plan.id), plan.text.decode())
        except OSError:
            pass  # the capture is worth more than that another runner could take this node up

    def _replanned(self, plan: planning.NodePlan) -> Target:
        """The same node's target with another plan, in another directory: the old one's agent may still be ending."""
        old = self._targets[plan.id]
        self._keep(plan)
        stem, _, times = old.directory.partition("+")
        directory = f"{stem}+{int(times or 0) + 1}"
        self._targets[plan.id] = replace(old, plan=self._known.supply(plan.document), directory=directory)
        return self._targets[plan.id]


def unfinished(before: Selected, now: Selected) -> bool:
    """Whether pods are still to come: some have no address yet, or fewer are there than there were, whose owner may be
    about to make others."""
    return bool(now.unsettled) or sum(len(c.pods) for c in now.nodes) < sum(len(c.pods) for c in before.nodes)


def difference(before: Sequence[str], after: Sequence[str]) -> str:
    """Which pods have gone and which have come, as people read it."""
    gone = [pod for pod in before if pod not in after]
    come = [pod for pod in after if pod not in before]
    parts = [f"pod {pod} has gone" for pod in gone] + [f"pod {pod} has come" for pod in come]
    return "; ".join(parts) or "its pods have changed"
