"""Where there is no terminal (cron, a pipe): a calm line a transition of the whole run, then the table. No colour, ASCII.

A transition is told when every node has reached it, or with the count of those that have once the next one begins; so
the number of lines doesn't grow with the number of nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from retina_runner.report import RunReport
from retina_runner.views.table import plain, table

ORDER = ("checked", "ready", "capturing", "collecting", "archiving", "collected")
TOLD = ("node-failed", "node-joined", "node-replanned", "node-left", "limit", "warning", "clock", "lost", "reattached",
        "interrupted")  # fmt: skip
RANK = {name: rank for rank, name in enumerate(ORDER)}
BETWEEN = {"pending": -1, "preparing": 0, "waiting": 1, "fetching": 4, "partial": 5}
SHOWN = ("collector", "status", "state", "target", "chosen", "limit", "what", "why", "signal")
OUT = ("failed", "abandoned", "skipped")


class Lines:
    """Transitions and problems to `out`; with `quiet` only the table, and that only to say what came of it."""

    def __init__(self, out: TextIO | None = None, quiet: bool = False, verbose: bool = False):
        self._out = out or sys.stdout
        self._quiet, self._verbose = quiet, verbose
        self._told = -1

    def event(self, event: Mapping[str, Any], report: RunReport) -> None:
        if self._quiet:
            return
        kind = event.get("event")
        nodes = [n for n in report.nodes if not n.trigger]
        if kind == "freeze":
            self._say(event, f"{event['at']}: trigger at {event['instant'][:19]}Z: the rings of all nodes are frozen")
        elif kind == "t0":
            self._say(event, f"T0 is {event['t0'][:19]}Z, in {event['lead_s']:.1f} s")
        elif (
            kind in TOLD
            or (kind == "collector" and event.get("status") in ("failed", "skipped"))
            or (self._verbose and kind not in ("progress", "phase"))
        ):
            self._say(event, _words(event))
        # A node that has dropped out has reached nothing, and nobody waits for it.
        ranks = [RANK.get(n.state, BETWEEN.get(n.state, -1)) for n in nodes if n.state not in OUT]
        reached, whole = min(ranks, default=-1), len(nodes)
        if kind == "resumed":
            self._told = reached  # by the runner that began; what is only stored anew isn't captured anew
        for rank in range(self._told + 1, reached + 1):
            name = ORDER[rank]
            count = sum(1 for r in ranks if r >= rank)
            if name == "collected":
                count = sum(1 for n in nodes if n.state == "collected")
            self._say(event, f"{name}: {count}/{whole} node{'s' if whole != 1 else ''}")
            self._told = rank

    def _say(self, event: Mapping[str, Any], text: str) -> None:
        print(f"{str(event.get('time', ''))[11:19]} {plain(text)}", file=self._out, flush=True)

    def close(self, report: RunReport) -> None:
        print(table(report), file=self._out, flush=True)


class QuietOk:
    """For a mail from cron: nothing at all, unless the exit status, a verdict or a warning is worth being read."""

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout

    def event(self, event: Mapping[str, Any], report: RunReport) -> None:
        return None

    def close(self, report: RunReport) -> None:
        if report.exit_code or any(n.trigger or n.warnings or n.verdict not in ("", "complete") for n in report.nodes):
            print(table(report), file=self._out, flush=True)


def _words(event: Mapping[str, Any]) -> str:
    where = f"{event['id']}: " if event.get("id") else ""
    parts = [str(event[k]) for k in SHOWN if event.get(k)]
    hint = f" ({event['hint']})" if event.get("hint") else ""
    return f"{where}{event['event']}: {': '.join(parts)}{hint}"
