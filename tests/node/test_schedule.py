"""What `retina-run schedule` prints, as systemd itself reads it: its calendar, its unit files, its view of their safety."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from retina_runner.schedule.cron import Cron, parse_cron
from tests.lab import REPOSITORY, RETINA_RUN, sh
from tests.unit.test_schedule import expressions

UTC = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
BASE = datetime.datetime(2026, 2, 27, 12, 0)


def elapses(events: tuple[str, ...], base: datetime.datetime, count: int) -> list[datetime.datetime]:
    """The next instants of all events together, in UTC, as systemd computes them."""
    found = set()
    for event in events:
        done = subprocess.run(
            ["systemd-analyze", "calendar", f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC", f"--iterations={count}", event],
            capture_output=True, text=True, check=True, env=UTC,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            label, _, value = line.partition(":")
            if label.strip() in ("Next elapse",) or label.strip().startswith(("Iter.", "Iteration")):
                words = value.split()
                if len(words) >= 3 and words[-1] == "UTC":
                    found.add(datetime.datetime.fromisoformat(f"{words[-3]} {words[-2]}"))
    return sorted(found)[:count]


def by_definition(cron: Cron, base: datetime.datetime, until: datetime.datetime) -> list[datetime.datetime]:
    minute = datetime.timedelta(minutes=1)
    found, when = [], base + minute
    while when <= until:
        if cron.matches(when):
            found.append(when)
        when += minute if when.hour in cron.hours else datetime.timedelta(minutes=60 - when.minute)
    return found


@settings(max_examples=40)
@given(expressions(), st.integers(0, 3 * 365 * 24))
def test_systemd_elapses_when_cron_would(text: str, hours: int) -> None:
    base = BASE + datetime.timedelta(hours=hours)
    cron = parse_cron(text)
    theirs = elapses(cron.on_calendar("UTC"), base, 4)
    near = [t for t in theirs if t <= base + datetime.timedelta(days=40)]
    assert by_definition(cron, base, base + datetime.timedelta(days=40))[:4] == near[:4]


def test_a_day_has_24_hours_in_utc_and_the_clock_change_is_the_zones_own() -> None:
    cron = parse_cron("30 2 * * *")
    base = datetime.datetime(2026, 3, 28, 0, 0)
    assert [t.hour for t in elapses(cron.on_calendar("UTC"), base, 3)] == [2, 2, 2]
    # 2026-03-29 02:30 doesn't exist in Berlin; whatever systemd makes of it, the days around it are as the zone says.
    zone = elapses(cron.on_calendar("Europe/Berlin"), base, 3)
    assert zone[0] == datetime.datetime(2026, 3, 28, 1, 30)
    assert datetime.datetime(2026, 3, 30, 0, 30) in zone
    # 2026-10-25 has 02:30 twice in Berlin, in UTC once.
    base = datetime.datetime(2026, 10, 24, 0, 0)
    assert [(t.day, t.hour) for t in elapses(cron.on_calendar("UTC"), base, 3)] == [(24, 2), (25, 2), (26, 2)]
    zone = elapses(cron.on_calendar("Europe/Berlin"), base, 3)
    assert zone[0] == datetime.datetime(2026, 10, 24, 0, 30)
    assert zone[1] in (datetime.datetime(2026, 10, 25, 0, 30), datetime.datetime(2026, 10, 25, 1, 30))
    assert datetime.datetime(2026, 10, 26, 1, 30) in zone


def retina_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RETINA_RUN, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY)


def test_units_are_installed_verified_listed_and_removed(tmp_path: Path) -> None:
    made = retina_run("schedule", "runbooks/packet-loss.yaml", "--on", "*/30 * 1 * mon-fri", "--jitter", "2m", "--deadline",
                      "20m", "--install", "--root", str(tmp_path))  # fmt: skip
    assert made.returncode == 0, made
    units = tmp_path / "etc/systemd/system"
    service, timer = units / "retina-run-packet-loss.service", units / "retina-run-packet-loss.timer"
    assert (units / "timers.target.wants/retina-run-packet-loss.timer").is_symlink()
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", str(service), str(timer)], capture_output=True, text=True,
                              check=False)  # fmt: skip
    assert (verified.returncode, [x for x in verified.stderr.splitlines() if "retina-run" in x]) == (0, []), verified
    assert timer.read_text().count("OnCalendar=") == 2
    listed = retina_run("schedule", "list", "--root", str(tmp_path))
    assert "retina-run-packet-loss  systemd  " in listed.stdout
    removed = retina_run("schedule", "runbooks/packet-loss.yaml", "--remove", "--root", str(tmp_path))
    assert removed.returncode == 0, removed
    assert [p for p in tmp_path.rglob("*") if not p.is_dir() or p.is_symlink()] == []


def test_the_service_is_no_more_exposed_than_its_work_demands(tmp_path: Path) -> None:
    unit = tmp_path / "retina-run-quickstart.service"
    printed = retina_run("schedule", "runbooks/quickstart.yaml", "--on", "@daily").stdout
    unit.write_text(printed.split(".timer\n")[0].rpartition("\n")[0])
    # systemd's own measure from 0.0 to 10.0: 6.5 by version 252; a service that says nothing has 9.6 ("UNSAFE").
    text = sh("systemd-analyze", "security", "--offline=yes", "--threshold=70", "--no-pager", str(unit), check=False)
    (overall,) = [x for x in text.splitlines() if "Overall exposure level" in x]
    assert float(overall.split(":")[1].split()[0]) <= 7.0, overall


def test_words_that_make_no_schedule_are_refused() -> None:
    for words, said in (
        ((), "say when"),
        (("--on", "* * *"), "has 3 fields"),
        (("--on", "@daily", "--timezone", "Mars/Base"), "not a zone"),
        (("--on", "@daily", "--as", "cron", "--timezone", "UTC"), "the machine's"),
        (("--on", "@daily", "--as", "cronjob", "--image", "x"), "aren't the cluster's"),
    ):
        refused = retina_run("schedule", "runbooks/quickstart.yaml", *words)
        assert refused.returncode == 2, refused
        assert said in refused.stderr
        assert refused.stdout == ""


def test_the_exporters_service_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "retina-run-always-on-exporter.service"
    printed = retina_run("schedule", "runbooks/always-on.yaml", "--as", "exporter")
    assert printed.returncode == 0, printed
    unit.write_text(printed.stdout)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, [x for x in verified.stderr.splitlines() if "retina-run" in x]) == (0, []), verified
    refused = retina_run("schedule", "runbooks/quickstart.yaml", "--as", "exporter")
    assert refused.returncode == 2
    assert "has no `ebpf`" in refused.stderr
