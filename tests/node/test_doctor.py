"""What `doctor` and `plan` say beforehand of hooks at functions of the kernel, and what then becomes of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab import RETINA_RUN, Lab, Run

pytestmark = pytest.mark.root

RUNBOOK = "{name: probes, duration: 1s, captures: [{collect: [iptables, {ebpf: {plugins: [tcpconnect, linuxutil]}}]}]}"


def said(*argv: str) -> str:
    return subprocess.run([*RETINA_RUN, *argv], capture_output=True, text=True, check=False).stdout


def test_what_is_said_of_probes_beforehand_is_what_becomes_of_them(lab: Lab, tmp_path: Path) -> None:
    """Whether this machine's kernel has them or not. tests/kernels asks kernels that do."""
    run = Run(RUNBOOK, tmp_path)
    assert run.end() == 0
    (row,) = [r for r in run.archive().manifest["capabilities"] if r["hook"].startswith("kprobe:")]
    (doctor,) = [line for line in said("doctor").splitlines() if line.split()[1] == "kprobe"]
    runbook = tmp_path / "probes.yaml"
    runbook.write_text(RUNBOOK)
    (plan,) = [line for line in said("plan", str(runbook)).splitlines() if "kprobes" in line]
    if row["status"] == "ok":
        assert doctor.split()[0] == "ok"
        assert plan == "  kprobes, for more of tcpconnect: present"
    else:
        assert doctor == f"  missing  kprobe     {row['why']}; dropreason and tcpconnect tell less without"
        assert plan == f"  kprobes, for more of tcpconnect: not at security_sock_graft: {row['why']}"
    assert ("no kprobes" in row["why"]) == (not os.path.exists("/sys/bus/event_source/devices/kprobe/type"))


def test_of_other_nodes_it_is_unknown_until_they_have_tried(tmp_path: Path) -> None:
    runbook = tmp_path / "probes.yaml"
    runbook.write_text(RUNBOOK)
    lines = said("plan", str(runbook), "-i", "host1,").splitlines()
    (line,) = [line.strip() for line in lines if "kprobes" in line]
    assert (
        line
        == "kprobes, for more of tcpconnect: unknown until the node has tried; see the capabilities in its manifest"
    )
