"""The same runbook on real sshd's: one T0, every archive here and verified, nothing left there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from retina_runner.schema import violations
from retina_runner.verification import verify_archive
from tests.fleet.fleet import PASSWORD, Fleet
from tests.lab import REPOSITORY, RETINA_RUN, Run, eventually, sh

pytestmark = [pytest.mark.root, pytest.mark.fleet]

RUNBOOK = """
name: fleet
duration: 4s
limits: {disk_free_percent: 1, disk_free_bytes: 10MB}
captures:
  - nodes: {hosts: nodes}
    collect:
      - tcpdump: {interfaces: [eth0], filter: udp port 7000}
      - network-state: {include: [snmp]}
"""
SENDER = (
    "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "for n in range(200): s.sendto(b'x' * 100, ('10.94.0.1', 7000))"
)


def retina_run(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", fleet.netns, *RETINA_RUN, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )


def gone(fleet: Fleet, *numbers: int) -> None:
    """Nothing of a run is on these nodes, or will be in a moment: what held on to a connection ends with it."""
    eventually(lambda: not any(fleet.left(n) for n in numbers), "nothing is left on the nodes")


def start(fleet: Fleet, tmp_path: Path, inventory: Path, *arguments: str, **env: str) -> Run:
    return Run(RUNBOOK, tmp_path, "-i", str(inventory), *arguments, netns=fleet.netns, env=env)


def test_a_fleet_captures_at_one_instant_and_nothing_is_left(fleet: Fleet, tmp_path: Path) -> None:
    inventory = fleet.inventory(tmp_path / "hosts.yaml")
    with fleet.at_once(SENDER) as send:
        # Until twenty nodes' word that they have begun is here: on a machine that has other work too.
        run = Run(RUNBOOK.replace("4s", "12s"), tmp_path, "-i", str(inventory), "--forks", "7", netns=fleet.netns)
        for _ in range(fleet.count):
            run.wait_for("window")
        send()
        assert run.end() == 0, run.events
    archives = run.archives()
    assert {a.manifest["node"] for a in archives} == {f"n{n}" for n in fleet.every_node()}
    assert {a.manifest["executor"] for a in archives} == {"ssh"}
    assert len({a.manifest["window"]["t0"] for a in archives}) == 1
    for archive in archives:
        assert len(archive.pcap()) == 200
        assert archive.manifest["host"]["hostname"] == archive.manifest["node"]
        assert abs(archive.manifest["clock"]["offset_s"]) <= archive.manifest["clock"]["offset_error_s"]
        assert not verify_archive(archive.path).problems
    summary = run.summary()
    assert summary["skew"]["nodes"] == fleet.count
    assert summary["skew"]["error_s"] > 0
    assert not [v for e in run.events for v in violations("event", e)]
    assert not violations("run", summary)
    gone(fleet, *fleet.every_node())


@pytest.mark.parametrize(
    ("user", "variables"),
    [
        ("ops", {}),
        ("diag", {"retina_become_password": "env:SUDO_PASSWORD"}),
        (
            "diag",
            {
                "retina_become_password": "env:SUDO_PASSWORD",
                "retina_password": "env:SUDO_PASSWORD",
                "ansible_ssh_private_key_file": "",
            },
        ),
    ],
)
def test_sudo_with_and_without_its_password(fleet: Fleet, tmp_path: Path, user: str, variables: dict[str, str]) -> None:
    inventory = fleet.inventory(tmp_path / "hosts.yaml", [1, 2], ansible_user=user, ansible_become="true", **variables)
    run = start(fleet, tmp_path, inventory, SUDO_PASSWORD=PASSWORD)
    run.wait_for("window")
    watched = fleet.run(1, "ps", "-eo", "args")
    assert run.end() == 0, run.events
    assert PASSWORD not in watched
    assert [a.lacking() for a in run.archives() if a.lacking()] == []
    for path in run.directory.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path
    gone(fleet, 1, 2)


@pytest.mark.parametrize(
    ("variables", "what", "why"),
    [
        ({"ansible_port": "23"}, "10.94.0.11 port 23", "connection refused"),
        ({"retina_known_hosts": "/dev/null"}, "host key of 10.94.0.11 port 22", "it isn't known"),
        ({"ansible_ssh_private_key_file": "/nowhere/key"}, "key /nowhere/key", "No such file"),
        ({"ansible_user": "nobody"}, "authentication at 10.94.0.11 port 22", "refused for user nobody"),
        ({"ansible_user": "plain", "ansible_become": "true"}, "sudo", "may not without a password"),
        ({"ansible_user": "diag", "ansible_become": "true"}, "sudo", "may not without a password"),
        (
            {"ansible_user": "diag", "ansible_become": "true", "retina_become_password": "env:WRONG"},
            "sudo",
            "the password is wrong",
        ),
        ({"ansible_python_interpreter": "/usr/bin/python9"}, "/usr/bin/python9", "not installed"),
        ({"retina_work_dir": "/proc/nowhere"}, "/proc/nowhere", "No such file"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_each_way_of_not_getting_in_is_told_apart(
    fleet: Fleet, tmp_path: Path, variables: dict[str, str], what: str, why: str
) -> None:
    run = start(fleet, tmp_path, fleet.inventory(tmp_path / "hosts.yaml", [1], **variables), WRONG="canary-wrong-1")
    assert run.end() == 2, run.events
    (failed,) = run.all("node-failed")
    assert (failed["what"], why in failed["why"]) == (what, True), failed
    assert failed["hint"]
    assert ">> /dev/null" not in failed["hint"]
    cleaned = retina_run(fleet, "cleanup", str(run.directory))
    assert (cleaned.returncode, "n1: nothing was begun there" in cleaned.stdout) == (0, True), cleaned
    gone(fleet, 1)


def test_a_host_key_that_has_changed_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    lines = fleet.known_hosts.read_text().splitlines()
    known.write_text(f"{fleet.address(1)} {lines[1].split(' ', 1)[1]}\n")
    run = start(fleet, tmp_path, fleet.inventory(tmp_path / "hosts.yaml", [1], retina_known_hosts=str(known)))
    assert run.end() == 2, run.events
    (failed,) = run.all("node-failed")
    assert "it has changed" in failed["why"]
    assert f"ssh-keygen -R {fleet.address(1)}" in failed["hint"]


def test_a_revoked_host_key_is_refused_also_where_new_ones_are_accepted(fleet: Fleet, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    line = fleet.known_hosts.read_text().splitlines()[0]
    known.write_text(f"{line}\n@revoked * {line.split(' ', 1)[1]}\n")
    inventory = fleet.inventory(
        tmp_path / "hosts.yaml", [1], retina_known_hosts=str(known), retina_host_keys="accept-new"
    )
    run = start(fleet, tmp_path, inventory)
    assert run.end() == 2, run.events
    assert "@revoked" in run.all("node-failed")[0]["why"]


def test_a_new_host_key_is_written_where_that_was_asked_for(fleet: Fleet, tmp_path: Path) -> None:
    known = tmp_path / "fresh" / "known_hosts"
    inventory = fleet.inventory(
        tmp_path / "hosts.yaml", [1], retina_known_hosts=str(known), retina_host_keys="accept-new"
    )
    (tmp_path / "runbook.yaml").write_text(RUNBOOK)
    checked = retina_run(fleet, "--check", "-i", str(inventory), str(tmp_path / "runbook.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Debian's ssh_config says HashKnownHosts.
    assert (
        sh("ssh-keygen", "-F", fleet.address(1), "-f", str(known)).split()[-1]
        in fleet.known_hosts.read_text().splitlines()[0]
    )
