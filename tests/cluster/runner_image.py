"""The runner image of this checkout: `images/runner/Containerfile` on top of the node image, from wheels that are made here."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.image import Buildah, node_archive
from tests.cluster.places import REPOSITORY, cache, call, digest, making

RUNNER_IMAGE = "localhost/retina-run:test"
CONTAINERFILE = REPOSITORY / "images" / "runner" / "Containerfile"
PYTHON = "3.11"
"""Of the Debian suite that the images are made of: wheels are got for it, whatever Python runs the tests."""
PARTS = ("retina_runner", "schemas", "runbooks", "bpf")
"""What the package holds."""
UNUSED_S = 86400
"""An image of another state of the package may be used by another checkout's tests; not so one that is older."""


def runner_archive() -> Path:
    """The runner image of this checkout, on top of the node image; made anew whenever the package has changed."""
    sources = sorted(
        path
        for name in PARTS
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    node = node_archive()
    key = digest([CONTAINERFILE, Path(__file__), REPOSITORY / "pyproject.toml", *sources], node.name)
    archive = cache() / f"runner-image-{key}.tar"
    with making(archive) as wanted:
        if not wanted:
            return archive
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            context = Path(folder) / "context"
            wheels = context / "wheels"
            wheels.mkdir(parents=True)
            shutil.copy(CONTAINERFILE, context)
            pip = (sys.executable, "-m", "pip")
            call(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY), limit_s=600)
            (own,) = wheels.iterdir()
            call(*pip, "download", "--quiet", "--only-binary=:all:", "--python-version", PYTHON, "--dest",
                 str(wheels), f"{own}[azure,s3]", limit_s=1200)  # fmt: skip
            buildah = Buildah(Path(folder))
            buildah.build(RUNNER_IMAGE, context, "--build-arg", f"BASE=docker-archive:{node}",
                          "--build-arg", "PIP_OPTIONS=--no-index")  # fmt: skip
            for old in cache().glob("runner-image-*.tar"):
                if old.stat().st_mtime < time.time() - UNUSED_S:
                    old.unlink()
            buildah.save(RUNNER_IMAGE, archive)
    return archive
