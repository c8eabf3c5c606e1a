"""The collectors that take part in a session: what one of them can't do is its own trouble, told, and costs no other anything."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Iterator, List

from retina_runner.agent import collectors
from retina_runner.agent.context import Context, Gap, Record, said, utc
from retina_runner.agent.plan import Entry
from retina_runner.agent.records import dataclass
from retina_runner.agent.workspace import Workspace


@dataclass(frozen=True)
class Member:
    """One collector at work, with its entry in the plan and what it is given."""

    entry: Entry
    context: Context
    collector: collectors.Collector


class Crew:
    """Those that take part still, in the plan's order. `emit` is the journal's; `record` has everybody's status, also of
    those that take part no more."""

    def __init__(self, workspace: Workspace, record: Record, emit: Callable[..., None]):
        self._workspace, self._record, self._emit = workspace, record, emit
        self._lock = threading.RLock()
        self._members: List[Member] = []

    def __iter__(self) -> Iterator[Member]:
        """As it is now: a member may leave meanwhile."""
        return iter(tuple(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def join(self, entry: Entry) -> None:
        """Load and prepare one collector."""
        raw = self._workspace.raw / entry.id
        raw.mkdir(mode=0o700)
        context = Context(entry.id, entry.options, self._workspace.out, raw, self._record, self._emit, self._lock)
        try:
            collector = collectors.load(entry.name, context)
        except KeyError:
            self.status(entry, "failed", f"this agent has no collector {entry.name}")
            return
        member = Member(entry, context, collector)
        self._members.append(member)
        self.call(member, collector.prepare, drop=True)

    def call(self, member: Member, hook: Callable[[], None], drop: bool) -> None:
        """Call one hook; its trouble is this collector's alone. With `drop` the collector takes no further part then."""
        try:
            hook()
            return
        except Gap as gap:
            self._record.skipped.append(
                {
                    "collector": member.entry.id,
                    "what": gap.what,
                    "why": gap.why,
                    **({"hint": gap.hint} if gap.hint else {}),
                }
            )
            self.status(member.entry, "skipped", f"{gap.what}: {gap.why}", gap.hint)
        except Exception as error:
            self.status(member.entry, "failed", said(error))
        if drop:
            member.collector.abandon()
            self._members.remove(member)

    def status(self, entry: Entry, status: str, why: str = "", hint: str = "") -> None:
        """Note and tell how it is with a collector."""
        known = self._record.collectors.setdefault(entry.id, {"name": entry.name, "options": wished(entry)})
        if status == "done" and known.get("status") in ("failed", "skipped", "partial"):
            return  # an earlier hook's trouble outlasts a later one's success
        known["status"] = status
        if why:
            known["why"] = why
        if status == "ready":
            known["start"] = utc()
        else:
            known["end"] = utc()
        self._emit("collector", collector=entry.id, status=status,
                   **({"why": why} if why else {}), **({"hint": hint} if hint else {}))  # fmt: skip

    def progress(self) -> Dict[str, int]:
        """The sums of what each of them counts."""
        counts = {"bytes": 0, "packets": 0, "dropped": 0}
        for member in self:
            for name, number in member.collector.progress().items():
                counts[name] = counts.get(name, 0) + number
        return counts

    def abandon(self) -> None:
        """Whatever way the session ends. Idempotent."""
        for member in self:
            member.collector.abandon()


def wished(entry: Entry) -> Dict[str, Any]:
    """An entry's options as the runbook has them. What the runner brought along is in the capabilities, if it was used."""
    return {name: value for name, value in entry.options.items() if name != "bytecode"}
