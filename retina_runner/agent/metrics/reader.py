"""The source that only reads: numbers from /proc and sysfs, each relative to what it was at zero, by namespace.

A subclass says what is read; this keeps the promises of `Source`. A counter that vanishes (an interface that goes, a CPU
that is switched off) keeps its last value; one that appears counts from nothing; one that goes back was reset, which is
counted as a loss: what it had before is unknown.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

from retina_runner.agent import counters
from retina_runner.agent.context import Gap
from retina_runner.agent.counters import COUNTER, GAUGE
from retina_runner.agent.metrics.model import FAILED, OK, SKIPPED, Capability, Labels, Number, Sample, Scope, Source
from retina_runner.agent.metrics.namespaces import Namespace
from retina_runner.agent.records import dataclass

Key = Tuple[str, str, Labels]
READ_BYTES = 64 << 10

__all__ = ["COUNTER", "GAUGE", "Reader", "Reading", "Way", "content"]


@dataclass(frozen=True)
class Reading:
    """One number as it stands. `kind` is COUNTER or GAUGE."""

    metric: str
    labels: Labels
    value: Number
    kind: str = COUNTER


@dataclass(frozen=True)
class Way:
    """One file or call that a reader uses: its name in the capabilities, and whether the plugin is nothing without it."""

    hook: str
    needed: bool = True
    hint: str = ""


class Reader(Source):
    """`PLUGIN` names the subclass's plugin; `PER_NAMESPACE` is whether its numbers belong to a network namespace."""

    PLUGIN = ""
    PER_NAMESPACE = True

    def __init__(self, scope: Scope, options: Mapping[str, Any]):
        self.options = options
        self._names = scope.namespaces if self.PER_NAMESPACE and scope.namespaces else ("",)
        self._labelled = self.PER_NAMESPACE and bool(scope.namespaces)
        self._namespaces: List[Namespace] = []
        self._zero: Dict[Key, Number] = {}
        self._last: Dict[Key, Number] = {}
        self._resets = 0

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def ways(self) -> List[Way]:
        """What it reads."""
        raise NotImplementedError

    def take(self, hook: str) -> List[Reading]:
        """What that way says now; runs inside the namespace. Raises OSError when there is no such thing here."""
        raise NotImplementedError

    # -- the promises of Source ---------------------------------------------------------------------------------------

    def prepare(self) -> List[Capability]:
        rows = []
        for name in self._names:
            try:
                self._namespaces.append(Namespace(name))
            except Gap as gap:
                rows.append(Capability(self.PLUGIN, "", FAILED, f"{gap.what}: {gap.why}", gap.hint))
        usable = bool(self._namespaces)
        for way in self.ways() if usable else []:
            try:
                for namespace in self._namespaces:
                    namespace.inside(lambda hook=way.hook: self.take(hook))  # type: ignore[misc]
                rows.append(Capability(self.PLUGIN, way.hook, OK))
            except OSError as error:
                rows.append(Capability(self.PLUGIN, way.hook, SKIPPED, str(error.strerror or error), way.hint))
                usable = usable and not way.needed
        self._working = [r.hook for r in rows if r.status == OK]
        if not usable:  # a row that is `ok` would say that the plugin has something to tell
            rows = [r if r.status != OK else Capability(r.plugin, r.hook, SKIPPED, "of no use alone") for r in rows]
        return rows

    def zero(self) -> None:
        self._zero, self._last, self._resets = {}, {}, 0
        for namespace in self._namespaces:
            for reading in self._readings(namespace):
                if reading.kind == COUNTER:
                    self._zero[(namespace.name, reading.metric, reading.labels)] = reading.value

    def sample(self) -> List[Sample]:
        found: Dict[Key, Number] = {}
        for namespace in self._namespaces:
            for reading in self._readings(namespace):
                key = (namespace.name, reading.metric, reading.labels)
                if reading.kind == COUNTER:
                    found[key] = self._since(key, reading.value)
                    self._last[key] = found[key]
                else:
                    found[key] = reading.value
        for key, value in self._last.items():
            found.setdefault(key, value)
        return [Sample(metric, self._label(name, labels), value) for (name, metric, labels), value in found.items()]

    def _since(self, key: Key, value: Number) -> Number:
        before = self._zero.setdefault(key, 0)
        if value >= before:
            return value - before
        change, status = counters.change(int(before), int(value), COUNTER)
        if status == "reset":
            self._resets += 1
            # From here on it counts from where it was set back to, on top of what was seen of it.
            self._zero[key] = -self._last.get(key, 0)
            return value - self._zero[key]
        return change

    def _label(self, namespace: str, labels: Labels) -> Labels:
        return (*labels, ("netns", namespace)) if self._labelled else labels

    def _readings(self, namespace: Namespace) -> List[Reading]:
        return namespace.inside(lambda: [r for hook in self._working for r in self.take(hook)])

    def loss(self) -> Dict[str, int]:
        return {"counters_reset": self._resets}

    def stop(self) -> None:
        for namespace in self._namespaces:
            namespace.close()


def content(path: str) -> str:
    """A whole file of /proc or sysfs, in reads that don't make the kernel allocate as much as is asked. Raises OSError."""
    chunks: List[bytes] = []
    with open(path, "rb", buffering=0) as file:
        while True:
            chunk = file.read(READ_BYTES)
            if not chunk:
                return b"".join(chunks).decode("ascii", "replace")
            chunks.append(chunk)
