"""A node's own control group: in every hierarchy of version 1, with its processors and memory given, or in version 2's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def make_cgroup(name: str) -> None:
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists() and not (group / file).read_text().strip():
                (group / file).write_text((hierarchy / file).read_text())


def remove_cgroup(name: str) -> None:
    for hierarchy in [*_hierarchies(), ROOT / "unified"]:  # there, containers have theirs beside those of version 1
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            subprocess.run(["rmdir", folder], capture_output=True, check=False)


def _hierarchies() -> list[Path]:
    """The mounted hierarchies of version 1, or the one of version 2."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [p for p in ROOT.iterdir() if p.is_dir() and p.name != "unified" and (p / "cgroup.procs").exists()]
