"""Names in conditions are checked with the runbook where they are known, at their place, with the nearest ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from retina_runner.cli import main
from retina_runner.errors import DocumentError
from retina_runner.runbook_reading import load_runbook, parse_runbook
from tests.lab import REPOSITORY

BOOK = """name: watch
{where}
captures:
  - collect: [{{ebpf: {{plugins: [{plugins}]}}}}]
"""


def book(condition: str, plugins: str = "dropreason", form: str = "when") -> bytes:
    where = f"expect:\n  - '{condition}'" if form == "expect" else f"{form}: {{condition: '{condition}'}}"
    return BOOK.format(where=where, plugins=plugins).encode()


def wrong(content: bytes) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_runbook(content, "r.yaml")
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize("form", ["when", "trigger", "expect"])
@pytest.mark.parametrize(
    "condition",
    [
        'delta("networkobservability_drop_count", reason="NO_SOCKET") > 0',
        'rate("networkobservability_drop_bytes") > 0 and value("conntrack.use") > 80',
        'delta("softnet.dropped") > 0 or delta("interface.rx_errors", interface="eth0") > 0',
        'delta("TcpExt.ListenDrops") + delta("qdisc.drops") > 0',
        'delta("retinarun_bpf_runs_total") > 0',
    ],
)
def test_what_is_known_is_well(form: str, condition: str) -> None:
    assert parse_runbook(book(condition, form=form), "r.yaml").notes == ()


@pytest.mark.parametrize("form", ["when", "trigger", "expect"])
def test_a_metric_of_a_plugin_that_is_not_collected_names_that_plugin(form: str) -> None:
    said = wrong(book('delta("networkobservability_drop_count") > 0', "dns", form))
    assert said.startswith("r.yaml:2:" if form != "expect" else "r.yaml:3:")
    assert "no plugin of this runbook has a metric networkobservability_drop_count" in said
    assert "collect ebpf: {plugins: [dropreason]}, which has it" in said


def test_a_misspelt_metric_names_the_nearest() -> None:
    said = wrong(book('delta("networkobservability_drop_cuont") > 0'))
    assert "at character 7" in said
    assert "the nearest: networkobservability_drop_count" in said


def test_a_misspelt_label_names_those_that_there_are() -> None:
    said = wrong(book('delta("networkobservability_drop_count", raeson="X") > 0'))
    assert "networkobservability_drop_count has no label raeson" in said
    assert "the nearest: reason" in said


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("softnet.droped", "softnet.dropped"),
        ("interface.rx_error", "interface.rx_errors"),
        ("qdisc.drop", "qdisc.drops"),
        ("softirq.NETRX", "softirq.NET_RX"),
    ],
)
def test_a_counter_that_the_agent_names_is_known(name: str, near: str) -> None:
    said = wrong(book(f'delta("{name}") > 0'))
    assert f"there is no counter {name}" in said
    assert near in said


def test_one_that_another_kernel_may_have_is_a_note() -> None:
    (note,) = parse_runbook(book('delta("Udp.InErorrs") > 0'), "r.yaml").notes
    assert note == "when.condition: this machine's kernel has no counter Udp.InErorrs; the nearest is Udp.InErrors"


SEVERAL = """
name: watch
when: {condition: 'delta("networkobservability_drop_count") > 0'}
captures:
  - {name: a, collect: [{ebpf: {plugins: [dropreason]}}]}
  - {name: b, collect: [{tcpdump: {ring: {files: 2, file_size: 1MB}}}]}
"""


def test_every_node_has_to_have_what_when_asks_and_one_what_a_trigger_does() -> None:
    said = wrong(SEVERAL.encode())
    assert "no plugin of capture b has a metric networkobservability_drop_count" in said
    parse_runbook(SEVERAL.replace("when:", "trigger:").encode(), "r.yaml")


def test_metrics_of_own_plugins_are_known(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "runbooks" / "plugins", tmp_path / "plugins")
    name = json.loads((tmp_path / "plugins" / "connects.json").read_text())["metrics"][0]["name"]
    book = tmp_path / "own.yaml"
    text = (REPOSITORY / "runbooks" / "own-plugin.yaml").read_text()
    book.write_text(f"{text}\nexpect: ['delta(\"{name}\") >= 0']\n")
    assert load_runbook(book).expect
    book.write_text(f"{text}\nexpect: ['delta(\"{name}s\") >= 0']\n")
    with pytest.raises(DocumentError, match=f"the nearest: {name}"):
        load_runbook(book)


def test_check_and_plan_tell_a_counter_that_this_kernel_lacks_not_only_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(book('delta("Udp.InErorrs") > 0'))
    for verb in ("check", "plan"):
        assert main([verb, str(path)]) == 0
        said = capsys.readouterr()
        assert "no counter Udp.InErorrs; the nearest is Udp.InErrors" in said.out + said.err
