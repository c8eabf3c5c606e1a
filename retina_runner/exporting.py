"""Metric plugins that live on: a runbook's `ebpf` entries, loaded once and read whenever somebody scrapes.

What a scrape costs is bounded: reads are shared by scrapes that come close together, and each metric has at most
`most_series` label sets. Those beyond are added up in one series whose labels all say `overflow`, and counted. Counters
never fall while the exporter lives: where a source had to be opened again, it goes on from where it was.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retina_runner.agent.ebpf.compiling import FOLDER
from retina_runner.agent.metrics import account, plugins, text
from retina_runner.agent.metrics.model import OK, Capability, Labels, Number, Sample, Scope, Source
from retina_runner.agent.metrics.plugins import COUNTER, GAUGE, HISTOGRAM, Family
from retina_runner.agent.metrics.sources import open_sources
from retina_runner.bytecode import Store

SHARED_S = 1.0
"""Scrapes that come closer together than this are answered from one reading."""
MOST_SERIES = 2000
OVERFLOW = "overflow"
OWN = {
    f.name: f
    for f in (
        Family(
            "retinarun_exporter_overflow_series", GAUGE, "", "Label sets beyond the bound, added up in one", ("metric",)
        ),
        Family("retinarun_exporter_reads_total", COUNTER, "", "How often the sources were read"),
        Family("retinarun_exporter_read_seconds_total", COUNTER, "seconds", "CPU time of the reads"),
        Family("retinarun_exporter_reopened_total", COUNTER, "", "How often sources had to be opened again"),
    )
}


@dataclass
class _Kept:
    """One metric's series: what each counter had when its source was last opened, and what is too much."""

    base: dict[Labels, Number] = field(default_factory=dict)
    last: dict[Labels, Number] = field(default_factory=dict)
    admitted: set[Labels] = field(default_factory=set)
    beyond: dict[Labels, Number] = field(default_factory=dict)
    spilled: Number = 0
    counted_beyond: bool = False


class Monotone:
    """Keeps counters from falling and label sets from growing without bound. Pure but for its own memory."""

    def __init__(self, families: Mapping[str, Family], most_series: int = MOST_SERIES):
        self._families, self._most = families, most_series
        self._kept: dict[str, _Kept] = {}

    def reopened(self) -> None:
        """The sources count from zero again: what they had is added from now on."""
        for kept in self._kept.values():
            kept.base.update({labels: kept.last[labels] for labels in kept.last})
            kept.beyond = {}

    def pass_on(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples as a scrape may see them."""
        found: list[Sample] = []
        by_metric: dict[str, list[Sample]] = {}
        for sample in samples:
            by_metric.setdefault(sample.metric, []).append(sample)
        # After a reopening a source has nothing yet: what was shown stays shown, as sums over label sets may not fall either.
        silent = [metric for metric, kept in self._kept.items() if kept.base and metric not in by_metric]
        for metric, members in [*by_metric.items(), *((metric, []) for metric in silent)]:
            kind = text.family_of(metric, self._families).kind
            counting = kind in (COUNTER, HISTOGRAM)
            kept = self._kept.setdefault(metric, _Kept())
            found += self._one(metric, members, kept, counting)
        found += [
            Sample("retinarun_exporter_overflow_series", (("metric", metric),), len(kept.beyond))
            for metric, kept in sorted(self._kept.items())
            if kept.beyond
        ]
        return found

    def _one(self, metric: str, members: Sequence[Sample], kept: _Kept, counting: bool) -> list[Sample]:
        found: list[Sample] = []
        beyond: dict[Labels, Number] = {}
        for sample in members:
            if sample.labels not in kept.admitted:
                if len(kept.admitted) >= self._most:
                    beyond[sample.labels] = beyond.get(sample.labels, 0) + sample.value
                    continue
                kept.admitted.add(sample.labels)
            value = sample.value
            if counting:
                value += kept.base.get(sample.labels, 0)
                before = kept.last.get(sample.labels, 0)
                if value < before:  # the source's own table lost it and began anew
                    kept.base[sample.labels] = kept.base.get(sample.labels, 0) + before - (value - sample.value)
                    value = sample.value + kept.base[sample.labels]
                kept.last[sample.labels] = value
            found.append(Sample(metric, sample.labels, value))
        present = {sample.labels for sample in members}
        found += [Sample(metric, labels, kept.last[labels]) for labels in kept.base if labels not in present]
        # A counter of what was too much, once shown, stays as the others do: also one that is 0.
        kept.counted_beyond |= counting and bool(beyond)
        if beyond or kept.spilled or kept.counted_beyond:
            if counting:
                for labels, value in beyond.items():
                    earlier = kept.beyond.get(labels, 0)
                    kept.spilled += value - earlier if value >= earlier else value
            else:
                kept.spilled = sum(beyond.values())
            names = [name for name, _ in next(iter(kept.admitted))]
            found.append(Sample(metric, tuple((name, OVERFLOW) for name in names), kept.spilled))
        kept.beyond = beyond
        return found


class Exporter:
    """The sources of a runbook's `ebpf` entries. `open` before the first `collect`; `close` in any case."""

    def __init__(
        self, entries: Sequence[Mapping[str, Any]], most_series: int = MOST_SERIES, known: Store | None = None
    ):
        """`known` has BPF programs that were compiled before, and is given what is compiled here."""
        self._entries, self._most, self._known = tuple(entries), most_series, known
        self._lock = threading.Lock()
        self._sources: list[tuple[tuple[str, ...], Source]] = []
        self._capabilities: list[Capability] = []
        self._families: dict[str, Family] = {}
        self._monotone: Monotone | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._read_at = 0.0
        self._samples: list[Sample] = []
        self._written: dict[bool, str] = {}
        self._reads, self._seconds, self._reopened = 0, 0.0, 0

    def open(self) -> tuple[Capability, ...]:
        """Load and attach; a row for each hook, whatever became of it. Counting begins."""
        with self._lock:
            return self._open()

    def _open(self) -> tuple[Capability, ...]:
        self._stop()
        self._scratch = tempfile.TemporaryDirectory(prefix="retina-run-exporter-")
        described: list[plugins.Plugin] = []
        self._capabilities = []
        for number, options in enumerate(self._entries):
            scope = Scope(tuple(options["netns"]), options["scope"] == "node")
            folder = Path(self._scratch.name) / str(number)
            folder.mkdir(mode=0o700)
            if self._known is not None:
                options = self._known.supplied(options)
            opened, found = open_sources(options["plugins"], scope, options, folder)
            described += found
            for names, source in opened:
                rows = source.prepare()
                self._capabilities += rows
                if any(r.status == OK for r in rows):
                    self._sources.append((names, source))
                    source.zero()
                else:
                    source.stop()
            if self._known is not None:
                self._known.keep([json.loads(path.read_bytes()) for path in sorted((folder / FOLDER).glob("*.json"))])
        self._families = {**plugins.families(described), **account.FAMILIES, **OWN}
        if self._monotone is None:
            self._monotone = Monotone(self._families, self._most)
        return tuple(self._capabilities)

    @property
    def healthy(self) -> str:
        """Empty when everything that could be loaded is being read; why not, otherwise."""
        with self._lock:
            return "" if self._sources else "no plugin is loaded"

    def collect(self, openmetrics: bool = False) -> str:
        """What a scraper gets. Raises OSError when a source can't be read, even after it was opened again."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= SHARED_S or not self._samples:
                self._read()
                self._written = {}
                self._read_at = time.monotonic()
            if openmetrics not in self._written:
                write = text.openmetrics if openmetrics else text.prometheus
                self._written[openmetrics] = write(self._samples, self._families)
            return self._written[openmetrics]

    def _read(self) -> None:
        begun = time.thread_time()
        try:
            raw, loss, costs = self._take()
        except OSError:
            self._reopened += 1
            assert self._monotone is not None
            self._monotone.reopened()
            self._open()
            raw, loss, costs = self._take()
        assert self._monotone is not None
        told = account.samples(self._capabilities, costs, loss)
        self._reads += 1
        self._seconds += time.thread_time() - begun
        self._samples = [
            *self._monotone.pass_on([*raw, *told]),
            Sample("retinarun_exporter_reads_total", (), self._reads),
            Sample("retinarun_exporter_read_seconds_total", (), round(self._seconds, 6)),
            Sample("retinarun_exporter_reopened_total", (), self._reopened),
        ]

    def _take(self) -> tuple[list[Sample], dict[str, int], list[Any]]:
        samples: list[Sample] = []
        loss: dict[str, int] = {}
        costs: list[Any] = []
        for _, source in self._sources:
            samples += source.sample()
            for kind, number in source.loss().items():
                loss[kind] = loss.get(kind, 0) + number
            costs += source.cost()
        return samples, loss, costs

    def _stop(self) -> None:
        for _, source in self._sources:
            source.stop()
        self._sources = []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def close(self) -> None:
        """Nothing of ours stays in the kernel. Idempotent."""
        with self._lock:
            self._stop()
