"""Collectors: one module, one schema (`schemas/collectors/<name>.json`), one docs entry, one example and one test each.

The session calls the hooks of every collector of its plan in this order; each is optional:

    prepare  (any time before T0)   check tools and rights, start what must already run at T0, take slow snapshots
    begin    (just before T0)       snapshot counters; must be quick, its duration is measured by a rehearsal
    opened   (just after T0)        wait for what a thread of its own does at T0: when this returns, what happens counts
    end      (at T0 + duration)     snapshot counters again, first thing
    finish   (after the overrun)    stop what runs, take the slow snapshots again, write artefacts, deltas and verdicts
    protect, record  (in between)   for rings: keep what there is, and archive a part of it; see agent/recorder.py
    abandon  (whenever)             undo everything, keep nothing; idempotent, never raises

A hook raises `Gap` for "can't be had here" (noted; the collector's later hooks still run unless it was `prepare`), and
anything else for a failure of this collector alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple

from retina_runner.agent.context import Context, Gap

if TYPE_CHECKING:
    from retina_runner.agent.counters import Snapshot


class Collector:
    """The hooks with nothing in them. `OVERRUN_S` is how long past the end of the window `finish` has to wait."""

    OVERRUN_S = 0.0
    GROWS = False
    """Whether it writes to the archive while the window runs: otherwise there is none before T0."""

    def __init__(self, context: Context):
        self.context = context

    def prepare(self) -> None:
        """Everything that may be slow."""

    def begin(self) -> None:
        """Counters, at the last moment before T0. Called once as a rehearsal before T0 is agreed; must be repeatable."""

    def opened(self) -> None:
        """Nobody is told that the window is open before this has returned. Not called in the rehearsal; has a bound."""

    def end(self) -> None:
        """Counters, at the end of the window."""

    def finish(self) -> None:
        """Stop, write, judge."""

    def abandon(self) -> None:
        """Undo."""

    def protect(self, on: bool) -> None:
        """Keep all of a ring that there is, until told that it may go on forgetting. Called in windows with a trigger."""

    def record(self, context: Context) -> None:
        """Put what this collector's ring holds of `context.window` into an archive of its own. As often as it is called."""

    def counters(self) -> Snapshot:
        """What conditions may ask of this collector while it runs; costs something, so only asked for where one does."""
        return {}

    def progress(self) -> Dict[str, int]:
        """Whole numbers for the live view: `bytes`, `packets`, `dropped`; called about once a second."""
        return {}


CLASSES = {
    "tcpdump": "Tcpdump",
    "ebpf": "Ebpf",
    "iptables": "Iptables",
    "network-state": "NetworkState",
    "command": "Command",
    "files": "Files",
}
"""Every collector and its class, in the order in which their hooks run; `files` last, as it may copy what others caused."""


LOOKING = frozenset(("iptables", "network-state", "command", "files"))
"""Those whose `problems` only looks for programs: it starts nothing, and takes as long as that."""


def module(name: str) -> Any:
    """Imported by name, so that a node pays only for what its plan asks. Raises KeyError for no collector's name."""
    if name not in CLASSES:
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def load(name: str, context: Context) -> Collector:
    """The collector of that name for one entry of a plan. Raises KeyError for a name that isn't one."""
    collector: Collector = getattr(module(name), CLASSES[name])(context)
    return collector


def problems(name: str, options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """What is known before anything starts: (what makes the entry a mistake here, what will be a gap).

    A collector's module answers by a function of this name; one without it has nothing to say. Raises KeyError.
    """
    answering = module(name)
    if not hasattr(answering, "problems"):
        return [], []
    answer: Tuple[List[Gap], List[Gap]] = answering.problems(options)
    return answer
