"""Collectors: one module, one schema (`schemas/collectors/<name>.json`), one docs entry, one example and one test each.

The session calls the hooks of every collector of its plan in this order; each is optional:

    prepare  (any time before T0)   check tools and rights, start what must already run at T0, take slow snapshots
    begin    (just before T0)       snapshot counters; must be quick, its duration is measured by a rehearsal
    end      (at T0 + duration)     snapshot counters again, first thing
    finish   (after the overrun)    stop what runs, take the slow snapshots again, write artefacts, deltas and verdicts
    abandon  (whenever)             undo everything, keep nothing; idempotent, never raises

A hook raises `Gap` for "can't be had here" (noted; the collector's later hooks still run unless it was `prepare`), and
anything else for a failure of this collector alone.
"""

from __future__ import annotations

from typing import Dict, Tuple

from retina_runner.agent.context import Context


class Collector:
    """The hooks with nothing in them. `OVERRUN_S` is how long past the end of the window `finish` has to wait."""

    OVERRUN_S = 0.0

    def __init__(self, context: Context):
        self.context = context

    def prepare(self) -> None:
        """Everything that may be slow."""

    def begin(self) -> None:
        """Counters, at the last moment before T0. Called once as a rehearsal before T0 is agreed; must be repeatable."""

    def end(self) -> None:
        """Counters, at the end of the window."""

    def finish(self) -> None:
        """Stop, write, judge."""

    def abandon(self) -> None:
        """Undo."""

    def progress(self) -> Dict[str, int]:
        """Whole numbers for the live view: `bytes`, `packets`, `dropped`; called about once a second."""
        return {}


NAMES: Tuple[str, ...] = ("tcpdump", "iptables", "network-state", "command", "files")
"""Every collector, in the order in which their hooks run; `files` last, as it may copy what the others caused."""


def load(name: str, context: Context) -> Collector:
    """The collector of that name for one entry of a plan. Raises KeyError for a name that isn't one."""
    if name not in NAMES:
        raise KeyError(name)
    # Imported by name so that a node pays only for what its plan asks.
    if name == "tcpdump":
        from retina_runner.agent.collectors.tcpdump import Tcpdump as chosen
    elif name == "iptables":
        from retina_runner.agent.collectors.iptables import Iptables as chosen  # type: ignore[assignment]
    elif name == "network-state":
        from retina_runner.agent.collectors.network_state import NetworkState as chosen  # type: ignore[assignment]
    elif name == "command":
        from retina_runner.agent.collectors.command import Command as chosen  # type: ignore[assignment]
    else:
        from retina_runner.agent.collectors.files import Files as chosen  # type: ignore[assignment]
    return chosen(context)
