"""`retina-run download` from the disks of hosts and of this machine: what `upload: host_path` has kept there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.agent.archive import digest_of
from retina_runner.verification import verify_archive
from tests.fleet.fleet import Fleet
from tests.fleet.test_ssh import retina_run
from tests.lab import REPOSITORY, RETINA_RUN, Run, eventually

pytestmark = [pytest.mark.root, pytest.mark.fleet]

RUNBOOK = """
name: shelf
duration: 3s
keep: never
limits: {disk_free_percent: 0, disk_free_bytes: 10MB}
captures:
  - nodes: NODES
    collect: [{command: {argv: [head, -c, "3000000", /dev/urandom], output_limit: 10MB, when: [after]}}]
upload: [{host_path: {path: incidents, base: BASE}}]
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(2) as made:
        yield made


def kept(run: Run, *nodes: str) -> dict[str, tuple[str, int, str]]:
    """Of each node: where its archive is, its size and digest. None is here."""
    assert run.end() == 0, (run.events[-5:], run.stderr)
    assert run.archives() == []
    found = {n["node"]: (n["uploads"][0]["location"], n["size_bytes"], n["sha256"]) for n in run.summary()["nodes"]}
    assert set(nodes) <= set(found)
    return found


def test_from_hosts(fleet: Fleet, tmp_path: Path) -> None:
    """As who captured there: root's archives come by sudo. Then one that was altered, and one that is gone."""
    inventory = fleet.inventory(tmp_path / "hosts.yaml", [1, 2], ansible_user="ops", ansible_become="true")
    runbook = RUNBOOK.replace("NODES", "{hosts: nodes}").replace("BASE", "/var/lib/retina-run/archives")
    run = Run(runbook, tmp_path, "-i", str(inventory), netns=fleet.netns)
    places = kept(run, "n1", "n2")
    one = retina_run(fleet, "download", str(run.directory), "--node", "n2", "--output", str(tmp_path / "one"))
    assert one.returncode == 0, (one.stdout, one.stderr)
    both = retina_run(fleet, "download", str(run.directory), "--output", str(tmp_path / "both"))
    assert both.returncode == 0, (both.stdout, both.stderr)
    for folder, nodes in (("one", ["n2"]), ("both", ["n1", "n2"])):
        assert len(list((tmp_path / folder).iterdir())) == len(nodes)
        for node in nodes:
            location, size, sha256 = places[node]
            path = tmp_path / folder / Path(location).name
            assert digest_of(path) == (size, sha256)
            assert verify_archive(path).problems == ()
    fleet.run(1, "sh", "-c", f"printf x | dd of={places['n1'][0]} bs=1 seek=500 conv=notrunc")
    fleet.run(2, "rm", places["n2"][0])
    bad = retina_run(fleet, "download", str(run.directory), "--output", str(tmp_path / "bad"))
    assert bad.returncode == 4
    altered, gone = bad.stdout.splitlines()
    assert "another sha256 than the node's" in altered
    assert "No such file or directory" in gone
    assert list((tmp_path / "bad").iterdir()) == []
    eventually(lambda: not fleet.all_left(), "nothing is left on the nodes")


def test_from_this_machine(tmp_path: Path) -> None:
    runbook = RUNBOOK.replace("NODES", "local").replace("BASE", str(tmp_path / "base"))
    run = Run(runbook, tmp_path)
    ((location, size, sha256),) = kept(run).values()
    done = subprocess.run(
        [*RETINA_RUN, "download", str(run.directory), "--output", str(tmp_path / "back")],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert digest_of(tmp_path / "back" / Path(location).name) == (size, sha256)


def test_several_at_once_into_one_folder(tmp_path: Path) -> None:
    """One of them brings the archive, the others see that it is there; what a killed one has left holds nobody up."""
    runbook = RUNBOOK.replace("NODES", "local").replace("BASE", str(tmp_path / "base"))
    run = Run(runbook.replace("3000000", "80000000").replace("10MB, when", "100MB, when"), tmp_path)
    ((location, size, sha256),) = kept(run).values()
    back, name = tmp_path / "back", Path(location).name
    (back / ".retina-run-download").mkdir(parents=True)
    (back / ".retina-run-download" / f"{name}.lock").touch()
    argv = [*RETINA_RUN, "download", str(run.directory), "--output", str(back)]
    begun = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=120)[0] for process in begun]
    assert said == [f"{back / name}: ok\n"] * 4
    assert digest_of(back / name) == (size, sha256)
    assert list(back.iterdir()) == [back / name]
