"""Archives that lie on nodes' disks or on claims (`upload: host_path`), for `retina-run download`.

In a cluster a short-lived pod reads them (executors/kubernetes/reading.py), one for each node or claim; it is there while
archives come from it, and no longer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina_runner.cli.pods import reach_from, settings_from
from retina_runner.cli.resolve import Links
from retina_runner.errors import UsageError
from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.kubernetes.link import PodReach
from retina_runner.executors.kubernetes.objects import JobSettings
from retina_runner.executors.kubernetes.reading import Reader, Shelf
from retina_runner.fetching import Throttle, fetch
from retina_runner.report import NodeReport, RunReport
from retina_runner.uploads import NotStored

PATIENCE_S = 120.0
"""How long a connection that was lost is tried again without a byte coming."""


@dataclass(frozen=True)
class Place:
    """One shelf of one cluster."""

    to: PodReach
    shelf: Shelf

    @property
    def key(self) -> tuple[str, str, str, Shelf]:
        return self.to.kubeconfig, self.to.context, self.to.namespace, self.shelf


@dataclass(frozen=True)
class Shelved:
    """An archive on a shelf: see download.Source."""

    shelves: Shelves
    at: Place
    settings: JobSettings
    run: str
    path: str
    size_bytes: int
    sha256: str

    @property
    def place(self) -> object:
        return self.at.key

    def __str__(self) -> str:
        return self.at.shelf.describe()

    def bring(self, path: Path, give_up: threading.Event) -> None:
        try:
            reader = self.shelves.reader(self, give_up)
            wrong = self._fetch(reader, path, give_up)
        except (LinkRefused, LinkLost) as why:
            raise NotStored(str(why)) from None
        finally:
            begun = path.with_name(path.name + ".part")  # fetching.fetch's, for the next download to go on with
            if begun.exists() and not begun.stat().st_size:
                begun.unlink()
        if wrong:
            raise NotStored(f"from {self}: {wrong}")

    def _fetch(self, reader: Reader, path: Path, give_up: threading.Event) -> str:
        """Over as many connections as it takes, each going on where the last one ended."""
        moved = time.monotonic()

        def read(offset: int) -> Iterator[bytes]:
            nonlocal moved
            for chunk in reader.read(self.path, offset):
                if give_up.is_set():
                    raise NotStored("interrupted")
                moved = time.monotonic()
                yield chunk

        while True:
            try:
                return fetch(read, path, self.size_bytes, self.sha256, Throttle(None))
            except LinkLost:
                if time.monotonic() - moved > PATIENCE_S or give_up.wait(random.uniform(1.0, 3.0)):
                    raise


class Shelves:
    """The readers of one download, each by its place. `left` says what couldn't be removed, and why."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self._links = Links()
        self._readers: dict[object, Reader] = {}
        self._sizes: dict[object, int] = {}
        self._lock = threading.Lock()

    def source(self, report: RunReport, node: NodeReport, options: Mapping[str, Any], location: str) -> Shelved:
        """Where the node has kept its archive. Raises UsageError."""
        row = next(n for n in report.nodes if n.id == node.id.partition("#")[0])  # of a frozen window: its node's
        to = reach_from(row.reach)
        if not isinstance(to, PodReach):
            raise UsageError(f"{node.node}: {location} is on the node, which isn't a cluster's: copy it from there")
        settings = settings_from(report.terms, node.capture)
        name = location.rpartition("/")[2]
        if settings.claim:
            shelf, path = Shelf("", "", settings.claim), f"{options['path']}/{name}"
        else:
            shelf, path = Shelf(to.node, f"{options['base']}/{options['path']}"), name
        at = Place(to, shelf)
        self._sizes[at.key] = self._sizes.get(at.key, 0) + node.size_bytes
        return Shelved(self, at, settings, report.run, path, node.size_bytes, node.sha256)

    def reader(self, archive: Shelved, give_up: threading.Event) -> Reader:
        """The pod of that archive's shelf, running. Raises LinkRefused, LinkLost."""
        at = archive.at
        with self._lock:
            if at.key not in self._readers:
                session = self._links.session(at.to)
                self._readers[at.key] = Reader(session, at.shelf, archive.settings, archive.run, self._sizes[at.key])
            reader = self._readers[at.key]
        reader.open(at.to.ready_timeout_s, give_up)
        return reader

    def leave(self, place: object) -> None:
        """Remove the pod of a place, if there is one. What can't be removed the cluster removes; `cleanup` finds it."""
        with self._lock:
            reader = self._readers.pop(place, None)
        if reader is not None:
            try:
                reader.close()
            except (LinkRefused, LinkLost) as why:
                self.left.append(f"the Job that read from {reader.shelf.describe()} is still there: {why}")

    def close(self) -> None:
        self._links.close()
