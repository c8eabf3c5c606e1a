"""The run directory: `run.json`, `events.jsonl`, `plans/`, `archives/`, `junit.xml`; private, and enough to know it all later."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina_runner.agent.passing import is_full
from retina_runner.agent.workspace import Room
from retina_runner.errors import UsageError

RUNS_HINT = "`retina-run list` shows the runs below a folder"


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Making the object touches nothing; `create` does."""

    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "run.json"

    @property
    def plans(self) -> Path:
        return self.path / "plans"

    @property
    def archives(self) -> Path:
        return self.path / "archives"

    @property
    def junit(self) -> Path:
        return self.path / "junit.xml"

    @staticmethod
    def create(parent: Path, run: str, plans: Mapping[str, str] | None = None) -> RunDirectory:
        """Make `parent/run` (0700), or `parent/run-2` … where another run began in the same second, with the texts of its
        plans by their ids. Raises UsageError, and leaves nothing then."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number, path = 1, parent / run
            while True:
                try:
                    path.mkdir(mode=0o700)
                    break
                except FileExistsError:
                    number += 1
                    path = parent / f"{run}-{number}"
            directory = RunDirectory(path)
            try:
                directory.plans.mkdir(mode=0o700)
                directory.archives.mkdir(mode=0o700)
                for identifier, text in (plans or {}).items():
                    directory.write(directory.plan(identifier), text, sync=False)
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise
        except OSError as error:
            raise UsageError(
                f"{error.filename or parent}: {error.strerror}; nothing was touched; "
                f"{'free some space, or ' if is_full(error) else ''}choose another place with --output DIR"
            ) from error
        # A run begins meanwhile: of a hundred plans each would wait for the disk once.
        written = [directory.plan(identifier) for identifier in plans or {}]
        threading.Thread(target=_sync, args=(written,), name="sync", daemon=True).start()
        return directory

    @staticmethod
    def open(path: Path) -> RunDirectory:
        """A run directory that is there. Raises UsageError for anything else."""
        directory = RunDirectory(path)
        if not directory.events.is_file():
            raise UsageError(f"{path}: not a run directory (it has no events.jsonl); {RUNS_HINT}")
        return directory

    def plan(self, identifier: str) -> Path:
        """Where the plan of that id is."""
        return self.plans / f"{identifier.replace('/', '_')}.json"

    @property
    def name(self) -> str:
        return self.path.name

    def write(self, path: Path, text: str, sync: bool = True) -> None:
        """Replace one file in one step, whichever other processes do so at the same time; with `sync` it is on the disk then.
        Raises OSError with the file's name, and leaves the old one then."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process goes on with this run; it ends with the process, whatever ends that. Raises UsageError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{self.path}: not a run directory: {error.strerror}; {RUNS_HINT}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                why = "another retina-run goes on with it at this moment; wait for that one's end"
                raise UsageError(f"{self.path}: {why}; nothing was touched") from None
            except OSError:
                pass  # a file system without locks on folders, NFS among them
            yield
        finally:
            os.close(descriptor)

    def read_events(self) -> Iterator[dict[str, Any]]:
        """The run's events in order, none for a run without a journal; a line that a crash cut short is passed over."""
        if not self.events.exists():
            return
        with open(self.events, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event


def _sync(paths: Iterable[Path]) -> None:
    """Have these files on the disk. Of what goes meanwhile, or of a disk that fails, nobody needs to hear here."""
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class EventLog:
    """Appends events to a run's `events.jsonl`, numbered by `seq`; each line is one write(2), so that a dead runner's are there."""

    def __init__(self, directory: RunDirectory):
        self._descriptor = os.open(directory.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._next = sum(1 for _ in directory.read_events())
        self._room = Room(self._descriptor)
        self.trouble = ""

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Number the event and write it; the event as written.

        A disk that is full costs the journal, never the run: `trouble` says so from then on. It has room for its end,
        though, and progress leaves that alone.
        """
        numbered = {"seq": self._next, **event}
        self._next += 1
        line = (json.dumps(numbered, separators=(",", ":")) + "\n").encode()
        if not self._room.ahead(len(line)) and event.get("event") == "progress":
            return numbered
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                self.trouble = "no space left on device"
                os.write(self._descriptor, b"\n")
        except OSError as error:
            self.trouble = error.strerror or str(error)
        return numbered

    def close(self) -> None:
        os.close(self._descriptor)
