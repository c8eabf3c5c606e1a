"""Samples as the texts that monitoring systems read: Prometheus text 0.0.4, OpenMetrics 1.0, and plain JSON. Pure.

The two texts differ in one thing that matters: OpenMetrics demands that a counter's samples end in `_total`. Our own
counters do. Retina's names don't (`networkobservability_drop_count`), and a name that depended on what the scraper asked
for would be two different series; so there they keep their name and are of type `unknown`, which rate() takes as well.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from retina_runner.agent.metrics.model import Labels, Number, Sample
from retina_runner.agent.metrics.plugins import COUNTER, HISTOGRAM, Family

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PARTS = ("_bucket", "_sum", "_count")


def family_of(metric: str, families: Mapping[str, Family]) -> Family:
    """The family that a sample belongs to; one without a description for a metric that nobody described."""
    if metric in families:
        return families[metric]
    for part in _PARTS:
        name = metric[: -len(part)]
        if metric.endswith(part) and name in families and families[name].kind == HISTOGRAM:
            return families[name]
    return Family(metric, "untyped", "", "not described")


def grouped(samples: Iterable[Sample], families: Mapping[str, Family]) -> List[Tuple[Family, List[Sample]]]:
    """Families in order of name, each with its samples in the order in which they came."""
    found: Dict[str, Tuple[Family, List[Sample]]] = {}
    for sample in samples:
        family = family_of(sample.metric, families)
        found.setdefault(family.name, (family, []))[1].append(sample)
    return [found[name] for name in sorted(found)]


def prometheus(samples: Iterable[Sample], families: Mapping[str, Family], constant: Labels = ()) -> str:
    """Prometheus text format 0.0.4. `constant` labels are put before each sample's own."""
    lines: List[str] = []
    for family, members in grouped(samples, families):
        lines.append(f"# HELP {family.name} {escaped(family.help, quotes=False)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(s, constant) for s in members]
    return "\n".join(lines) + "\n" if lines else ""


def openmetrics(samples: Iterable[Sample], families: Mapping[str, Family], constant: Labels = ()) -> str:
    """OpenMetrics 1.0 text, with its closing `# EOF`. See the module for counters whose name lacks `_total`."""
    lines: List[str] = []
    for family, members in grouped(samples, families):
        name, kind = family.name, family.kind
        if kind == COUNTER and name.endswith("_total"):
            name = name[: -len("_total")]
        elif kind in (COUNTER, "untyped"):
            kind = "unknown"
        lines.append(f"# TYPE {name} {kind}")
        if family.unit and name.endswith("_" + family.unit):
            lines.append(f"# UNIT {name} {family.unit}")
        lines.append(f"# HELP {name} {escaped(family.help, quotes=True)}")
        lines += [_line(s, constant) for s in members]
    return "\n".join([*lines, "# EOF"]) + "\n"


def document(samples: Iterable[Sample], families: Mapping[str, Family]) -> List[Dict[str, Any]]:
    """The same as JSON: each family with name, type, unit, help and its samples {metric, labels, value}.

    `metric` is only there where it isn't the family's name. Infinity and NaN, which JSON lacks, are texts.
    """
    found = []
    for family, members in grouped(samples, families):
        rows: List[Dict[str, Any]] = []
        for sample in members:
            row: Dict[str, Any] = {"labels": dict(sample.labels), "value": _json_number(sample.value)}
            rows.append({"metric": sample.metric, **row} if sample.metric != family.name else row)
        found.append(
            {"name": family.name, "type": family.kind, "unit": family.unit, "help": family.help, "samples": rows}
        )
    return found


def _line(sample: Sample, constant: Sequence[Tuple[str, str]]) -> str:
    labels = ",".join(f'{k}="{escaped(v, quotes=True)}"' for k, v in (*constant, *sample.labels))
    return (
        f"{sample.metric}{{{labels}}} {number(sample.value)}" if labels else f"{sample.metric} {number(sample.value)}"
    )


def number(value: Number) -> str:
    """As Go's strconv reads it, which is what Prometheus uses; whole numbers are written in full."""
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _json_number(value: Number) -> Any:
    return value if isinstance(value, int) or math.isfinite(value) else number(value)


def escaped(text: str, quotes: bool) -> str:
    """Text as HELP lines (without quotes) and label values (with them) want it."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
