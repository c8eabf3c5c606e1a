"""Schedules for the schedulers that are there: one model, written as systemd units, a cron.d line or a Kubernetes CronJob."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from retina_runner.schedule.cron import Cron

MARK = "Made by `retina-run schedule`"
"""The first line of every file that is written says so; nothing without it is ever replaced or removed."""


TASKS, FLEET_TASKS = 512, 1 << 15
"""Threads and processes of a run on this machine alone, and of one elsewhere: a node takes up to two threads of the runner."""


@dataclass(frozen=True)
class Schedule:
    """When a runbook is carried out, and what it may cost. Paths are absolute.

    `arguments` follow `retina-run run`; `writable` are folders that the run must be able to write besides its own, `made`
    those of them that are made where they are missing; `environment` is a file of variables that it reads, if there is one,
    `secrets` the variables that the runbook names as `env:NAME`. `cpu_percent` is of one core, `jitter_s` and `deadline_s`
    seconds, `tasks` the most threads and processes. `tunables`: its collectors write below /sys/kernel (tracing), so that it
    can't be made read-only for them.
    """

    name: str
    summary: str
    cron: Cron
    timezone: str
    program: str
    runbook: str
    arguments: tuple[str, ...]
    folder: str
    writable: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    environment: str = ""
    secrets: tuple[str, ...] = ()
    cpu_percent: int = 100
    memory_bytes: int = 1 << 30
    tasks: int = TASKS
    jitter_s: float = 0.0
    deadline_s: float | None = None
    tunables: bool = False

    @property
    def unit(self) -> str:
        """Name of files and objects: no dots, since cron passes over files of /etc/cron.d with one."""
        return "retina-run-" + re.sub("[^a-z0-9-]", "-", self.name)

    def command(self, *, jitter: bool) -> tuple[str, ...]:
        """The run's argv. `jitter` where the scheduler has none of its own."""
        words = [self.program, "run", "--quiet-ok", "--lock", "--output", f"{self.folder}/runs"]
        if jitter and self.jitter_s:
            words += ["--jitter", f"{max(1, round(self.jitter_s))}s"]
        if self.deadline_s:
            words += ["--deadline", f"{max(1, round(self.deadline_s))}s"]
        return (*words, *self.arguments, self.runbook)


def crontab(schedule: Schedule) -> str:
    """A file for /etc/cron.d (crontab(5)): its own folder, mail only when there is something to say."""
    folder = shlex.quote(schedule.folder)
    line = f"mkdir -p -m 700 {folder} && cd {folder} && exec {shlex.join(schedule.command(jitter=True))}"
    if schedule.environment:
        file = shlex.quote(schedule.environment)
        line = f"if [ -r {file} ]; then set -a; . {file}; set +a; fi; {line}"
    escaped = line.replace("%", "\\%")  # % is a newline to cron
    return (
        f"# {MARK} for {schedule.name}; times are this machine's own\n"
        "SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        f"{schedule.cron.text} root {escaped}\n"
    )
