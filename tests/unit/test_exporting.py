"""What a scraper may rely on: counters never fall, label sets are bounded, what is beyond is counted; and texts are right."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retina_runner.agent.metrics import text
from retina_runner.agent.metrics.model import Sample
from retina_runner.agent.metrics.plugins import COUNTER, GAUGE, Family
from retina_runner.exporting import Monotone
from retina_runner.publishing import metrics_of, render
from retina_runner.report import NodeReport, RunReport

FAMILIES = {
    "c": Family("c", COUNTER, "", "a counter", ("flow",)),
    "g": Family("g", GAUGE, "", "a gauge", ("flow",)),
}
flows = st.integers(min_value=0, max_value=12)
readings = st.lists(
    st.dictionaries(flows, st.integers(min_value=0, max_value=50), max_size=10), min_size=1, max_size=12
)


def counted(monotone: Monotone, reading: dict[int, int], metric: str = "c") -> dict[str, float]:
    samples = [Sample(metric, (("flow", str(f)),), v) for f, v in reading.items()]
    return {dict(s.labels)["flow"]: s.value for s in monotone.pass_on(samples) if s.metric == metric}


@given(readings, st.sets(st.integers(min_value=0, max_value=11)), st.integers(min_value=1, max_value=5))
@example([{}, {0: 0, 1: 0}, {}], {2}, 1)  # what was too much, and was 0
def test_counters_never_fall_and_label_sets_are_bounded(
    steps: list[dict[int, int]], reopened_at: set[int], most: int
) -> None:
    """Each step adds to what the source has; a source that was opened again has nothing."""
    monotone = Monotone(FAMILIES, most)
    source: dict[int, int] = {}
    before: dict[str, float] = {}
    for number, step in enumerate(steps):
        if number in reopened_at:
            monotone.reopened()
            source = {}
        for flow, grown in step.items():
            source[flow] = source.get(flow, 0) + grown
        seen = counted(monotone, source)
        assert len([f for f in seen if f != "overflow"]) <= most
        for labels, value in before.items():
            assert value <= seen[labels]
        before |= seen


@given(readings)
def test_nothing_is_lost_by_the_bound(steps: list[dict[int, int]]) -> None:
    """What the bounded series and the overflow come to is what the source counted."""
    monotone = Monotone(FAMILIES, 3)
    source: dict[int, int] = {}
    for step in steps:
        for flow, grown in step.items():
            source[flow] = source.get(flow, 0) + grown
        assert sum(counted(monotone, source).values()) == sum(source.values())


def test_a_gauge_may_fall_and_its_overflow_is_what_it_is_now() -> None:
    monotone = Monotone(FAMILIES, 1)
    assert counted(monotone, {1: 5, 2: 7, 3: 1}, "g") == {"1": 5, "overflow": 8}
    assert counted(monotone, {1: 2, 2: 1}, "g") == {"1": 2, "overflow": 1}


def test_how_many_label_sets_are_beyond_is_told() -> None:
    monotone = Monotone(FAMILIES, 2)
    samples = [Sample("c", (("flow", str(n)),), 1) for n in range(5)]
    told = [s for s in monotone.pass_on(samples) if s.metric == "retinarun_exporter_overflow_series"]
    assert told == [Sample("retinarun_exporter_overflow_series", (("metric", "c"),), 3)]


def test_many_nodes_metrics_stand_together_by_family() -> None:
    """Prometheus refuses a family that is told of in two places, and a sample that is told twice."""
    samples = [Sample("c", (("flow", 'a"b\\c\n'),), 3), Sample("g", (("flow", ""),), 1)]
    own = text.prometheus(samples, FAMILIES)
    nodes = [NodeReport(n, n, "", "ssh", state="collected", packets=4) for n in ("n1", 'n"2')]
    report = RunReport(runbook="book", t0="2026-11-23T03:17:00.000000Z", nodes=tuple(nodes), exit_code=0)
    found = render(report, [(n, own) for n in nodes])
    lines = found.splitlines()
    assert lines.count("# TYPE c counter") == 1
    assert 'c{node="n1",runbook="book",flow="a\\"b\\\\c\\n"} 3' in lines
    assert 'c{node="n\\"2",runbook="book",flow="a\\"b\\\\c\\n"} 3' in lines
    assert 'retinarun_run_packets{runbook="book"} 8' in lines
    names = [line.split("{")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(names)
    assert render(replace(report, t0=""), []).count("# TYPE") == 7


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [(":10093", ("", 10093)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:2", ("::1", 2))],
)
def test_addresses(given_text: str, wanted: tuple[str, int]) -> None:
    from retina_runner.cli.exporter import address

    assert address(given_text) == wanted


@pytest.mark.parametrize("given_text", ["10093", ":", ":x", "h:70000", ""])
def test_addresses_that_are_none(given_text: str) -> None:
    from retina_runner.cli.exporter import address
    from retina_runner.errors import UsageError

    with pytest.raises(UsageError):
        address(given_text)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, check=True, capture_output=True).stdout


@pytest.mark.parametrize(("suffix", "compress"), [(".tar.gz", gzip.compress), (".tar.zst", zstd)])
def test_metrics_are_read_from_archives_of_each_compression(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    content = b"# TYPE c counter\nc 3\n"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in (("a/manifest.json", b"{}"), ("a/metrics/metrics.prom", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive = tmp_path / f"a{suffix}"
    archive.write_bytes(compress(packed.getvalue()))

    assert metrics_of(archive) == content.decode()
