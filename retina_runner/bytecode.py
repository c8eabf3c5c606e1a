"""BPF programs that nodes have compiled, kept by the runner, so that nodes of the same kernel need no compiler.

A file a unit in the user's own cache directory (XDG Base Directory Specification); nothing of it stays on a node. A plan
takes along the units that could serve it, one for each kernel that was met; the node chooses, and examines what it gets.
Losing the directory costs time, and nodes without BCC their BPF plugins, until a node of their kernel has compiled again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_runner.agent.ebpf import bytecode, compiling
from retina_runner.bundle_cache import cache_directory

MOST_KERNELS = 8
"""How many kernels' units a plan takes along for the same programs, the newest; each is some 15 kB."""
MOST_FILES = 256
DIGESTS = ("programs", "kernel", "sha256")


def default_directory() -> Path:
    """`retina-run/bytecode` in $XDG_CACHE_HOME, or in ~/.cache."""
    return cache_directory() / "bytecode"


class Store:
    """The units below one directory. No method raises for a directory that can't be used: then there are none."""

    def __init__(self, directory: Path):
        self._directory = directory

    def supply(self, plan: Mapping[str, Any]) -> bytes:
        """The plan's text as a node gets it, with the units that could serve it."""
        collectors = [
            {**entry, "options": self.supplied(entry["options"])} if entry["name"] == "ebpf" else entry
            for entry in plan["collectors"]
        ]
        return (json.dumps({**plan, "collectors": collectors}, indent=1) + "\n").encode()

    def supplied(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of an `ebpf` entry, with the units that could serve it."""
        units = self._units(options)
        return {**options, **({"bytecode": units} if units else {})}

    @staticmethod
    def concerns(plan: Mapping[str, Any]) -> bool:
        """Whether a node that does this plan has programs to compile."""
        return any(
            compiling.chosen(entry["options"]["plugins"], entry["options"])
            for entry in plan["collectors"]
            if entry["name"] == "ebpf"
        )

    def keep(self, units: Sequence[Mapping[str, Any]]) -> None:
        """Add what a node has compiled, but for what a node would refuse."""
        for unit in units:
            try:
                bytecode.unpack(unit)
            except bytecode.Unfit:
                continue
            if all(isinstance(unit.get(name), str) and _is_digest(unit[name]) for name in DIGESTS):
                self._write(unit)
        self._prune()

    def _units(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        wanted = compiling.groups(compiling.chosen(options["plugins"], options), options)
        found: list[dict[str, Any]] = []
        for group in wanted:
            programs = compiling.digest_of(group, options)
            paths = sorted(self._paths(f"{programs[:32]}-*.json"), key=_age)
            for path in paths[:MOST_KERNELS]:
                try:
                    unit = json.loads(path.read_bytes())
                except (OSError, ValueError):
                    continue
                if isinstance(unit, dict) and unit.get("programs") == programs:
                    found.append(unit)
        return found

    def _paths(self, pattern: str) -> list[Path]:
        try:
            return list(self._directory.glob(pattern))
        except OSError:
            return []

    def _write(self, unit: Mapping[str, Any]) -> None:
        path = self._directory / f"{unit['programs'][:32]}-{unit['kernel'][:32]}.json"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=self._directory)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(unit, file)
            os.replace(partial, path)
        except OSError:
            return

    def _prune(self) -> None:
        for path in sorted(self._paths("*.json"), key=_age)[MOST_FILES:]:
            try:
                path.unlink()
            except OSError:
                continue


def _age(path: Path) -> float:
    """For sorting: the newest first."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
