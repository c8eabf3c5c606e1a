"""On a terminal: a live row a node with its phase, its clock, its counts; the plain table at the end.

Everything that moves has a clock beside it, so that slow and stuck can be told apart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retina_runner.report import NodeReport, RunReport
from retina_runner.units import format_duration, format_size
from retina_runner.views.table import plain, table

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

REFRESH_PER_SECOND = 4
MOST_ROWS = 20
_COLOURS = {"failed": "red", "abandoned": "yellow", "partial": "yellow", "collected": "green", "capturing": "cyan"}


class Console:
    """A live table while the run lasts; what it printed is gone at the end, and the plain table stands there."""

    def __init__(self, console: RichConsole | None = None):
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._console = console or RichConsole(highlight=False, soft_wrap=True)
        self._since: dict[str, tuple[str, float]] = {}
        self._report = RunReport()
        self._live = Live(
            console=self._console, refresh_per_second=REFRESH_PER_SECOND, transient=True, get_renderable=self._render
        )
        self._live.start()

    def event(self, event: Mapping[str, Any], report: RunReport) -> None:
        self._report = report
        for node in report.nodes:
            if self._since.get(node.id, ("", 0.0))[0] != node.state:
                self._since[node.id] = (node.state, time.monotonic())

    def close(self, report: RunReport) -> None:
        self._report = report
        self._live.stop()
        self._console.print(table(report), markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        from rich.table import Table

        report = self._report
        shown, hidden = _choose(report.nodes)
        title = plain(report.runbook) + (f"   T0 {report.t0[11:19]}Z" if report.t0 else "   waiting for all nodes")
        live = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
        for heading, justify in (("node", "left"), ("phase", "left"), ("time", "right"), ("bytes", "right"),
                                 ("packets", "right"), ("dropped", "right"), ("disk free", "right"), ("", "left")):  # fmt: skip
            live.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for node in shown:
            live.add_row(*self._cells(node))
        if hidden:
            live.add_row(_text(f"… {len(hidden)} more", "dim"), _text(_counts(hidden), "dim"))
        return live

    def _cells(self, node: NodeReport) -> tuple[Any, ...]:
        note = node.trouble.why if node.trouble else node.warnings[-1] if node.warnings else ""
        if node.state == "capturing":
            clock = f"{node.elapsed_s:.0f}/{format_duration(node.total_s)}"
        else:
            clock = f"{time.monotonic() - self._since.get(node.id, ('', time.monotonic()))[1]:.0f}s"
        return (
            _text(plain(node.id)),
            _text(node.state, _COLOURS.get(node.state, "")),
            _text(clock),
            _text(format_size(node.bytes)),
            _text(str(node.packets)),
            _text(str(node.dropped), "red" if node.dropped else ""),
            _text(format_size(node.free_bytes) if node.free_bytes is not None else "-"),
            _text(plain(note)[:60], "yellow"),
        )


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style=style)


def _choose(nodes: tuple[NodeReport, ...]) -> tuple[list[NodeReport], list[NodeReport]]:
    """Which rows to show when there are too many: those in trouble, then those at work, then the rest."""

    def rank(node: NodeReport) -> int:
        return 0 if node.state in ("failed", "partial", "abandoned") else 2 if node.state == "collected" else 1

    ordered = sorted(nodes, key=rank)
    chosen = {id(n) for n in ordered[:MOST_ROWS]}
    return [n for n in nodes if id(n) in chosen], [n for n in nodes if id(n) not in chosen]


def _counts(nodes: list[NodeReport]) -> str:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.state] = counts.get(node.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
