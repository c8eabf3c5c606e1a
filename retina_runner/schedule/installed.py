"""Schedules on this machine: written whole or not at all, found again by their mark, removed without a trace.

`root` is another root directory (an image, a test): files go below it, and no running systemd is spoken to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retina_runner.agent import process
from retina_runner.errors import UsageError
from retina_runner.schedule import MARK

UNITS, CRON = "etc/systemd/system", "etc/cron.d"
CLOCK_TICK_S = 0.02
"""The clock of file systems is behind by a tick of the kernel's, 10 ms at most."""


@dataclass(frozen=True)
class Installed:
    """One schedule that is there: its unit name, how (systemd or cron), its files, and when it fires, as it says."""

    unit: str
    kind: str
    files: tuple[Path, ...]
    when: str


def found(root: Path) -> tuple[Installed, ...]:
    """Every schedule of ours below that root, by name."""
    schedules = []
    for timer in sorted((root / UNITS).glob("retina-run-*.timer")):
        if ours(timer):
            files = tuple(p for p in (timer.with_suffix(".service"), timer) if p.exists())
            when = "; ".join(_values(timer, "OnCalendar="))
            schedules.append(Installed(timer.stem, "systemd", files, when))
    for line in sorted((root / CRON).glob("retina-run-*")):
        if ours(line):
            when = next((" ".join(x.split()[:5]) for x in line.read_text().splitlines() if " root " in x), "")
            schedules.append(Installed(line.name, "cron", (line,), when))
    return tuple(schedules)


def install(root: Path, files: Mapping[str, str], timer: str) -> tuple[Path, ...]:
    """Write the files (path below the root to text), and let systemd know of `timer`, if one is named. Raises UsageError."""
    for name in files:
        path = root / name
        if path.exists() and not ours(path):
            raise UsageError(f"{path}: is there, and not from `retina-run schedule`; nothing was written")
    if timer and root == Path("/") and not Path("/run/systemd/system").is_dir():
        raise UsageError("systemd doesn't run here; nothing was written (--as cron, or --root DIR for an image)")
    written = []
    try:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.chmod(0o644)
            os.replace(part, path)
            written.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; installing takes root") from error
    if timer:
        if root == Path("/"):
            _systemctl("daemon-reload")
            _systemctl("enable", "--now", timer)
        else:
            _systemctl(f"--root={root}", "enable", timer)
    _tell_cron(root, written)
    return tuple(written)


def remove(root: Path, unit: str) -> tuple[Path, ...]:
    """Take the schedule of that name away; its runs stay. The files that were removed. Raises UsageError."""
    gone: list[Path] = []
    for schedule in found(root):
        if schedule.unit != unit:
            continue
        if schedule.kind == "systemd":
            if root != Path("/"):
                _systemctl(f"--root={root}", "disable", f"{unit}.timer")
            elif Path("/run/systemd/system").is_dir():
                _systemctl("disable", "--now", f"{unit}.timer")
        for path in schedule.files:
            path.unlink()
            gone.append(path)
    if gone and root == Path("/") and Path("/run/systemd/system").is_dir():
        _systemctl("daemon-reload")
    _tell_cron(root, gone)
    return tuple(gone)


def _tell_cron(root: Path, changed: Iterable[Path]) -> None:
    """Change its folder once more when the second is over.

    cron knows by whole seconds when the folder was last changed: of two changes in one second it would never see the second
    if it had looked between them.
    """
    folder = root / CRON
    if root != Path("/") or folder not in {path.parent for path in changed}:
        return
    time.sleep(1.0 - time.time() % 1.0 + CLOCK_TICK_S)
    os.utime(folder)


def ours(path: Path) -> bool:
    """Whether the file's first line has our mark."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return MARK in file.readline()
    except OSError:
        return False


def _systemctl(*arguments: str) -> None:
    try:
        outcome = process.run(["systemctl", *arguments], limit_s=60.0)
    except process.MissingTool as missing:
        raise UsageError(f"{missing}; the files are written, the timer isn't enabled") from missing
    if outcome.exit_status != 0:
        raise UsageError(f"systemctl {' '.join(arguments)}: {outcome.stderr.decode(errors='replace').strip()}")


def _values(path: Path, key: str) -> list[str]:
    return [x.removeprefix(key) for x in path.read_text(encoding="utf-8").splitlines() if x.startswith(key)]
