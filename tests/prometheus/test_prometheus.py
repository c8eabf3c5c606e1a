"""Real Prometheus programs read what we serve and write: promtool's parser, a server that scrapes, a Pushgateway.

`RETINA_TEST_PROMETHEUS` names the folder with `prometheus`, `promtool` and `prometheus-pushgateway`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.lab import REPOSITORY, RETINA_RUN, Lab, Run, eventually
from tests.storage.servers import free_port

pytestmark = [pytest.mark.root, pytest.mark.prometheus]

RUNBOOK = """
name: live
duration: 2s
captures:
  - collect:
      - ebpf: {plugins: [linuxutil, softirq, packetforward, dropreason, packetparser, dns, tcpretrans]}
"""


def program(name: str) -> str:
    folder = os.environ.get("RETINA_TEST_PROMETHEUS")
    assert folder, "RETINA_TEST_PROMETHEUS isn't set; .ci/steps/40-prometheus does it"
    path = Path(folder) / name
    assert path.is_file(), path
    return str(path)


def checked(text: str) -> str:
    """promtool's complaints of the format; its advice on names (Retina's own don't end in _total) is none."""
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    said = (done.stderr + done.stdout).splitlines()
    return "\n".join(line for line in said if "error" in line.lower() or "parsing" in line.lower())


def get(url: str, accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read().decode()


@contextmanager
def exporter(
    tmp_path: Path, *words: str, port: int = 0, killed: bool = False
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """With `killed` it ends by SIGKILL, else as a service is stopped."""
    path = tmp_path / "live.yaml"
    path.write_text(RUNBOOK)
    process = subprocess.Popen(
        [*RETINA_RUN, "exporter", str(path), "--listen", f"127.0.0.1:{port}", *words],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        listening = next((line for line in process.stdout if line.startswith("listening on")), "")
        assert listening, "it ended; what it said is above"
        yield process, f"http://127.0.0.1:{listening.split()[-1]}"
    finally:
        process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
        assert process.wait(60) == (-signal.SIGKILL if killed else 0)


@contextmanager
def server(tmp_path: Path, target: str) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """A Prometheus that scrapes the target every second; ask it by PromQL."""
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "retina", "static_configs": [{"targets": [target]}]}],
    }))  # fmt: skip
    process = subprocess.Popen(
        [program("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}", "--web.external-url=http://localhost/"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def asked(query: str) -> list[dict[str, Any]]:
        status, _, text = get(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}")
        assert status == 200, (query, text)
        found: list[dict[str, Any]] = json.loads(text)["data"]["result"]
        return found

    def ready() -> bool:
        try:
            return get(f"http://127.0.0.1:{port}/-/ready")[0] == 200
        except OSError:
            return False

    try:
        eventually(ready, "Prometheus is ready")
        yield asked
    finally:
        process.terminate()
        process.wait(30)


def value(text: str, start: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


def test_what_is_served_is_right_in_both_formats(tmp_path: Path) -> None:
    with exporter(tmp_path) as (_, url):
        assert get(f"{url}/healthz")[0] == 200
        status, kind, text = get(f"{url}/metrics")
        assert (status, kind.startswith("text/plain; version=0.0.4")) == (200, True)
        assert checked(text) == ""
        for name in ("networkobservability_tcp_state", "networkobservability_forward_count", "retinarun_plugin_info"):
            assert f"# TYPE {name} " in text
        status, kind, text = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert get(f"{url}/nothing")[0] == 404


def number(answer: list[dict[str, Any]]) -> float:
    """Of the one series of an answer; 0 without one."""
    return float(answer[0]["value"][1]) if answer else 0.0


READS = "retinarun_exporter_reads_total"


def of_each(asked: Callable[[str], list[dict[str, Any]]], pattern: str, query: str) -> list[dict[str, Any]]:
    """The answers to `query` % a name, for each metric that the pattern matches: without its name one can't be told from another."""
    names = [
        row["metric"]["__name__"]
        for row in asked(f'group by (__name__) (last_over_time({{__name__=~"{pattern}"}}[5m]))')
    ]
    assert "networkobservability_forward_count" in names, names  # what there is besides depends on what went by
    return [{"name": name, **row} for name in names for row in asked(query % name)]


def test_a_real_server_scrapes_it_and_no_counter_falls(tmp_path: Path) -> None:
    with exporter(tmp_path) as (_, url), server(tmp_path, url.removeprefix("http://")) as asked:
        eventually(lambda: number(asked(f"count_over_time({READS}[5m])")) >= 5, "five scrapes", 120)
        # One scrape of a busy machine may take longer than its second; the next one doesn't.
        eventually(lambda: number(asked("up")) == 1 and asked("networkobservability_forward_count"), "it is up", 60)
        falls = of_each(asked, "networkobservability_.*(count|bytes|stats)", "resets(%s[5m]) > 0")
        assert [r for r in falls if "ACTIVE" not in json.dumps(r)] == []


def test_an_exporter_that_was_killed_begins_anew_and_rates_know_it(tmp_path: Path) -> None:
    port = free_port()
    with server(tmp_path, f"127.0.0.1:{port}") as asked:
        with exporter(tmp_path, port=port, killed=True):
            eventually(lambda: number(asked(READS)) >= 8, "eight scrapes", 120)
        with exporter(tmp_path, port=port):
            eventually(lambda: number(asked(f"resets({READS}[5m])")) == 1, "the reset is seen", 120)
            (series,) = asked(f"{READS}[5m]")
            read = [float(sample) for _, sample in series["values"]]
            (anew,) = (after for before, after in pairwise(read) if after < before)
            assert anew < 8, "counters begin anew"
            assert number(asked(f"increase({READS}[5m])")) > 0
            assert number(asked(f"rate({READS}[5m])")) > 0
            assert of_each(asked, "networkobservability_.*count", "rate(%s[5m]) < 0") == []


@pytest.mark.timeout(600)
def test_ten_thousand_flows_are_bounded_and_memory_stays(tmp_path: Path) -> None:
    """1,000 scrapes and 10,000 flows: the label sets stay under the bound, and the memory where it was."""
    with exporter(tmp_path, "--most-series", "200") as (process, url):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(10_000):
                sender.sendto(b"x", ("127.0.0.1", 20_000 + number))

        def resident() -> int:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")

        scrapes, reads = 0, 0.0
        while reads < 6:  # a read is shared by the scrapes of a second; the first ones find out how much room they take
            _, _, text = get(f"{url}/metrics")
            scrapes, reads = scrapes + 1, value(text, "retinarun_exporter_reads_total")
        warm = resident()
        while scrapes < 1000 or reads < 16:
            status, _, text = get(f"{url}/metrics")
            assert status == 200
            scrapes, reads = scrapes + 1, value(text, "retinarun_exporter_reads_total")
        assert resident() < warm * 1.25 + 8_000_000
        by_metric: dict[str, int] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name = line.split("{")[0].split(" ")[0]
                by_metric[name] = by_metric.get(name, 0) + 1
        assert max(n for m, n in by_metric.items() if not m.startswith("retinarun_plugin")) <= 201
        assert value(text, "retinarun_exporter_overflow_series") > 0


def test_a_finished_run_is_in_the_textfile_and_at_the_pushgateway(lab: Lab, tmp_path: Path) -> None:
    """The Pushgateway is in the lab's namespace, where the runner is."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    gateway = subprocess.Popen(
        ["ip", "netns", "exec", lab.a, program("prometheus-pushgateway"), "--web.listen-address=127.0.0.1:9091"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9091/-/ready', timeout=5)"
        eventually(
            lambda: subprocess.run(
                ["ip", "netns", "exec", lab.a, sys.executable, "-c", ready], stderr=subprocess.DEVNULL, check=False
            ).returncode == 0,
            "the gateway is up",
        )  # fmt: skip
        run = Run(
            f"{RUNBOOK}metrics: {{textfile: {folder}, pushgateway: 'http://127.0.0.1:9091'}}\n", tmp_path, netns=lab.a
        )
        assert run.end() == 0, run.events
        assert run.stderr == ""
        (file,) = folder.iterdir()
        text = file.read_text()
        assert file.name == "retina-run-live.prom"
        assert file.stat().st_mode & 0o777 == 0o644
        assert checked(text) == ""
        assert 'retinarun_run_nodes_collected{runbook="live"} 1' in text
        asking = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9091/metrics', timeout=30).read().decode())"
        pushed = lab.inside(lab.a, sys.executable, "-c", asking)
        assert "retinarun_run_nodes_collected" in pushed
        assert 'job="retina-run"' in pushed
    finally:
        gateway.kill()
        gateway.wait()


def test_a_gateway_that_is_not_there_costs_nothing_but_a_word(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        "{name: gone, duration: 1s, metrics: {pushgateway: 'http://127.0.0.1:9091', textfile: /nowhere},"
        " captures: [{collect: [{command: {argv: [uname]}}]}]}",
        tmp_path,
        netns=lab.a,
    )
    assert run.end() == 0
    assert "/nowhere" in run.stderr


def test_the_shipped_scrape_configuration_and_dashboard_are_what_prometheus_reads(tmp_path: Path) -> None:
    """Every metric that a panel asks for is one that a plugin describes or that we serve; every expression parses."""
    from retina_runner.agent.metrics import account, plugins
    from retina_runner.exporting import OWN

    done = subprocess.run(
        [program("promtool"), "check", "config", "--syntax-only", str(REPOSITORY / "deploy/prometheus/prometheus.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    dashboard = json.loads((REPOSITORY / "deploy/grafana/retina-run.json").read_text())
    known = {**plugins.families([plugins.load(n) for n in plugins.names()]), **account.FAMILIES, **OWN}
    rules = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            rules.append({"record": f"panel:{panel['id']}", "expr": expression})
            for name in re.findall(r"\b(?:networkobservability|retinarun)_[a-z_]*[a-z]\b(?!_?\()", expression):
                assert name in known, (panel["title"], name)
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
