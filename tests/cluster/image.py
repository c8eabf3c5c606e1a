"""Container images without a registry or a builder: Debian's packages by mmdebstrap, written as a docker-archive.

The node image's packages are those that `images/node/Containerfile` names, so there is one list.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.places import REPOSITORY, cache, call, digest
from tests.cluster.programs import ARCHITECTURES, kubernetes

NODE_IMAGE = "localhost/retina-run-node:test"
PAUSE_IMAGE = "localhost/pause:test"
CONTAINERFILE = REPOSITORY / "images" / "node" / "Containerfile"


def packages(text: str) -> list[str]:
    """The Debian packages that a Containerfile installs."""
    found = re.search(r"apt-get install[^\n]*\\\n((?:\s+[a-z0-9][a-z0-9+.-]*\s*\\\n)+)", text)
    if not found:
        raise ValueError("the Containerfile has no `apt-get install` with a package a line")
    return [line.strip(" \\") for line in found[1].splitlines()]


def settings(text: str) -> dict[str, str]:
    """The environment that a Containerfile sets."""
    return dict(pair.split("=", 1) for line in re.findall(r"(?m)^ENV (.+)$", text) for pair in line.split())


def node_archive() -> Path:
    """The node image as a docker-archive; the first call downloads and unpacks about 150 packages."""
    text = CONTAINERFILE.read_text()
    archive = cache() / f"node-image-{digest([CONTAINERFILE, Path(__file__)])}.tar"
    if not archive.exists():
        if shutil.which("mmdebstrap") is None:
            raise RuntimeError("mmdebstrap makes the node image: apt-get install mmdebstrap")
        suite = re.search(r"debian:(\w+)", text)
        assert suite, "the Containerfile's base is a Debian suite"
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            layer = Path(folder) / "layer.tar"
            call(
                "mmdebstrap",
                "--variant=minbase",
                "--include=" + ",".join(packages(text)),
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                suite[1],
                str(layer),
                limit_s=1200,
            )
            _write(archive, NODE_IMAGE, layer, ["python3", "--version"], settings(text))
    return archive


def pause_archive() -> Path:
    """The image of the process that holds a pod's namespaces."""
    program = kubernetes() / "pause"
    archive = cache() / f"pause-image-{digest([program, Path(__file__)])}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            layer = Path(folder) / "layer.tar"
            with tarfile.open(layer, "w") as tar:
                tar.add(program, "pause")
            _write(archive, PAUSE_IMAGE, layer, ["/pause"], {})
    return archive


def _write(archive: Path, name: str, layer: Path, command: list[str], environment: Mapping[str, str]) -> None:
    """One image of one layer, in the form of `docker save`."""
    sha = hashlib.sha256()
    with layer.open("rb") as content:
        while block := content.read(1 << 20):
            sha.update(block)
    diff = sha.hexdigest()
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": [path, *(f"{k}={v}" for k, v in environment.items())], "Cmd": command},
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
