"""One boot a kernel: what came of it serves all tests of that kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retina_runner.bundle import agent_bundle
from retina_runner.planning import Place, build
from retina_runner.runbook_reading import parse_runbook
from tests.ebpf import test_dns, test_drops, test_tcp, test_traffic
from tests.ebpf.counting import Counted
from tests.kernels import machine
from tests.kernels.image import SUITES, image
from tests.lab import REPOSITORY, Archive

RUNBOOK = b"""
name: kernels
duration: 1h
limits: {disk_free_percent: 0, disk_free_bytes: 0B, node_bytes: 200MB, ready_timeout: 10m}
captures:
  - collect:
      - ebpf:
          plugins: [packetforward, dropreason, tcpretrans, tcpconnect, dns, packetparser, conntrack, linuxutil, softirq]
          netns: [a, b]
          chains: true
"""
TRAVELS = ("__init__.py", "lab.py", "ebpf/__init__.py", "ebpf/counting.py", "kernels/__init__.py", "kernels/agent.py",
           "kernels/guest.py")  # fmt: skip
SCRIPTS = {
    "BLIND": test_drops.BLIND, "SERVER": test_dns.SERVER, "CLIENT": test_dns.CLIENT, "CONNECTS": test_tcp.CONNECTS,
    "SINK": test_traffic.SINK, "POUR": test_traffic.POUR,
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a guest has left: the windows by name, other readers' numbers, and what it was."""

    suite: str
    files: dict[str, bytes]
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.files["facts.json"]))

    @property
    def truth(self) -> dict[str, Any]:
        return dict(json.loads(self.files["truth.json"]))

    @property
    def version(self) -> tuple[int, int]:
        major, minor = self.facts["kernel"].split(".")[:2]
        return int(major), int(minor)

    def window(self, name: str) -> Counted:
        path = self.folder / f"{self.suite}-{name}.tar.gz"
        path.write_bytes(self.files[f"{name}.tar.gz"])
        return Counted(Archive(path))


def job() -> dict[str, bytes]:
    """What the guests are given: the plan as a runner makes it, the agent's file, and what of the tests they run."""
    bundle = agent_bundle()
    (made,) = build(parse_runbook(RUNBOOK, "kernels.yaml"), {"": [Place("guest", "local")]}, "kernels", bundle)
    tests = REPOSITORY / "tests"
    return {
        **{f"tests/{name}": (tests / name).read_bytes() for name in TRAVELS},
        bundle.name: bundle.content, "plan.json": made.text, "scripts.json": json.dumps(SCRIPTS).encode(),
    }  # fmt: skip


@pytest.fixture(scope="session", params=SUITES)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    suite = str(request.param)
    return Seen(suite, machine.run(image(suite), job()), tmp_path_factory.mktemp(suite))
