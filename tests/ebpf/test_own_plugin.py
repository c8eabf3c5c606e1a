"""A user's own plugin beside the shipped ones: exact counts, and a program that can't be had costs nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.ebpf.counting import Background, Counting, python
from tests.ebpf.test_tcp import CONNECTS
from tests.ebpf.test_traffic import SINK
from tests.lab import REPOSITORY, Lab

pytestmark = pytest.mark.root

EXAMPLE = REPOSITORY / "runbooks" / "plugins"


def test_the_example_counts_by_program_port_and_family(lab: Lab, tmp_path: Path) -> None:
    options = f"plugins: [tcpconnect], scope: netns, files: [{EXAMPLE}/connects.c]"
    with Background(lab.b, SINK, "10.93.0.2", "7500"), Counting(tmp_path, options, lab.a) as counting:
        assert python(lab.a, CONNECTS, "10.93.0.2", "7500", "60") == "ok=60\n"
        assert python(lab.a, CONNECTS, "10.93.0.2", "7501", "25") == "ECONNREFUSED=25\n"
        assert python(lab.a, CONNECTS, "fd93:0::2", "7501", "15") == "ECONNREFUSED=15\n"
        python(lab.b, CONNECTS, "10.93.0.1", "7502", "9")  # another namespace than the one that counts
    program = os.path.basename(os.path.realpath(sys.executable))[:15]
    names = {p for (p,) in counting.parts("example_connects_total", "program")}
    assert len(names) == 1
    assert names <= {program, os.path.basename(sys.executable)[:15]}
    assert counting.parts("example_connects_total", "port", "family") == {
        ("7500", "ipv4"): 60,
        ("7501", "ipv4"): 25,
        ("7501", "ipv6"): 15,
    }
    assert counting.total("retinarun_tcp_connections_total", role="connected") == 60  # the shipped one counts beside it
    assert ("connects", "ok") in {(r["plugin"], r["status"]) for r in counting.archive.manifest["capabilities"]}
    assert b"# TYPE example_connects_total counter" in counting.archive.members["metrics/metrics.prom"]


def test_a_program_that_does_not_compile_is_told_and_the_others_count(lab: Lab, tmp_path: Path) -> None:
    """Of four of the user's own one is no C, one is refused by the verifier, one reads a member of TCP's, one lacks a hook."""
    description = json.loads((EXAMPLE / "connects.json").read_text())
    source = (EXAMPLE / "connects.c").read_text()
    programs = {
        "broken": source.replace("u64 sk = ctx", "u64 sk = no_such_thing + ctx"),
        "refused": source.replace(
            "    bpf_get_current_comm", "    key.port = *(u16 *)(sk + 12);\n    bpf_get_current_comm"
        ),
        "measures": source.replace("READ(key.port, sk, O_SK_DPORT)", "READ(key.port, sk, O_TCP_MSS)"),
        "lacks": source,
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.c").write_text(text)
        extra: dict[str, object] = {"offsets": {"O_TCP_MSS": "tcp_sock.advmss"}} if name == "measures" else {}
        if name == "lacks":
            absent = {"kind": "raw_tracepoint", "target": "no_such_point", "program": "on_set_state", "needed": True}
            extra = {"hooks": [*description["hooks"], absent]}
        renamed = json.loads(json.dumps({**description, **extra}).replace("example_connects", f"example_{name}"))
        (tmp_path / f"{name}.json").write_text(json.dumps(renamed))
    files = ", ".join(f"./{name}.c" for name in programs)
    with Counting(tmp_path, f"plugins: [tcpconnect], scope: netns, files: [{files}]", lab.a) as counting:
        assert python(lab.a, CONNECTS, "10.93.0.2", "7501", "25") == "ECONNREFUSED=25\n"
    rows = {r["plugin"]: r for r in counting.archive.manifest["capabilities"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "tcpconnect": "ok", "broken": "failed", "refused": "failed", "measures": "ok", "lacks": "skipped",
    }  # fmt: skip
    assert "no_such_thing" in rows["broken"]["why"]
    assert rows["refused"]["why"], "the verifier's words"
    assert counting.total("retinarun_tcp_connect_failures_total", error="ECONNREFUSED") == 25
    assert counting.total("example_measures_total") == 25
    skipped = {gap["what"] for gap in counting.archive.manifest["skipped"]}
    assert skipped == {"plugin broken", "plugin refused", "plugin lacks"}
    assert "no tracepoint no_such_point" in rows["lacks"]["why"]
    assert counting.total("example_lacks_total") == 0, "counted, though a hook that it needs isn't there"
