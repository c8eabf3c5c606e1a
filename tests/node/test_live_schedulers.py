"""What `retina-run schedule --install` writes, under a systemd and a cron that live: they run it, and it can do its work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import REPOSITORY, but_for_lateness, eventually
from tests.machine import Machine

BOOK = """
name: {name}
duration: 2s
captures:
  - nodes: local
    collect:
      - tcpdump: {{interfaces: [lo]}}
      - iptables
      - network-state
      - ebpf: {{plugins: [packetforward]}}
"""


# What the unit's hardening could keep from a run, each with a way of its own: see by_timer_kept.
OUTSIDE = """
upload:
  - directory: /srv/evidence
  - host_path: {path: incidents}
metrics: {textfile: /srv/textfile}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


def write(machine: Machine, name: str, more: str = "") -> str:
    path = f"/etc/{name}.yaml"
    made = machine.run("sh", "-c", f"cat > {path} <<'END'\n{BOOK.format(name=name)}{more}\nEND")
    assert made.returncode == 0, made
    return path


def ended(machine: Machine, name: str) -> dict[str, Any]:
    """The first run of that schedule, as its run.json has it once it has ended."""
    found: dict[str, Any] = {}

    def look() -> bool:
        first = machine.run("sh", "-c", f"cat $(ls /var/lib/retina-run-{name}/runs/*/run.json | head -n 1)").stdout
        found.update(json.loads(first) if first else {})
        return found.get("state") == "ended"

    try:
        # A minute until it is due, and what a loaded machine needs for BPF programs to compile.
        eventually(look, f"a run of {name} has ended", 200.0)
    except AssertionError as error:
        what_is_there = f"""date; cd /var/lib/retina-run-{name} && find . | head -n 60; tail -n 30 runs/*/events.jsonl
            ps -ef --forest; journalctl --no-pager -n 60; cat /var/mail/*"""
        raise AssertionError(f"{error}\n{machine.run('sh', '-c', f'({what_is_there}) 2>&1').stdout}") from error
    return found


@pytest.mark.timeout(600)
def test_a_live_systemd_and_a_live_cron_run_what_was_installed(machine: Machine) -> None:
    by_timer, by_cron = write(machine, "by-timer", OUTSIDE), write(machine, "by-cron")
    assert machine.run("mkdir", "-p", "/srv/textfile").returncode == 0
    for arguments in ((by_timer,), (by_cron, "--as", "cron")):
        # cron, which has just looked, takes a folder that was changed in the same second for one that wasn't.
        time.sleep(1.0 - time.time() % 1.0)
        assert machine.run("sh", "-c", "touch /etc/cron.d && systemctl restart cron").returncode == 0
        made = machine.retina_run("schedule", *arguments, "--on", "* * * * *", "--install")
        assert made.returncode == 0, made
    assert "retina-run-by-timer.timer" in machine.run("systemctl", "list-timers", "--no-pager").stdout
    for name in ("by-timer", "by-cron"):
        run = ended(machine, name)
        # Under the unit's hardening too, nothing that the runbook asks for was refused.
        (node,) = run["nodes"]
        assert (run["exit_code"], but_for_lateness(node["reasons"])) == (0, []), run
        assert node["verdict"] in ("complete", *["partial"] * bool(node["reasons"])), run
        assert [n["skipped"] for n in run["nodes"]] == [[]], run
        assert {c["status"] for n in run["nodes"] for c in n["collectors"]} == {"done"}, run
        assert {u["state"] for n in run["nodes"] for u in n["uploads"]} <= {"stored"}, run
    kept = machine.run(
        "ls", "/srv/evidence", "/var/lib/retina-run/archives/incidents", "/var/cache/retina-run/bytecode"
    ).stdout
    assert kept.count(".tar.gz") >= 2, kept
    assert ".json" in kept.partition("/var/cache/retina-run/bytecode")[2], kept
    eventually(
        lambda: machine.run("ls", "/srv/textfile").stdout == "retina-run-by-timer.prom\n", "the metrics are there"
    )
    for name, path in (("by-timer", by_timer), ("by-cron", by_cron)):
        removed = machine.retina_run("schedule", path, "--remove")
        assert removed.returncode == 0, removed
        assert f"retina-run-{name}" not in machine.run("sh", "-c", "ls /etc/systemd/system /etc/cron.d").stdout
    assert "retina-run" not in machine.run("systemctl", "list-timers", "--all", "--no-pager").stdout
    assert "by-timer" in machine.run("ls", "/var/lib").stdout, "the runs stay"


@pytest.mark.timeout(400)
def test_a_live_systemd_keeps_the_exporter_up(machine: Machine) -> None:
    printed = machine.retina_run("schedule", str(REPOSITORY / "runbooks/always-on.yaml"), "--as", "exporter")
    assert printed.returncode == 0, printed
    name = "retina-run-always-on-exporter.service"
    machine.run("sh", "-c", f"cat > /etc/systemd/system/{name} <<'END'\n{printed.stdout}\nEND")
    started = machine.run("systemctl", "enable", "--now", name)
    assert started.returncode == 0, started

    def healthy() -> bool:
        page = machine.run(
            "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/10093; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        )
        return "networkobservability_" in page.stdout

    eventually(healthy, f"metrics from {name}", 120.0)
    first = machine.run("systemctl", "show", "-p", "MainPID", "--value", name).stdout.strip()
    machine.run("kill", "-9", first)
    eventually(lambda: machine.run("systemctl", "show", "-p", "MainPID", "--value", name).stdout.strip() not in (first, "0"),
               "systemd starts it again", 60.0)  # fmt: skip
    eventually(healthy, "metrics again", 120.0)
    assert machine.run("systemctl", "disable", "--now", name).returncode == 0
    left = machine.run("sh", "-c", "find /tmp /var/tmp /run -name 'retina-run*' -path '*exporter*'").stdout
    assert left == "", "the scratch folder of the one that was killed went too"
