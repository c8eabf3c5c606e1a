"""Archives that lie on nodes' disks or on claims (`upload: host_path`), for `retina-run download`.

In a cluster a short-lived pod reads them (executors/kubernetes/reading.py), one for each node or claim; over SSH the agent
does. Either is there while archives come from it, and no longer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from retina_runner.bundle import agent_bundle
from retina_runner.cli.pods import reach_from, settings_from
from retina_runner.cli.resolve import Links
from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.executors.kubernetes.reading import Reader, Shelf
from retina_runner.executors.serving import ServedLink
from retina_runner.fetching import Throttle, fetch
from retina_runner.inventory.connection import Connection
from retina_runner.report import NodeReport, RunReport
from retina_runner.uploads import NotStored

PATIENCE_S = 120.0
"""How long a connection that was lost is tried again without a byte coming."""

READ_BYTES = 1 << 20


class Reads(Protocol):
    """What reads from one place. `open` it, `read` from it, `close` it whatever happened."""

    def open(self, ready_timeout_s: float, give_up: threading.Event) -> None:
        """Idempotent. Raises LinkRefused, LinkLost."""
        ...

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file of that place. Raises LinkRefused, LinkLost; after LinkLost it may be called again."""
        ...

    def close(self) -> None: ...


class OfHost:
    """A folder of a host that is reached over SSH."""

    def __init__(self, link: ServedLink, work_directory: str, folder: str):
        self._link, self._work, self._folder = link, work_directory, folder
        self._open = self._lost = False

    def open(self, ready_timeout_s: float, give_up: threading.Event) -> None:
        if not self._open:
            self._link.connect()
            self._link.install(agent_bundle())
            self._open = True

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        try:
            if self._lost:
                self._link.connect()
                self._lost = False
            yield from self._link.read_kept(self._folder, path, offset)
        except LinkLost:
            self._lost = True
            raise

    def close(self) -> None:
        try:
            if self._open:
                self._link.call("remove", f"{self._work}/download")  # nothing of that name; the agent's file goes
        finally:
            self._link.close()


class OfThisMachine:
    """A folder here."""

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def open(self, ready_timeout_s: float, give_up: threading.Event) -> None:
        pass

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        try:
            with open(self._folder / path, "rb") as file:
                file.seek(offset)
                while chunk := file.read(READ_BYTES):
                    yield chunk
        except OSError as error:
            raise LinkRefused(str(self._folder), f"{path}: {error.strerror}") from None

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Place:
    """One shelf: `key` tells it from others, `make` makes what reads from it, given the bytes that are wanted."""

    key: tuple[object, ...]
    name: str
    ready_timeout_s: float
    make: Callable[[int], Reads]


@dataclass(frozen=True)
class Shelved:
    """An archive on a shelf: see download.Source."""

    shelves: Shelves
    at: Place
    path: str
    size_bytes: int
    sha256: str

    @property
    def place(self) -> object:
        return self.at.key

    def __str__(self) -> str:
        return self.at.name

    def bring(self, path: Path, give_up: threading.Event, throttle: Throttle) -> None:
        try:
            reader = self.shelves.reader(self, give_up)
            wrong = self._fetch(reader, path, give_up, throttle)
        except (LinkRefused, LinkLost) as why:
            raise NotStored(str(why)) from None
        finally:
            begun = path.with_name(path.name + ".part")  # fetching.fetch's, for the next download to go on with
            if begun.exists() and not begun.stat().st_size:
                begun.unlink()
        if wrong:
            raise NotStored(f"from {self}: {wrong}")

    def _fetch(self, reader: Reads, path: Path, give_up: threading.Event, throttle: Throttle) -> str:
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
                return fetch(read, path, self.size_bytes, self.sha256, throttle)
            except LinkLost:
                if time.monotonic() - moved > PATIENCE_S or give_up.wait(random.uniform(1.0, 3.0)):
                    raise


class Shelves:
    """The readers of one download, each by its place. `left` says what couldn't be removed, and why."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self._links = Links()
        self._readers: dict[object, tuple[str, Reads]] = {}
        self._sizes: dict[object, int] = {}
        self._lock = threading.Lock()

    def source(self, report: RunReport, node: NodeReport, options: Mapping[str, Any], location: str) -> Shelved:
        """Where the node has kept its archive. Raises UsageError."""
        row = next(n for n in report.nodes if n.id == node.id.partition("#")[0])  # of a frozen window: its node's
        to = reach_from(row.reach)
        folder, _, name = location.rpartition("/")
        path = name
        if isinstance(to, PodReach):
            at, path = self._in_a_cluster(report, node, to, options, name)
        elif to is None:
            at = Place((folder,), folder, 0.0, lambda size: OfThisMachine(folder))
        else:
            at = self._over_ssh(row, to, folder)
        self._sizes[at.key] = self._sizes.get(at.key, 0) + node.size_bytes
        return Shelved(self, at, path, node.size_bytes, node.sha256)

    def _in_a_cluster(
        self, report: RunReport, node: NodeReport, to: PodReach, options: Mapping[str, Any], name: str
    ) -> tuple[Place, str]:
        settings = settings_from(report.terms, node.capture)
        shelf, path = Shelf(to.node, f"{options['base']}/{options['path']}"), name
        if settings.claim:
            shelf, path = Shelf("", "", settings.claim), f"{options['path']}/{name}"

        def make(size_bytes: int) -> Reads:
            return Reader(self._links.session(to), shelf, settings, report.run, size_bytes)

        key = (to.kubeconfig, to.context, settings.namespace, shelf)
        return Place(key, shelf.describe(), to.ready_timeout_s, make), path

    def _over_ssh(self, row: NodeReport, to: Connection, folder: str) -> Place:
        work = str(Path(row.directory).parent)

        def make(size_bytes: int) -> Reads:
            link = self._links.to(to, work)
            assert isinstance(link, ServedLink)
            return OfHost(link, work, folder)

        return Place((row.id, folder), f"{row.node}: {folder}", 0.0, make)

    def reader(self, archive: Shelved, give_up: threading.Event) -> Reads:
        """What reads from that archive's shelf, ready. Raises LinkRefused, LinkLost."""
        at = archive.at
        with self._lock:
            if at.key not in self._readers:
                # From here on it is somebody's to remove.
                self._readers[at.key] = at.name, at.make(self._sizes[at.key])
            _, reader = self._readers[at.key]
        reader.open(at.ready_timeout_s, give_up)
        return reader

    def leave(self, place: object) -> None:
        """Remove what read from a place, if there is one. What can't be removed the cluster removes; `cleanup` finds it."""
        with self._lock:
            name, reader = self._readers.pop(place, ("", None))
        if reader is not None:
            try:
                reader.close()
            except (LinkRefused, LinkLost) as why:
                self.left.append(f"what read from {name} is still there: {why}")

    def close(self) -> None:
        self._links.close()
