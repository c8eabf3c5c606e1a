"""Where the cluster harness keeps things: a cache outside of the repository, and a directory a cluster.

`RETINA_RUN_CLUSTER_CACHE` names the cache (default `$XDG_CACHE_HOME/retina-run-tests/cluster`). What is in it can be made
again; it may be deleted whenever no cluster is up.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CLUSTER_NAME = os.environ.get("RETINA_RUN_CLUSTER_NAME") or "tests"


def cache() -> Path:
    """The cache directory, made if need be."""
    given = os.environ.get("RETINA_RUN_CLUSTER_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(given) if given else home / "retina-run-tests" / "cluster"
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
