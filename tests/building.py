"""What harnesses that build things share: a cache outside of the repository, keys made of contents, Debian roots, commands.

`RETINA_RUN_<NAME>_CACHE` names a harness's cache (default `$XDG_CACHE_HOME/retina-run-tests/<name>`). What is in it can be
made again; it may be deleted whenever nothing of the harness runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

UNREAD = ("man", "doc", "locale", "info")
"""Below /usr/share: what no test reads."""


def cache_of(name: str) -> Path:
    """The cache directory of one harness, made if need be."""
    given = os.environ.get(f"RETINA_RUN_{name.upper()}_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(given) if given else home / "retina-run-tests" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(paths: Iterable[Path], *more: str) -> str:
    """Twelve hexadecimal digits of the files' contents and of `more`: the key of what is built from them."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.read_bytes() + b"\0")
    for text in more:
        sha.update(text.encode() + b"\0")
    return sha.hexdigest()[:12]


@contextmanager
def making(product: Path) -> Iterator[bool]:
    """Whether that file or folder of a cache is still to be made. One process makes it, and any other waits for it. Who makes it
    gives it its name when it is whole: whoever finds it there waits no more."""
    if product.exists():
        yield False
        return
    with open(product.with_name(f".{product.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not product.exists()


def call(
    *argv: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    limit_s: float = 300,
) -> str:
    """Run a command to its end; its stdout. RuntimeError, with all that it said, when it fails."""
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(env or {})}, input=stdin, capture_output=True, text=True, timeout=limit_s
    )
    if done.returncode:
        raise RuntimeError(
            f"{shlex.join(argv)} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def require(*programs: str, why: str, install: str) -> None:
    """RuntimeError, with what would help, where a program isn't installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} {why}: apt-get install {install}")


def debian_root(
    suite: str, target: Path, packages: Iterable[str] = (), sources: str = "", limit_s: float = 1200
) -> None:
    """A small root of Debian's packages: a directory, or a tar by its name. Without documentation, like the `-slim` images.

    `sources` is a line of sources.list; without it the suite with its updates.
    """
    wanted = ",".join(packages)
    call("mmdebstrap", "--variant=minbase", *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD),
         *([f"--include={wanted}"] if wanted else []), suite, str(target),
         *([sources] if sources else []), limit_s=limit_s)  # fmt: skip
