"""The texts say what the formats demand: read back by a parser of their grammar, escapes and histograms included."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.agent.metrics import account, text
from retina_runner.agent.metrics.model import Capability, ProgramCost, Sample
from retina_runner.agent.metrics.plugins import COUNTER, GAUGE, HISTOGRAM, Family
from retina_runner.agent.metrics.series import Series, Ticker

FAMILIES = {
    f.name: f
    for f in (
        Family("networkobservability_drop_count", COUNTER, "packets", "Packets dropped", ("reason",)),
        Family("retinarun_run_seconds_total", COUNTER, "seconds", 'Time, "spent"\\here'),
        Family("networkobservability_tcp_state", GAUGE, "sockets", "Sockets", ("state",)),
        Family("retinarun_handshake_seconds", HISTOGRAM, "seconds", "Handshakes"),
        Family("retinarun_flow_packets_total", COUNTER, "packets", "Flows", ("source",), series=False),
    )
}
SAMPLES = [
    Sample("networkobservability_drop_count", (("reason", "NO_SOCKET"),), 5),
    Sample("retinarun_handshake_seconds_bucket", (("le", "0.1"),), 2),
    Sample("retinarun_handshake_seconds_bucket", (("le", "+Inf"),), 3),
    Sample("retinarun_handshake_seconds_sum", (), 0.5),
    Sample("retinarun_handshake_seconds_count", (), 3),
    Sample("networkobservability_drop_count", (("reason", "TCP_RESET"),), 0),
    Sample("retinarun_run_seconds_total", (), 1.5),
    Sample("networkobservability_tcp_state", (("state", "LISTEN"),), 1),
]
LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)\Z')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\.)*)"')


def read(exposition: str) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a text, by its grammar; every other line is a comment."""
    found = []
    for line in exposition.split("\n"):
        if line and not line.startswith("#"):
            match = LINE.match(line)
            assert match, line
            labels = {
                k: re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), v) for k, v in LABEL.findall(match[2] or "")
            }
            found.append((match[1], labels, float(match[3])))
    return found


def test_prometheus_text() -> None:
    assert text.prometheus(SAMPLES, FAMILIES).splitlines() == [
        "# HELP networkobservability_drop_count Packets dropped",
        "# TYPE networkobservability_drop_count counter",
        'networkobservability_drop_count{reason="NO_SOCKET"} 5',
        'networkobservability_drop_count{reason="TCP_RESET"} 0',
        "# HELP networkobservability_tcp_state Sockets",
        "# TYPE networkobservability_tcp_state gauge",
        'networkobservability_tcp_state{state="LISTEN"} 1',
        "# HELP retinarun_handshake_seconds Handshakes",
        "# TYPE retinarun_handshake_seconds histogram",
        'retinarun_handshake_seconds_bucket{le="0.1"} 2',
        'retinarun_handshake_seconds_bucket{le="+Inf"} 3',
        "retinarun_handshake_seconds_sum 0.5",
        "retinarun_handshake_seconds_count 3",
        '# HELP retinarun_run_seconds_total Time, "spent"\\\\here',
        "# TYPE retinarun_run_seconds_total counter",
        "retinarun_run_seconds_total 1.5",
    ]
    assert text.prometheus([], FAMILIES) == ""


def test_openmetrics_keeps_every_series_name_of_the_other_text() -> None:
    """Whatever a scraper negotiates, the series are the same; types are as far as the names permit."""
    given = text.openmetrics(SAMPLES, FAMILIES)
    assert read(given) == read(text.prometheus(SAMPLES, FAMILIES))
    assert given.endswith("\n# EOF\n")
    assert "# TYPE networkobservability_drop_count unknown" in given
    assert "# TYPE retinarun_run_seconds counter\n# UNIT retinarun_run_seconds seconds\n" in given
    assert "# TYPE retinarun_handshake_seconds histogram" in given


def test_one_family_is_one_block_and_constant_labels_come_first() -> None:
    lines = text.prometheus(SAMPLES, FAMILIES, (("node", "a"),)).splitlines()
    assert len([line for line in lines if line.startswith("# TYPE")]) == 4
    assert 'networkobservability_drop_count{node="a",reason="NO_SOCKET"} 5' in lines
    assert 'retinarun_run_seconds_total{node="a"} 1.5' in lines


@given(st.text(), st.text(), st.one_of(st.integers(), st.floats(allow_nan=False)))
def test_any_label_and_number_comes_back(first: str, second: str, value: float) -> None:
    samples = [Sample("x", (("a", first), ("b", second)), value)]
    for write in (text.prometheus, text.openmetrics):
        assert read(write(samples, {})) == [("x", {"a": first, "b": second}, float(value))]


def test_json_has_no_number_that_json_lacks() -> None:
    (family,) = text.document([Sample("x", (), float("inf")), Sample("x", (("a", "b"),), float("nan"))], {})
    assert json.loads(json.dumps(family, allow_nan=False))["samples"] == [
        {"labels": {}, "value": "+Inf"},
        {"labels": {"a": "b"}, "value": "NaN"},
    ]
    (shown,) = [f for f in text.document(SAMPLES, FAMILIES) if f["name"] == "retinarun_handshake_seconds"]
    assert (shown["type"], shown["unit"]) == ("histogram", "seconds")
    assert shown["samples"][0] == {"metric": "retinarun_handshake_seconds_bucket", "labels": {"le": "0.1"}, "value": 2}


def test_the_measuring_accounts_for_itself() -> None:
    rows = [Capability("dns", "socket_filter", "skipped", "no rights", "run as root")]
    given = account.samples(rows, [ProgramCost("on_kfree", 10, 5860)], {"map_full_flows": 0, "recursion_misses": 2})
    assert read(text.prometheus(given, account.FAMILIES)) == [
        ("retinarun_bpf_run_seconds_total", {"program": "on_kfree"}, 5.86e-06),
        ("retinarun_bpf_runs_total", {"program": "on_kfree"}, 10),
        ("retinarun_not_counted_total", {"kind": "map_full_flows"}, 0),
        ("retinarun_not_counted_total", {"kind": "recursion_misses"}, 2),
        (
            "retinarun_plugin_info",
            {"plugin": "dns", "hook": "socket_filter", "status": "skipped", "why": "no rights"},
            1,
        ),
    ]


def lines(path: Path) -> list[dict[str, float]]:
    return [
        {(s["metric"] + str(s["labels"])): s["value"] for s in json.loads(line)["samples"]}
        for line in path.read_text().splitlines()
    ]


def test_a_series_tells_what_changed_and_leaves_out_what_is_too_much(tmp_path: Path) -> None:
    series = Series(tmp_path / "s", FAMILIES, 10_000)
    flow = Sample("retinarun_flow_packets_total", (("source", "a"),), 9)
    for number in (0, 3, 3, 4):
        series.write(1e9, 1.0, [Sample("networkobservability_drop_count", (), number), flow])
    series.close()
    name = "networkobservability_drop_count{}"
    assert lines(tmp_path / "s") == [{}, {name: 3}, {}, {name: 4}]


def test_a_gauge_of_zero_is_told_once(tmp_path: Path) -> None:
    series = Series(tmp_path / "s", FAMILIES, 10_000)
    for _ in range(2):
        series.write(1e9, 1.0, [Sample("networkobservability_tcp_state", (("state", "LISTEN"),), 0)])
    series.close()
    assert [len(found) for found in lines(tmp_path / "s")] == [1, 0]


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_series_keeps_to_its_limit_with_whole_lines(tmp_path: Path, limit: int) -> None:
    series = Series(tmp_path / "s", FAMILIES, limit)
    for number in range(1, 100):
        series.write(1e9, 1.0, [Sample("networkobservability_drop_count", (), number)])
    series.close()
    assert (tmp_path / "s").stat().st_size == series.size_bytes <= limit
    assert series.cut
    assert len(lines(tmp_path / "s")) == series.lines


def test_the_beat_goes_on_whatever_a_call_raises() -> None:
    """Zero comes first and once; a tick that fails is told, and doesn't end the series."""
    calls: list[str] = []
    enough = threading.Event()

    def tick() -> None:
        calls.append("tick")
        if len(calls) >= 5:
            enough.set()
        raise OSError(5, "Input/output error")

    ticker = Ticker(0.0, 0.01, lambda: calls.append("zero"), tick)
    ticker.start()
    assert enough.wait(60)
    ticker.stop()
    number = len(calls)
    assert calls == ["zero", *["tick"] * (number - 1)]
    assert ticker.trouble == "OSError: [Errno 5] Input/output error"


def test_a_ticker_that_is_stopped_before_t0_makes_no_call() -> None:
    calls: list[str] = []
    ticker = Ticker(time.time() + 3600, 0.01, lambda: calls.append("zero"), lambda: calls.append("tick"))
    ticker.start()
    ticker.stop()
    assert not ticker.is_alive()
    assert calls == []
