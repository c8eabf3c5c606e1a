"""`retina-run download`: get archives back from wherever they were stored, and verify each.

From a run: the targets that it stored them at, in turn; stores first, then nodes' disks and claims (shelved.py). From a
URL (`https://account…/container/prefix`, `s3://bucket/prefix`, a folder): everything below it that is an archive.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from retina_runner.account import HEED_S
from retina_runner.agent.shelf import place
from retina_runner.cli.resume import open_run
from retina_runner.cli.run import fetch_rate
from retina_runner.cli.shelved import Shelves
from retina_runner.delivery import of_record
from retina_runner.documents import nearest
from retina_runner.errors import Exit, RetinaRunError, UsageError
from retina_runner.fetching import Throttle
from retina_runner.naming import ARCHIVE_ENDINGS
from retina_runner.uploads import NotStored, Target
from retina_runner.uploads.opening import open_target
from retina_runner.verification import verify_archive

SIDE_BY_SIDE = 10
"""How many places are read at a time."""
HIDDEN = ".retina-run-download"
"""Below the output folder: what hasn't come whole yet. A later download goes on with what came from a node."""
LOCK_POLL_S = 0.2


class Terminated(RetinaRunError):
    """SIGTERM."""

    exit_code = Exit.TERMINATED


class Source(Protocol):
    """One place of one archive. `place` is the same for archives that are read one after another; None for any other."""

    @property
    def place(self) -> object: ...

    def bring(self, path: Path, give_up: threading.Event, throttle: Throttle) -> None:
        """Have the archive at `path`. Raises NotStored, OSError; NotStored soon after `give_up` is set."""
        ...


@dataclass(frozen=True)
class Stored:
    """An archive at an upload target."""

    target: Target
    key: str

    place: object = None

    def __str__(self) -> str:
        return self.target.describe()

    def bring(self, path: Path, give_up: threading.Event, throttle: Throttle) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in self.target.read(self.key):
                if give_up.is_set():
                    raise NotStored("interrupted")
                file.write(chunk)
                throttle.take(len(chunk))


@dataclass(frozen=True)
class Wanted:
    """An archive, and where it may be."""

    name: str
    sources: Sequence[Source]

    @property
    def place(self) -> object:
        return next((s.place for s in self.sources if s.place is not None), self.name)


def main(chosen: argparse.Namespace) -> int:
    if bool(chosen.run) == bool(chosen.source):
        raise UsageError("download: name a run's directory, or say --from URL")
    folder, rate = Path(chosen.output), fetch_rate(chosen)
    shelves = Shelves()
    wanted = list(_of_url(chosen) if chosen.source else _of_run(Path(chosen.run), chosen.node, shelves))
    if not wanted:
        raise UsageError(_nothing(chosen))
    try:
        (folder / HIDDEN).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    failed = got = 0
    try:
        with _interruptible() as give_up:
            get = partial(_get, folder=folder, give_up=give_up, throttle=Throttle(rate, give_up.wait))
            with closing(_all(wanted, get, shelves, give_up)) as done:
                for one, problem in done:
                    print(f"{folder / one.name}: {problem or 'ok'}", flush=True)
                    failed, got = failed + bool(problem), got + (not problem)
    finally:
        shelves.close()
        for problem in shelves.left:
            print(f"retina-run: {problem}; retina-run cleanup {chosen.run} removes it", file=sys.stderr)
        with suppress(OSError):
            (folder / HIDDEN).rmdir()
    return Exit.OK if not failed else Exit.SOME_FAILED if got else Exit.NONE_SUCCEEDED


def _nothing(chosen: argparse.Namespace) -> str:
    whose = f" of node {', '.join(chosen.node)}" if chosen.node else ""
    if chosen.source:
        return f"--from {chosen.source}: there is no archive{whose} below it; `retina-run report` says where a run's were stored"
    return (
        f"{chosen.run}: no archive{whose} was stored anywhere else; {Path(chosen.run) / 'archives'} has what came home, "
        f"retina-run upload {chosen.run} stores it"
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that is set when this is left, in whatever way: threads see it, and let go of what they hold."""

    def terminated(number: int, frame: types.FrameType | None) -> None:
        raise Terminated("terminated")

    give_up = threading.Event()
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield give_up
    finally:
        give_up.set()
        signal.signal(signal.SIGTERM, before)


def _all(
    wanted: Sequence[Wanted], get: Callable[[Wanted], str], shelves: Shelves, give_up: threading.Event
) -> Generator[tuple[Wanted, str], None, None]:
    """Each archive with what is wrong, in their order; those of one place by one thread, which then lets go of the place."""
    places: dict[object, list[Wanted]] = {}
    for one in wanted:
        places.setdefault(one.place, []).append(one)
    problems: dict[str, str] = {}

    def bring(place: object) -> None:
        try:
            for one in places[place]:
                problems[one.name] = get(one)
        finally:
            shelves.leave(place)

    with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(places)), thread_name_prefix="download") as pool:
        try:
            for place, done in [(p, pool.submit(bring, p)) for p in places]:
                while not wait([done], HEED_S).done:
                    pass
                done.result()
                yield from ((one, problems[one.name]) for one in places[place])
        finally:
            give_up.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _of_run(run: Path, nodes: Sequence[str], shelves: Shelves) -> Iterator[Wanted]:
    """Every archive of the run that was stored somewhere, of these nodes or of all. Raises UsageError."""
    directory, report = open_run(run)
    known = {n.node for n in report.nodes}
    for name in nodes:
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"{run} has no node {name}" + (f"; {hint}" if hint else ""))
    places = {p.describe(): p for p in of_record(report.terms, directory.name).places}
    for node in report.nodes:
        if nodes and node.node not in nodes:
            continue
        here: list[Source] = []
        there: list[Source] = []
        for upload in node.uploads:
            place = places.get(upload.target)
            if upload.state != "stored" or place is None:
                continue
            if place.target is not None:
                here.append(Stored(place.target, _key(place.target, upload.location)))
            else:
                there.append(shelves.source(report, node, place.options, upload.location))
        if here or there:
            yield Wanted(_name_of(node.uploads), [*here, *there])


def _name_of(uploads: Iterable[Any]) -> str:
    """An archive's name is the same wherever it is."""
    location = next(u.location for u in uploads if u.state == "stored")
    return str(location.rpartition("/")[2])


def _key(target: Target, location: str) -> str:
    """A target's key of a location that it told itself."""
    from urllib.parse import unquote

    place = target.describe()
    if location.startswith("s3://"):
        return location.removeprefix("s3://").partition("/")[2]
    if location.startswith(("http://", "https://")):
        return unquote(location.removeprefix(place).lstrip("/"))
    return os.path.relpath(location, place)


def _of_url(chosen: argparse.Namespace) -> Iterator[Wanted]:
    target, below = _target(chosen)
    try:
        for key, _ in target.listing(below):
            name = key.rpartition("/")[2]
            if key.endswith(ARCHIVE_ENDINGS) and (not chosen.node or any(f"-{n}-" in name for n in chosen.node)):
                yield Wanted(name, [Stored(target, key)])
    except NotStored as why:
        raise UsageError(f"--from {chosen.source}: {why}") from None


def _target(chosen: argparse.Namespace) -> tuple[Target, str]:
    parts = urlsplit(chosen.source)
    credential: dict[str, Any] = {"credential": chosen.credential} if chosen.credential else {}
    if parts.query:
        raise UsageError("--from: leave the signature out of the URL; --credential env:NAME or file:PATH gives it")
    if parts.scheme == "s3":
        options = {"bucket": parts.netloc, "endpoint_url": chosen.endpoint_url, "ca_file": chosen.ca_file, **credential}
        return _open("s3", options), parts.path.lstrip("/")
    if parts.scheme in ("http", "https"):
        first, *rest = parts.path.lstrip("/").split("/")
        depth = 1
        if parts.hostname in ("127.0.0.1", "localhost") or (
            parts.port and rest
        ):  # the account stands in the path there
            depth = 2
        pieces = [first, *rest]
        container = f"{parts.scheme}://{parts.netloc}/" + "/".join(pieces[:depth])
        return _open("azure_blob", {"container_url": container, "ca_file": chosen.ca_file, **credential}), "/".join(
            pieces[depth:]
        )
    if not Path(chosen.source).is_dir():
        raise UsageError(
            f"--from {chosen.source}: neither a folder nor https://account/container/prefix or s3://bucket/prefix"
        )
    return _open("directory", {"path": chosen.source}), ""


def _open(kind: str, options: dict[str, Any]) -> Target:
    target = open_target(kind, options)
    assert target is not None
    return target


def _get(one: Wanted, folder: Path, give_up: threading.Event, throttle: Throttle) -> str:
    """Have the archive in the folder, from the first source that has it intact; why not, or nothing."""
    path = folder / one.name
    try:
        with _alone(folder / HIDDEN, one.name, give_up):
            if path.exists():
                intact = verify_archive(path).ok
                return "" if intact else "is there already, and isn't intact; remove it, or choose another --output"
            return _bring(one.sources, folder / HIDDEN / one.name, path, give_up, throttle)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror}"
    except NotStored as error:
        return str(error)


def _bring(sources: Sequence[Source], part: Path, path: Path, give_up: threading.Event, throttle: Throttle) -> str:
    """`part` has the archive's own name, which verification looks at, in a folder of its own. Raises OSError."""
    why = ""
    for source in sources:
        try:
            source.bring(part, give_up, throttle)
            problems = verify_archive(part).problems
            if not problems:
                place(part, path)
                return ""
            why = f"from {source}: {problems[0]}"
        except NotStored as error:
            why = str(error)
        finally:
            part.unlink(missing_ok=True)
    return why


@contextmanager
def _alone(folder: Path, name: str, give_up: threading.Event) -> Iterator[None]:
    """While no other download into the same folder brings this archive: what one has begun is another's to go on with, and
    not to be written by both. Raises NotStored soon after `give_up` is set."""
    path = folder / f"{name}.lock"
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it goes with the download that leaves it empty
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            if _locked(descriptor, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(descriptor)
        if give_up.wait(LOCK_POLL_S):
            raise NotStored("interrupted")


def _locked(descriptor: int, path: Path) -> bool:
    """Whether the lock of this path is ours now: whoever had it may have taken the file away since it was opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
