"""Container images without a registry: `images/node/Containerfile` built on a base of Debian's packages, as docker-archives."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.building import debian_root, require
from tests.cluster.places import REPOSITORY, cache, call, digest, making
from tests.cluster.programs import ARCHITECTURES, kubernetes

NODE_IMAGE = "localhost/retina-run-node:test"
PAUSE_IMAGE = "localhost/pause:test"
CONTAINERFILE = REPOSITORY / "images" / "node" / "Containerfile"


def node_archive() -> Path:
    """The node image as a docker-archive, built from its Containerfile; the first call takes a minute."""
    archive = cache() / f"node-image-{digest([CONTAINERFILE, Path(__file__)])}.tar"
    with making(archive) as wanted:
        if not wanted:
            return archive
        found = re.search(r"debian:(\w+)", CONTAINERFILE.read_text())
        assert found, "the Containerfile's base is a Debian suite"
        require("mmdebstrap", "buildah", why="makes the node image", install="mmdebstrap buildah")
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            _build(Path(folder), found[1], archive)
    return archive


def _build(folder: Path, suite: str, archive: Path) -> None:
    """The Containerfile's image on a base of that suite, without docs like the registry's `-slim`."""
    context = folder / "base"
    context.mkdir()
    debian_root(suite, context / "base.tar")
    (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
    buildah = Buildah(folder)
    base = "localhost/retina-run-base:test"
    buildah.build(base, context)
    buildah.build(NODE_IMAGE, CONTAINERFILE.parent, "--pull-never", "--build-arg", f"BASE={base}")
    buildah.save(NODE_IMAGE, archive)


class Buildah:
    """buildah with all that it stores in a folder."""

    def __init__(self, folder: Path):
        self._argv = ("buildah", "--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        policy = folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._policy = ("--signature-policy", str(policy))

    def build(self, tag: str, context: Path, *options: str) -> None:
        """The context's Containerfile as an image."""
        # chroot: neither a runtime nor control groups are asked for, so that it works inside containers too.
        build = (*self._argv, "build", *self._policy, "--isolation", "chroot", *options, "--tag", tag, str(context))
        call(*build, limit_s=1200)

    def save(self, tag: str, archive: Path) -> None:
        unfinished = archive.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        call(*self._argv, "push", *self._policy, tag, f"docker-archive:{unfinished}:{tag}", limit_s=1200)
        unfinished.rename(archive)


def pause_archive() -> Path:
    """The image of the process that holds a pod's namespaces."""
    program = kubernetes() / "pause"
    archive = cache() / f"pause-image-{digest([program, Path(__file__)])}.tar"
    with making(archive) as wanted:
        if not wanted:
            return archive
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            layer = Path(folder) / "layer.tar"
            with tarfile.open(layer, "w") as tar:
                tar.add(program, "pause")
            _write(archive, PAUSE_IMAGE, layer, ["/pause"])
    return archive


def _write(archive: Path, name: str, layer: Path, command: list[str]) -> None:
    """One image of one layer, in the form of `docker save`."""
    sha = hashlib.sha256()
    with layer.open("rb") as content:
        while block := content.read(1 << 20):
            sha.update(block)
    diff = sha.hexdigest()
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + diff]},
        "history": [{"created": "2026-01-01T00:00:00Z"}],
    }
    raw = json.dumps(config).encode()
    config_name = hashlib.sha256(raw).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{diff}/layer.tar"]}]
    unfinished = archive.with_suffix(".part")
    with tarfile.open(unfinished, "w") as tar:
        for member, content_bytes in ((config_name, raw), ("manifest.json", json.dumps(manifest).encode())):
            header = tarfile.TarInfo(member)
            header.size = len(content_bytes)
            tar.addfile(header, io.BytesIO(content_bytes))
        tar.add(layer, f"{diff}/layer.tar")
    unfinished.rename(archive)
