"""The course of one session, as its archives' manifests and its events tell it: phases, host, clock, cost, what befell it."""

from __future__ import annotations

import importlib
import resource
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Mapping, Optional, Tuple

from retina_runner.agent import facts
from retina_runner.agent.clock import NodeClock
from retina_runner.agent.context import PARTIAL, Record, utc, worst
from retina_runner.agent.plan import Plan

if TYPE_CHECKING:
    # Imported where they are used, which is after T0.
    from retina_runner.agent import manifest
    from retina_runner.agent.archive import ArchiveInfo

ASKED_AFTER_S = 0.3
"""How long into the window the tools are asked for their versions: nothing is to come between a node and its T0."""


class Course:
    """`clock` is the node's, `emit` the journal's. `rehearsal_s` and `stale` (release.Release) are set when they are known."""

    def __init__(self, plan: Plan, clock: NodeClock, emit: Callable[..., None]):
        self.plan, self._clock, self._emit = plan, clock, emit
        self.rehearsal_s = 0.0
        self.stale = ""
        self._phases: Dict[str, str] = {}
        self._host: Dict[str, Any] = {**facts.system(), "tools": {}}
        self._asking: Optional[threading.Thread] = None

    def phase(self, phase: str) -> None:
        self.begin(phase)
        self.tell(phase)

    def begin(self, phase: str) -> None:
        """The phase begins now; the events say it when they are told."""
        self._phases[phase] = utc()

    def tell(self, phase: str) -> None:
        self._emit("phase", phase=phase)

    def ask_host(self, wait: Callable[[float], object]) -> None:
        """Begin to ask a dozen tools for their versions, which takes longer than all the rest of the preparation: to be
        called when the window is open, where nobody waits."""

        def ask() -> None:
            wait(ASKED_AFTER_S)
            self._host = facts.host()
            for name in ("manifest", "packing"):
                importlib.import_module(f"retina_runner.agent.{name}")  # now, when there is time

        self._asking = threading.Thread(target=ask, name="facts", daemon=True)
        self._asking.start()

    def know_host(self) -> None:
        """Wait for the answers."""
        if self._asking is not None:
            self._asking.join()

    def judge_filters(self, record: Record) -> None:
        """Filters are of pods as they were when the plan was made; what the runner knows to have moved since lacks there."""
        for verdict in record.verdicts if self.stale else ():
            if verdict.artefact.endswith(".pcap"):
                verdict.lower(PARTIAL, f"its filter is of pods as they were before T0: {self.stale}")

    def render(self, record: Record, base: str, files: Iterable[Any], window: manifest.WindowFacts,
               offset: Tuple[Optional[float], Optional[float]], planned_s: Optional[float] = None,
               trigger: Optional[Mapping[str, Any]] = None) -> bytes:  # fmt: skip
        """What `record` and this have to say of one archive. `offset` is the node's clock minus the runner's, and its error."""
        from retina_runner.agent import manifest

        return manifest.render(
            plan=self.plan, record=record, base=base, host=self._host, files=files, window=window,
            clock=manifest.ClockFacts(*offset, steps=tuple(self._clock.steps)), cost=self._cost(), phases=self._phases,
            planned_s=planned_s, trigger=trigger,
        )  # fmt: skip

    def cost(self) -> Dict[str, Any]:
        """What the event `archive` says of it."""
        used = self._cost()
        return {
            "cpu_s": round(used.cpu_s, 3),
            "peak_rss_bytes": max(used.peak_rss_bytes, used.peak_child_rss_bytes),
            "waits": sum(resource.getrusage(who).ru_nvcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        }

    def _cost(self) -> manifest.CostFacts:
        from retina_runner.agent.manifest import CostFacts

        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return CostFacts(
            cpu_s=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            peak_rss_bytes=own.ru_maxrss * 1024,
            peak_child_rss_bytes=children.ru_maxrss * 1024,
            rehearsal_s=self.rehearsal_s,
        )


def sealed(made: ArchiveInfo, record: Record) -> Dict[str, Any]:
    """What events say of a finished archive and of what is in it."""
    return {
        "name": made.path.name, "size_bytes": made.size_bytes, "sha256": made.sha256,
        "verdict": worst([v.verdict for v in record.verdicts]),
        "reasons": [f"{v.artefact}: {r}" for v in record.verdicts for r in v.reasons],
        "packets": sum(record.packets.values()),
        "dropped": sum(n for v in record.verdicts for k, n in v.counts.items() if k.startswith("dropped_by_")),
    }  # fmt: skip
