"""The agent's own file in a guest, by its verbs, as a runner would call it. Standard library of Python 3.9: guests import it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from retina_runner.agent.release import begin_lead_s
from retina_runner.agent.solo import T0_LEAD_S
from tests.lab import eventually, processes

PATIENCE_S = 1800.0
"""A compile by BCC in translated code."""


class Window:
    """A context: inside of it the plan's plugins count. Afterwards its archive lies at `kept`."""

    def __init__(self, file: Path, plan: dict[str, Any], kept: Path):
        self._file, self._plan, self._kept = file, plan, kept
        self._directory = kept.parent / f"work-{kept.name.partition('.')[0]}"

    def call(self, verb: str, *arguments: str, stdin: Any = None) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-I", str(self._file), verb, *arguments],
            input=json.dumps(stdin).encode(), stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, (verb, said)
        return said

    def _wait_for(self, event: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def there() -> bool:
            events = self.call("events", str(self._directory), "--follow", "5")
            found[:] = [e for e in events if e["event"] == event]
            assert found or events[-1]["event"] != "end", events
            return bool(found)

        eventually(there, event, PATIENCE_S)
        return found[0]

    def __enter__(self) -> Window:
        print(f"{time.monotonic():.0f} s after power-on: {self._directory.name}", flush=True)
        self.call("start", str(self._directory), stdin=self._plan)
        ready = self._wait_for("ready")
        t0 = time.time() + begin_lead_s(ready["rehearsal_s"]) + T0_LEAD_S
        self.call("release", str(self._directory), stdin={"t0": t0, "reference_t0": t0})
        # The counters are zeroed at T0 and a first line is written at once: from then on everything counts.
        print(f"{time.monotonic():.0f} s: {self._directory.name} is released", flush=True)
        series = self._directory.rglob
        eventually(lambda: any(p.stat().st_size for p in series("series.jsonl")), "a first sample", PATIENCE_S)
        return self

    def bytecode(self) -> list[dict[str, Any]]:
        """What was compiled here."""
        return list(self.call("bytecode", str(self._directory))[0]["units"])

    def kill(self) -> None:
        """As nothing can be caught: every process of the agent at once."""
        for pid in processes():
            with suppress(ProcessLookupError):  # one that has ended with its parent
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not processes(), "every process gone")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and processes():
            self.call("stop", str(self._directory))
            assert self._wait_for("end")["state"] == "collected"
            (archive,) = (self._directory / "archive").glob("*.tar.gz")
            self._kept.write_bytes(archive.read_bytes())
            self.call("remove", str(self._directory))
