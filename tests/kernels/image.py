"""A distribution's own kernel and a small root with its own Python and BCC, from Debian's packages, kept in the cache."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.building import cache_of, call, debian_root, digest, making, require

SUITES = ("bullseye", "bookworm", "trixie")
SOURCES = {"bullseye": "deb http://deb.debian.org/debian bullseye main"}
"""Where the suite with its updates isn't served whole any more: after its end of life, security updates go bit by bit."""
PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "kmod", "python3", "python3-bpfcc", "tcpdump", "iptables", "nftables",
    "iproute2", "ethtool", "procps",
)  # fmt: skip
INIT = """#!/bin/sh
# Process 1 of the guest: the second disk is a tar with what to do.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs tmpfs /tmp
mkdir /tmp/job
tar -x -C /tmp/job -f /dev/vdb
exec sh /tmp/job/begin
"""
FREE_BYTES = 256 << 20
"""What the root's file system has beside its content."""


@dataclass(frozen=True)
class Image:
    """What a machine is started from."""

    kernel: Path
    initrd: Path
    root: Path


def image(suite: str) -> Image:
    """The first call downloads some 200 MB and takes a few minutes."""
    cache = cache_of("kernels")
    sources = SOURCES.get(suite, "")
    folder = cache / f"{suite}-{digest([], suite, sources, INIT, *PACKAGES)}"
    with making(folder) as wanted:
        if not wanted:
            return _image(folder)
        require("mmdebstrap", "mkfs.ext4", why="makes the guests' roots", install="mmdebstrap e2fsprogs")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _build(suite, Path(scratch), folder)
    return _image(folder)


def _image(folder: Path) -> Image:
    return Image(folder / "vmlinuz", folder / "initrd.img", folder / "root.ext4")


def _build(suite: str, scratch: Path, folder: Path) -> None:
    tree, made = scratch / "tree", scratch / "made"
    made.mkdir()
    debian_root(suite, tree, PACKAGES, SOURCES.get(suite, ""), limit_s=2400)
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (tree / "boot").glob(f"{name}-*")
        found.rename(made / name)
    init = tree / "sbin" / "matrix"
    init.write_text(INIT)
    init.chmod(0o755)
    content = sum(p.lstat().st_blocks * 512 for p in tree.rglob("*"))
    root = made / "root.ext4"
    with root.open("wb") as file:
        file.truncate(int(content * 1.15) + FREE_BYTES)
    call("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", str(tree), str(root), limit_s=1200)
    os.rename(made, folder)
