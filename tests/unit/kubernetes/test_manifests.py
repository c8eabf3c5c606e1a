"""`plan --manifests` for GitOps: the same bytes from the same runbook, nodes and version. Which nodes is a fake's answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner.documents import parse_document

TOP = Path(__file__).parents[3]
RUNBOOK = """
name: nightly
duration: 5s
trigger: {condition: 'delta("Udp.NoPorts") > 0'}
captures:
  - name: %(name)s
    nodes: {kubernetes: {nodes: all, image: "registry.example/node:1"}}
    collect: [{tcpdump: {filter: udp port 53}}, iptables, network-state]
  - name: again
    nodes: {kubernetes: {nodes: all, image: "registry.example/node:1"}}
upload: [{host_path: {path: incidents}}, {s3: {bucket: captures}}]
"""
FAKE = """
import sys
from retina_runner.cli import main
from retina_runner.executors.kubernetes import choosing
settings = choosing.JobSettings(namespace="diagnostics", image="registry.example/node:1")
nodes = tuple(choosing.Chosen(f"node-{n}") for n in range(3))
choosing.select = lambda selection: choosing.Selected(nodes, "", "fake", settings)
sys.exit(main(["plan", *sys.argv[1:]]))
"""


def plan(folder: Path, seed: int, *words: str, name: str = "first") -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose hashes are of that seed, in a folder of its own."""
    here = folder / f"at-{seed}"
    here.mkdir(exist_ok=True)
    (here / "nightly.yaml").write_text(RUNBOOK % {"name": name})
    environment = {**os.environ, "PYTHONPATH": str(TOP), "PYTHONHASHSEED": str(seed)}
    return subprocess.run(
        [sys.executable, "-c", FAKE, *words, "nightly.yaml"], cwd=here, env=environment, capture_output=True, text=True
    )


def test_the_same_is_printed_again_byte_for_byte(tmp_path: Path) -> None:
    first, second = (plan(tmp_path, seed, "--manifests") for seed in (1, 2))
    assert (first.returncode, first.stderr) == (0, second.stderr)
    assert first.stdout == second.stdout
    assert "one window on all nodes takes a runner" in first.stderr
    assert "s3 takes a runner" in first.stderr
    again = plan(tmp_path, 3, "--manifests", "--run-id", "incident-42").stdout
    changed = plan(tmp_path, 4, "--manifests", name="other").stdout
    printed = [first.stdout, again, changed]
    names = [{d["metadata"]["name"] for d in documents(text)} for text in printed]
    assert [len(n) for n in names] == [13, 13, 13], "the agent, and for each of six nodes a plan and a Job"
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert all("-incident-42-" in name for name in names[1])


def documents(text: str) -> list[dict[str, dict[str, str]]]:
    return [parse_document(part.encode(), "printed").value for part in text.split("---\n")[1:]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--run-id", "x"), "it names the objects of --manifests"),
        (("--manifests", "--run-id", "A_b"), "a part of names"),
    ],
)
def test_a_name_that_would_not_do_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = plan(tmp_path, 1, *words)
    assert done.returncode == 2
    assert said in done.stderr
