"""Every shipped runbook runs here, for a few seconds, and ends with a verified archive that has what it promises."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.lab import REPOSITORY, Lab, Run

pytestmark = pytest.mark.root

ENTRIES = {
    "quickstart": [
        "manifest.json",
        "state/delta/iptables.json",
        "state/delta/network-state.json",
        "commands/command/during-00000.stdout",
    ],
    "packet-loss": ["state/delta/iptables.json", "metrics/metrics.json", "metrics/series.jsonl"],
    "dns-latency": ["metrics/metrics.prom", "files/before/etc/resolv.conf", "files/after/etc/nsswitch.conf"],
    "tcp-timeouts": ["metrics/metrics.prom", "commands/command/during-00000.stdout"],
    "conntrack-full": ["state/delta/network-state.json"],
    "mtu-black-hole": ["commands/command/before.stdout"],
    "iptables-counters": ["state/delta/iptables.json"],
    "long-ring": ["state/delta/network-state.json"],
    "shared-evidence": ["state/delta/iptables.json", "state/delta/network-state.json"],
    "own-plugin": ["metrics/metrics.json", "metrics/metrics.prom", "metrics/series.jsonl"],
}


SEEN = ("quickstart", "dns-latency", "long-ring")
"""Those whose pcaps have the test's own traffic."""
ELSEWHERE = ("kubernetes-service", "inside-pods")
"""Those whose nodes aren't this machine: tests/unit/test_runbooks.py reads them."""


@pytest.mark.parametrize("name", sorted({p.stem for p in (REPOSITORY / "runbooks").glob("*.yaml")} - {*ELSEWHERE}))
def test_a_shipped_runbook_runs(lab: Lab, tmp_path: Path, name: str) -> None:
    """As it stands but for its duration, which is cut to two seconds in a copy, or to what a sender on a busy machine takes."""
    text = (REPOSITORY / "runbooks" / f"{name}.yaml").read_text()
    (before,) = [line for line in text.splitlines() if line.startswith("duration:")]
    shutil.copytree(REPOSITORY / "runbooks" / "plugins", tmp_path / "plugins")
    arguments = ["-e", f"base={tmp_path / 'base'}"] if name == "shared-evidence" else []
    run = Run(text.replace(before, f"duration: {6 if name in SEEN else 2}s"), tmp_path, *arguments, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 53, 25)
    assert run.end() == 0, run.events
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    assert archive.path.name.startswith(f"{name}-")
    assert set(ENTRIES.get(name, [])) <= set(archive.members)
    assert all(c["status"] == "done" for c in archive.manifest["collectors"].values()), archive.manifest["collectors"]
    # On a machine that lacks some of them, too.
    assert [artefact for artefact in archive.lacking() if artefact.startswith("files")] == [], archive.lacking()
    if name == "shared-evidence":
        for copy in (tmp_path / "evidence", tmp_path / "base/evidence"):
            assert (copy / archive.path.name).read_bytes() == archive.path.read_bytes()
    if name in SEEN:
        # 25 to the closed port; what comes back is ICMP.
        assert sum(len(p) for p in archive.pcaps().values()) >= 25
