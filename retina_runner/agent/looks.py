"""What a plan's conditions ask of the node: `when` before anything is started, `expect` over the window.

Two looks make a measurement. The kernel's own counters cost some file reads; metric plugins are asked where a condition
names one of theirs, and firewall rules where one counts them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from retina_runner.agent import collectors
from retina_runner.agent.context import COMPLETE, Context, Record, worst
from retina_runner.agent.plan import Plan
from retina_runner.agent.stopping import Failed
from retina_runner.agent.workspace import Workspace

if TYPE_CHECKING:
    # Imported where they are used: most plans have no condition.
    from retina_runner.agent import conditions
    from retina_runner.agent.counters import Snapshot


class Looks:
    """The looks of one session. `active` are the collectors that run; `emit` is the journal's."""

    def __init__(self, plan: Plan, workspace: Workspace, emit: Callable[..., None],
                 active: Callable[[], Sequence[collectors.Collector]]):  # fmt: skip
        self._plan, self._workspace, self._emit, self._active = plan, workspace, emit, active
        self._expected = _parsed(plan.document.get("expect") or ())
        self._taken: List[Tuple[Snapshot, Dict[str, int], float]] = []

    def symptom(self, condition: conditions.Condition, wait: Callable[[], None]) -> Tuple[bool, str]:
        """(whether it holds over two looks with `wait` between them, its numbers in words). Raises Failed where it can't be
        known, and whatever `wait` raises. Nothing that was attached for it stays."""
        from retina_runner.agent import conditions, symptoms

        scouts = self._scouts(condition)
        try:
            before, rules, begun = (
                self.counters([condition], scouts),
                symptoms.rule_packets([condition]),
                time.monotonic(),
            )
            wait()
            measured = conditions.Measured(before, self.counters([condition], scouts), time.monotonic() - begun,
                                           (rules, symptoms.rule_packets([condition])))  # fmt: skip
        finally:
            for scout in scouts:
                scout.abandon()
        try:
            met, numbers = conditions.holds(condition, measured)
        except conditions.Unknown as unknown:
            raise Failed(f"when: {unknown}", unknown.hint) from None
        return met, _told(numbers)

    def _scouts(self, condition: conditions.Condition) -> List[collectors.Collector]:
        """The plan's metric plugins, if the condition asks for metrics: attached for the two looks alone."""
        scouts: List[collectors.Collector] = []
        for entry in self._plan.entries if condition.metrics else ():
            if entry.name != "ebpf":
                continue
            raw = self._workspace.raw / f"when-{entry.id}"
            raw.mkdir(mode=0o700)
            scout = collectors.load(entry.name, Context(entry.id, entry.options, raw, raw, Record(), self._emit))
            scouts.append(scout)
            try:
                scout.prepare()
                scout.begin()
            except Exception as error:
                for one in scouts:
                    one.abandon()
                raise Failed(f"when: {error}", getattr(error, "hint", "")) from error
        return scouts

    def counters(
        self, wanted: Sequence[conditions.Condition], of: Optional[Sequence[collectors.Collector]] = None
    ) -> Snapshot:
        """What the conditions may ask: the kernel's own counters, and metric plugins' where one of them does."""
        from retina_runner.agent import symptoms

        found = symptoms.counters()
        if any(condition.metrics for condition in wanted):
            for collector in self._active() if of is None else of:
                try:
                    found.update(collector.counters())
                except OSError as error:
                    self._emit("warning", why=f"its metrics can't be read: {error}")
        return found

    def look(self) -> None:
        """One more look at the node, for the plan's `expect`. Metrics count from T0 by themselves: the first has none."""
        if self._expected:
            from retina_runner.agent import symptoms

            counters_now = self.counters(self._expected if self._taken else ())
            self._taken.append((counters_now, symptoms.rule_packets(self._expected), time.monotonic()))

    def judge(self, record: Record) -> None:
        """What was expected of the window, each told as it came out; what can't be known isn't as expected."""
        if len(self._taken) < 2:
            return
        from retina_runner.agent import conditions

        (before, rules, begun), (after, rules_after, over) = self._taken[0], self._taken[-1]
        measured = conditions.Measured(
            before, after, max(over - begun, 0.001), (rules, rules_after),
            {
                "packets": sum(record.packets.values()),
                "dropped": sum(n for v in record.verdicts for k, n in v.counts.items() if k.startswith("dropped_by_")),
                "lossless": int(worst([v.verdict for v in record.verdicts]) == COMPLETE),
            },
        )  # fmt: skip
        for condition in self._expected:
            try:
                ok, numbers = conditions.holds(condition, measured)
                why = _told(numbers)
            except conditions.Unknown as unknown:
                ok, why = False, str(unknown)
            if not ok:
                record.warnings.append(f"not as expected: {condition.text}: {why}")
            self._emit("expectation", expression=condition.text, ok=ok, why=why)


def _parsed(expected: Sequence[str]) -> List[conditions.Condition]:
    if not expected:
        return []
    from retina_runner.agent import conditions

    return [conditions.parse(text, afterwards=True) for text in expected]


def _told(numbers: Dict[str, Any]) -> str:
    return ", ".join(f"{call} = {number:g}" for call, number in numbers.items())
