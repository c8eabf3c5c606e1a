"""ebpf: metric plugins that count from T0 to the end of the window, sampled on the way, written as totals and series.

Sources are attached in `prepare` and zeroed at T0; whatever of them can't be had here is a row of the manifest and a gap,
never a lost capture. What a source knows that it missed decides the verdict.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, LOSSY, PARTIAL, Context, Verdict, utc
from retina_runner.agent.counters import COUNTER, FAMILY, Snapshot
from retina_runner.agent.gaps import Gap
from retina_runner.agent.metrics import account, plugins, text
from retina_runner.agent.metrics.cpus import Cpus
from retina_runner.agent.metrics.model import FAILED, OK, Capability, ProgramCost, Sample, Scope, Source
from retina_runner.agent.metrics.series import Series, Ticker
from retina_runner.agent.metrics.sources import open_sources
from retina_runner.agent.passing import is_full

LATE_S = 0.05
"""A node so busy that it would zero later than this after T0 keeps the zero from just before it: better some counts too
many, and said so, than some too few."""
OPENED_LIMIT_S = 5.0
"""How long nobody is told that the window is open since this thread hasn't zeroed yet."""


class Ebpf(Collector):
    """See `Collector` for when each hook runs."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._options = context.options
        self._lock = threading.Lock()
        self._sources: List[Tuple[Tuple[str, ...], Source]] = []
        self._plugins: List[plugins.Plugin] = []
        self._families: Dict[str, plugins.Family] = {}
        self._capabilities: List[Capability] = []
        self._ticker: Optional[Ticker] = None
        self._series: Optional[Series] = None
        self._zeroed = self._read = 0.0
        self._samples: List[Sample] = []
        self._loss: Dict[str, int] = {}
        self._cpus = Cpus()
        self._costs: List[ProgramCost] = []
        self._unread: List[str] = []

    # -- before T0 ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        scope = Scope(tuple(self._options["netns"]), self._options["scope"] == "node")
        opened, self._plugins = open_sources(self._options["plugins"], scope, self._options, self.context.raw)
        for names, source in opened:
            self._sources.append((names, source))  # before anything is attached, so that `abandon` knows of it
            try:
                rows = source.prepare()
            except Exception as error:
                rows = [Capability(n, "", FAILED, f"{type(error).__name__}: {error}") for n in names]
            self._capabilities += rows
            if not any(r.status == OK for r in rows):
                source.stop()
                self._sources.remove((names, source))
        self._tell_gaps()
        if not self._sources:
            worst = next((r for r in self._capabilities if r.status != OK), Capability("ebpf", "", FAILED))
            raise Gap("ebpf", f"no plugin can be had here: {worst.plugin}: {worst.why}", worst.hint)
        self._families = {**plugins.families(self._plugins), **account.FAMILIES}

    def _tell_gaps(self) -> None:
        self.context.note_capabilities([row._asdict() for row in self._capabilities])
        for name in dict.fromkeys(row.plugin for row in self._capabilities):
            rows = [r for r in self._capabilities if r.plugin == name]
            if any(r.status == OK for r in rows):
                rows = [r for r in rows if not r.hook and r.status != OK]  # of the whole plugin, not of one hook
            if rows:
                reasons = dict.fromkeys(f"{r.hook}: {r.why}" if r.hook else r.why for r in rows)
                self.context.skip(f"plugin {name}", "; ".join(reasons), next((r.hint for r in rows if r.hint), ""))

    def begin(self) -> None:
        """The rehearsal zeroes; the real one does it too, and has a thread do it again at T0 itself."""
        self._zero()
        if self.context.window is None:
            return
        name = self._path("series.jsonl")
        try:
            self._series = Series(self.context.place(name), self._families, self._options["series_limit"])
        except OSError as error:
            if not is_full(error):
                raise
            self.context.skip(name, "no space left on the node; the totals are kept in memory")
            self.context.verdict(Verdict(name, PARTIAL, ["the node's disk was full"]))
        self._ticker = Ticker(self.context.window.t0, self._options["interval"], self._start, self._tick)
        self._ticker.start()

    def _zero(self) -> None:
        with self._lock:
            self._zeroed = time.time()
            for _, source in self._sources:
                source.zero()
            self._cpus.zero()

    def _start(self) -> None:
        assert self.context.window is not None
        if time.time() - self.context.window.t0 <= LATE_S:
            self._zero()
        self._tick()

    def _tick(self) -> None:
        with self._lock:
            now = time.time()
            samples = [s for _, source in self._sources for s in source.sample()]
            self._cpus.look()
        if self._series is not None:
            self._series.write(now, now - self._zeroed, samples)

    def opened(self) -> None:
        """On a busy node the thread that zeroes at T0 is late, or is interrupted while it does: who was told that the
        window is open, and sends something, would have it taken off."""
        if self._ticker is not None:
            self._ticker.begun.wait(OPENED_LIMIT_S)

    def counters(self) -> Snapshot:
        """The metrics as they stand, counted from the last zero. Raises OSError where a source can't be read."""
        with self._lock:
            samples = [s for _, source in self._sources for s in source.sample()]
        found: Snapshot = {(name, ()): (0, FAMILY) for name in self._families}
        found.update({(s.metric, tuple(sorted(s.labels))): (int(s.value), COUNTER) for s in samples})
        return found

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        with self._lock:
            self._read = time.time()
            for names, source in self._sources:
                try:
                    self._samples += source.sample()
                    for kind, number in source.loss().items():
                        self._loss[kind] = self._loss.get(kind, 0) + number
                    self._costs += source.cost()
                except Exception as error:
                    self._unread.append(f"{', '.join(names)}: {type(error).__name__}: {error}")
            self._loss["cpus_changed"] = self._cpus.look()
        if self._series is not None:
            self._series.write(self._read, self._read - self._zeroed, self._samples)

    def finish(self) -> None:
        self._stop()
        self.context.note_programs([cost._asdict() for cost in self._costs])
        samples = self._samples + account.samples(self._capabilities, self._costs, self._loss)
        self.context.write(self._path("metrics.prom"), text.prometheus(samples, self._families))
        self.context.write(
            self._path("metrics.json"),
            {
                "format": 1,
                "from": utc(self._zeroed),
                "to": utc(self._read),
                "plugins": {p.name: {"kind": p.kind, "summary": p.summary} for p in self._plugins},
                "capabilities": [row._asdict() for row in self._capabilities],
                "not_counted": self._loss,
                "programs": [cost._asdict() for cost in self._costs],
                "metrics": text.document(samples, self._families),
            },
        )
        self._judge()
        if self._series is not None and self._series.unwritten:
            raise RuntimeError(f"no space left on the node for {self._series.unwritten} lines of the series")

    def _judge(self) -> None:
        totals = self.context.verdict(Verdict(self._path("metrics.json"), COMPLETE, counts=dict(self._loss)))
        lost = ", ".join(f"{kind} {number}" for kind, number in sorted(self._loss.items()) if number)
        if lost:
            totals.lower(LOSSY, f"not counted: {lost}")
        for why in self._unread:
            totals.lower(PARTIAL, f"can't be read at the end: {why}")
        window = self.context.window
        if window is not None and self._zeroed < window.t0:
            totals.lower(COMPLETE, f"counting began {window.t0 - self._zeroed:.1f} s before T0: the node was too busy")
        if self._series is None or self._ticker is None:
            return
        counts = {"lines": self._series.lines, "missed": self._ticker.missed}
        series = self.context.verdict(Verdict(self._path("series.jsonl"), COMPLETE, counts=counts))
        if self._series.unwritten:
            series.lower(PARTIAL, f"the node's disk was full: {self._series.unwritten} lines aren't in it")
        if self._series.cut:
            series.lower(PARTIAL, f"series_limit, {self._options['series_limit']} B, was reached")
        if self._ticker.trouble:
            series.lower(PARTIAL, self._ticker.trouble)

    def _path(self, name: str) -> str:
        """A second entry of the same collector has its own folder."""
        own = "" if self.context.node_id == "ebpf" else f"{self.context.node_id}/"
        return f"metrics/{own}{name}"

    def _stop(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        for _, source in self._sources:
            source.stop()
        if self._series is not None:
            self._series.close()

    def abandon(self) -> None:
        self._stop()


def lacks() -> List[Tuple[str, str, str]]:
    """(what BPF plugins need, why it can't be had here or an empty text, the command that would help)."""
    from retina_runner.agent.ebpf import compiling

    return [
        ("bcc", compiling.without_bcc(), compiling.HINT),
        ("btf", compiling.without_btf(), "a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    ]


def probed(names: Sequence[str], options: Mapping[str, Any]) -> Dict[Tuple[str, bool], List[str]]:
    """(function of the kernel, whether where it returns) to the plugins that tell more where it can be probed."""
    from retina_runner.agent.ebpf import compiling

    found: Dict[Tuple[str, bool], List[str]] = {}
    for plugin in compiling.chosen(names, options):
        for hook in plugin.document["hooks"]:
            if hook["kind"] in (compiling.FUNCTION, compiling.RETURN) and options.get(hook.get("option", ""), True):
                found.setdefault((hook["target"], hook["kind"] == compiling.RETURN), []).append(plugin.name)
    return found


def unprobed(wanted: Mapping[Tuple[str, bool], Sequence[str]]) -> Dict[str, List[str]]:
    """Why this kernel can't be probed there, to the functions: tried, which takes the rights that BPF programs do."""
    from retina_runner.agent.ebpf import kprobes

    found: Dict[str, List[str]] = {}
    for function, returns in wanted:
        why = kprobes.refusal(function, returns)
        if why:
            found.setdefault(why, []).append(function)
    return {why: list(dict.fromkeys(functions)) for why, functions in found.items()}


def problems(options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """(nothing is fatal, a gap for each plugin that this agent lacks, and one for all BPF plugins where none can load)."""
    from retina_runner.agent.ebpf import compiling

    wanted = [*options["plugins"], *[f["name"] for f in options["files"]]]
    lacking = [name for name in options["plugins"] if name not in plugins.names()]
    gaps = dict.fromkeys(lacking, ("this agent has no such plugin", ""))
    programs = compiling.chosen(options["plugins"], options)
    if programs and not compiling.Compiler(options, Path()).serves(programs):
        said = next(((why, hint) for _, why, hint in lacks() if why), None)
        gaps.update(dict.fromkeys([p.name for p in programs], said) if said else {})
    whole = len(gaps) == len(wanted)
    return [], [Gap(f"plugin {name}", why, hint, whole) for name, (why, hint) in gaps.items()]
