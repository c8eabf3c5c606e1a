"""Nodes without a compiler: what one run's node has compiled serves the next, and counts the same; what isn't fit is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from retina_runner.agent.ebpf.compiling import BROUGHT
from tests.ebpf.counting import Counting, python, without_bcc
from tests.ebpf.test_lifetime import ALL, DROPS, FORWARDED
from tests.ebpf.test_tcp import CONNECTS
from tests.lab import REPOSITORY, RETINA_RUN, Lab, Run

pytestmark = pytest.mark.root

OWN = REPOSITORY / "runbooks" / "plugins" / "connects.c"


def kept(tmp_path: Path) -> list[Path]:
    """What the runner has kept; every test has a cache of its own."""
    return sorted((tmp_path / "cache" / "retina-run" / "bytecode").glob("*.json"))


def counts(counting: Counting) -> dict[str, dict[tuple[str, ...], float]]:
    """Everything of one run that the same traffic makes the same."""
    return {
        "drops": counting.parts(DROPS, "reason", "direction", "protocol", "location"),
        "sent": counting.parts(FORWARDED, "direction", interface="eth0"),
        "flows": counting.parts("networkobservability_adv_forward_count", "direction", "protocol", "destination_port",
                                protocol="udp", direction="ingress"),
        "failed": counting.parts("retinarun_tcp_connect_failures_total", "error"),
        "resets": counting.parts("retinarun_tcp_resets_total", "direction"),
        "own": counting.parts("example_connects_total", "port", "family"),
    }  # fmt: skip


def test_a_node_without_bcc_counts_the_same_with_what_another_run_has_compiled(lab: Lab, tmp_path: Path) -> None:
    """The first compiles all plugins and one of the user's own; from the second BCC is hidden."""
    for name in (lab.a, lab.b):  # multicast reports of the kernel's own accord would differ between the two
        lab.inside(name, "ip", "link", "set", "eth0", "multicast", "off")
    found = []
    for number, wrapper in enumerate(((), without_bcc(tmp_path))):
        counting = Counting(
            tmp_path / str(number), f"plugins: [{ALL}], scope: netns, files: [{OWN}]", lab.b, wrapper=wrapper
        )
        with counting:
            lab.send("10.93.0.2", 7002, 300)
            lab.send("fd93:0::2", 7003, 200)
            assert python(lab.b, CONNECTS, "10.93.0.1", "7501", "25") == "ECONNREFUSED=25\n"
        found.append(counting)
        assert not counting.run.work.exists() or not any(counting.run.work.rglob("*.json")), "left on the node"
        assert len(kept(tmp_path)) == 2, "ours together, and the user's own"
    compiled, brought = found
    for counting, why in ((compiled, ""), (brought, BROUGHT)):
        assert set(counting.hooks().values()) == {("ok", why)}
        assert counting.missed() == {}
    first, second = counts(compiled), counts(brought)
    assert first["drops"]["NO_SOCKET", "ingress", "udp", "__udp4_lib_rcv"] == 300
    for what in ("drops", "flows", "failed", "resets", "own"):
        assert first[what] == second[what], what
    assert first["flows"] == {("ingress", "udp", "7002"): 300, ("ingress", "udp", "7003"): 200}
    assert first["failed"] == {("ECONNREFUSED",): 25}
    assert first["own"] == {("7501", "ipv4"): 25}


def test_bytecode_of_another_kernel_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Said by `--check` beforehand, and in the archive: the node has neither a compiler nor its own kernel's bytecode."""
    runbook = f"{{name: foreign, duration: 2s, captures: [{{collect: [iptables, {{ebpf: {{plugins: [dropreason], netns: [{lab.b}]}}}}]}}]}}"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert Run(runbook, tmp_path / "first").end() == 0
    (unit,) = kept(tmp_path)
    document = json.loads(unit.read_text())
    unit.write_text(json.dumps({**document, "kernel": "0" * 64}))
    second = Run(runbook, tmp_path / "second", wrapper=without_bcc(tmp_path))
    assert second.end() == 0, second.events
    (row,) = second.archive().manifest["capabilities"]
    assert row["status"] == "failed"
    assert f"{BROUGHT}: it is of another kernel" in row["why"]
    assert "python3-bpfcc" in row["hint"]
    (check,) = [e for e in second.events if e["event"] == "node-check"]
    assert [p["what"] for p in check["problems"]] == ["plugin dropreason"]


def test_an_exporter_keeps_what_it_compiled_and_needs_no_compiler_again(lab: Lab, tmp_path: Path) -> None:
    """From the second one BCC is hidden; both count the same traffic, and share the cache of runs."""
    runbook = tmp_path / "always.yaml"
    runbook.write_text(
        "{name: always, duration: 1s, captures: [{collect: [{ebpf: {plugins: [dropreason], scope: netns}}]}]}\n"
    )
    for wrapper, why in ((), ""), (without_bcc(tmp_path), BROUGHT):
        process = subprocess.Popen(
            ["ip", "netns", "exec", lab.b, *wrapper, *RETINA_RUN, "exporter", str(runbook), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = next(said for said in process.stdout if said.startswith("listening on"))
            lab.send("10.93.0.2", 7002, 300)
            url = f"http://127.0.0.1:{line.rpartition(' ')[2].strip()}/metrics"
            read = f"import urllib.request as r; print(r.urlopen({url!r}).read().decode())"
            metrics = python(lab.b, read)
        finally:
            process.terminate()
            process.wait()
        drops = [
            m for m in metrics.splitlines() if m.startswith("networkobservability_drop_count{") and "NO_SOCKET" in m
        ]
        assert [float(m.rpartition(" ")[2]) for m in drops] == [300.0]
        (info,) = [m for m in metrics.splitlines() if m.startswith("retinarun_plugin_info{") and "kfree_skb" in m]
        assert f'why="{why}"' in info
        assert len(kept(tmp_path)) == 1


def test_damaged_bytecode_is_told_and_compiled_again(lab: Lab, tmp_path: Path) -> None:
    options = "plugins: [dropreason], scope: netns"
    with Counting(tmp_path / "first", options, lab.b):
        pass
    (unit,) = kept(tmp_path)
    whole = unit.read_text()
    document = json.loads(whole)
    middle = len(document["content"]) // 2
    document["content"] = document["content"][:middle] + "AAAA" + document["content"][middle + 4 :]
    unit.write_text(json.dumps(document))
    with Counting(tmp_path / "second", options, lab.b) as second:
        lab.send("10.93.0.2", 7002, 100)
    (told,) = second.hooks().values()
    assert told == ("ok", f"compiled here; {BROUGHT}: it is damaged")
    assert second.total(DROPS, reason="NO_SOCKET") == 100
    assert unit.read_text() == whole, "mended by what was compiled"
