"""tcpdump: the packets of the window, one process and one pcap an interface, every loss counted. How is `agent.packets`'."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Type

from retina_runner.agent import process
from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import Context, Gap, said
from retina_runner.agent.packets.command import interfaces_of, problems, too_long
from retina_runner.agent.packets.held import HeldRing
from retina_runner.agent.packets.ring import Ring
from retina_runner.agent.packets.stream import Stream
from retina_runner.agent.packets.tap import Tap

__all__ = ["Tcpdump", "problems"]


class Tcpdump(Collector):
    """All interfaces of one entry of the plan."""

    OVERRUN_S = 1.2
    GROWS = True

    def __init__(self, context: Context):
        super().__init__(context)
        self._taps: List[Tap] = []
        self._interfaces: List[str] = []
        self._optimise: Dict[str, bool] = {}

    def prepare(self) -> None:
        if process.find("tcpdump") is None:
            raise Gap("tcpdump", "not installed", "apt-get install tcpdump, or dnf install tcpdump")
        self._interfaces = interfaces_of(self.context.options)
        self._optimise = {name: too_long(self.context.options, name) for name in self._interfaces}

    def begin(self) -> None:
        """Start listening. Before T0 is known this is the rehearsal: each tcpdump starts for real, and is stopped again."""
        self.abandon()
        try:
            kind = _kind(self.context.options)
            for interface in self._interfaces:
                tap = kind(self.context, interface, self._suffix(interface), self._optimise[interface])
                self._taps.append(tap)
                tap.start()
            for tap in self._taps:
                tap.wait_until_listening()
        except Exception:
            self.abandon()
            raise
        if self.context.window is None:
            self.abandon()
        else:
            for tap in self._taps:
                tap.follow()

    def _suffix(self, interface: str) -> str:
        """What tells this entry's pcaps apart: nothing for a single one, as in Retina's own names."""
        number = self.context.node_id[len("tcpdump") :]
        if len(self._interfaces) > 1:
            number += "-" + re.sub(r"[^A-Za-z0-9_.-]", "_", interface)
        return number

    def protect(self, on: bool) -> None:
        for tap in self._taps:
            tap.protected = on

    def record(self, context: Context) -> None:
        for tap in self._taps:
            tap.record(context)

    def progress(self) -> Dict[str, int]:
        total: Dict[str, int] = {"bytes": 0, "packets": 0, "dropped": 0}
        for tap in self._taps:
            for name, number in tap.progress().items():
                total[name] += number
        return total

    def finish(self) -> None:
        for tap in self._taps:
            tap.stop()
        reasons: List[str] = []
        for tap in self._taps:
            try:
                tap.finish()
            except Exception as error:  # of this interface alone: the others have their packets to archive
                reasons.append(f"{tap.interface}: {said(error)}")
            reasons += tap.failures
        if reasons:
            raise RuntimeError("; ".join(reasons))

    def abandon(self) -> None:
        for tap in self._taps:
            tap.abandon()
        self._taps = []


def _kind(options: Mapping[str, Any]) -> Type[Tap]:
    """What follows tcpdump: a ring that is held for events, one that is archived at the end, or none."""
    if not options.get("ring"):
        return Stream
    return HeldRing if options.get("hold_s") else Ring
