"""`retina-run download`: get archives back from wherever they were stored, and verify each.

From a run: the targets that it stored them at, in turn. From a URL (`https://account…/container/prefix`,
`s3://bucket/prefix`, a folder): everything below it that is an archive.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retina_runner.cli.resume import open_run
from retina_runner.delivery import of_record
from retina_runner.errors import Exit, UsageError
from retina_runner.naming import ARCHIVE_ENDINGS
from retina_runner.uploads import NotStored, Target
from retina_runner.uploads.opening import open_target
from retina_runner.verification import verify_archive


def main(chosen: argparse.Namespace) -> int:
    if bool(chosen.run) == bool(chosen.source):
        raise UsageError("download: name a run's directory, or say --from URL")
    folder = Path(chosen.output)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    failed = got = 0
    wanted = _of_url(chosen) if chosen.source else _of_run(Path(chosen.run))
    for sources in wanted:
        name = sources[0][1].rpartition("/")[2]
        if chosen.node and not any(f"-{n}-" in name for n in chosen.node):
            continue
        problem = _get(sources, folder / name)
        print(f"{folder / name}: {problem or 'ok'}")
        failed, got = failed + bool(problem), got + (not problem)
    if not got and not failed:
        raise UsageError("download: there is no such archive")
    return Exit.OK if not failed else Exit.SOME_FAILED if got else Exit.NONE_SUCCEEDED


def _of_run(run: Path) -> Iterator[list[tuple[Target, str]]]:
    """For each archive of the run, every (target, key) that says it has it."""
    directory, report = open_run(run)
    by_name = {p.describe(): p.target for p in of_record(report.terms, directory.name).places if p.target is not None}
    for node in report.nodes:
        stored = [(by_name[u.target], u.location) for u in node.uploads if u.state == "stored" and u.target in by_name]
        if stored:
            yield [(target, _key(target, location)) for target, location in stored]


def _key(target: Target, location: str) -> str:
    """A target's key of a location that it told itself."""
    from urllib.parse import unquote

    place = target.describe()
    if location.startswith("s3://"):
        return location.removeprefix("s3://").partition("/")[2]
    if location.startswith(("http://", "https://")):
        return unquote(location.removeprefix(place).lstrip("/"))
    return os.path.relpath(location, place)


def _of_url(chosen: argparse.Namespace) -> Iterator[list[tuple[Target, str]]]:
    target, below = _target(chosen)
    try:
        for key, _ in target.listing(below):
            if key.endswith(ARCHIVE_ENDINGS):
                yield [(target, key)]
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
    return _open("directory", {"path": chosen.source}), ""


def _open(kind: str, options: dict[str, Any]) -> Target:
    target = open_target(kind, options)
    assert target is not None
    return target


def _get(sources: list[tuple[Target, str]], path: Path) -> str:
    """Write the archive from the first source that has it intact; why not, or nothing."""
    if path.exists():
        return (
            ""
            if verify_archive(path).ok
            else "is there already, and isn't intact; remove it, or choose another --output"
        )
    why = ""
    for target, key in sources:
        # Under its own name, which verification looks at, in a folder of its own.
        hidden = path.parent / f".{os.getpid()}.part"
        part = hidden / path.name
        try:
            hidden.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for chunk in target.read(key):
                    file.write(chunk)
            problems = verify_archive(part).problems
            if not problems:
                os.link(part, path)
                return ""
            why = f"from {target.describe()}: {problems[0]}"
        except NotStored as error:
            why = str(error)
        except OSError as error:
            return f"{error.filename or path}: {error.strerror}"
        finally:
            part.unlink(missing_ok=True)
            hidden.rmdir()
    return why
