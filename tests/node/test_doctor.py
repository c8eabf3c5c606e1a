"""What `doctor` and `plan` say beforehand of hooks at functions of the kernel, and what then becomes of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab import RETINA_RUN, Lab, Run

pytestmark = pytest.mark.root

RUNBOOK = "{name: probes, duration: 2s, captures: [{collect: [iptables, {ebpf: {plugins: [tcpconnect, linuxutil]}}]}]}"


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


@pytest.mark.parametrize(
    ("hidden", "why"),
    [("/sys/kernel/btf", "has no BTF"), ("/usr/lib/python3/dist-packages/bcc", "apt-get install python3-bpfcc")],
)
def test_plan_says_beforehand_which_plugins_cannot_be_had_here(tmp_path: Path, hidden: str, why: str) -> None:
    runbook = tmp_path / "probes.yaml"
    runbook.write_text(RUNBOOK)
    assert not [x for x in said("plan", str(runbook)).splitlines() if "ebpf without" in x]
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none {hidden} && exec "$@"',
        "sh",
        *RETINA_RUN,
        "plan",
        str(runbook),
    ]
    # No bytecode from an earlier run: that would need no compiler.
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout.splitlines()
    (line,) = [x for x in lines if "ebpf without" in x]
    assert line.startswith("  ebpf without tcpconnect: ")  # linuxutil needs neither
    assert why in line


def test_of_other_nodes_it_is_unknown_until_they_have_tried(tmp_path: Path) -> None:
    runbook = tmp_path / "probes.yaml"
    runbook.write_text(RUNBOOK)
    lines = said("plan", str(runbook), "-i", "host1,").splitlines()
    (line,) = [line.strip() for line in lines if "kprobes" in line]
    assert (
        line
        == "kprobes, for more of tcpconnect: unknown until the node has tried; see the capabilities in its manifest"
    )
