"""The programs of a cluster: Kubernetes and etcd built by Go from its module proxy, containerd, runc, CNI from Debian.

Each set is made once for each version of its sources and kept in the cache. Debian's packages are unpacked, not
installed: the machine keeps what it has.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.places import HERE, cache, call, digest, making

SOURCES = HERE / "gomod"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "etcd")
PACKAGES = ("containerd", "runc", "containernetworking-plugins")
GO_AT_LEAST, GO_TOOLCHAIN = (1, 26), "go1.26.8"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def kubernetes() -> Path:
    """A directory with Kubernetes' programs, etcd and pause; the first call builds them, 15 to 20 minutes of CPU time."""
    sources = sorted(p for p in SOURCES.rglob("*") if p.is_file())
    built = cache() / f"kubernetes-{digest(sources)}"
    with making(built) as wanted:
        if wanted:
            _build(built)
    return built


def _build(built: Path) -> None:
    go = _go()
    version = _kubernetes_version()
    major, minor = version[1:].split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = "-s -w " + " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in values.items())
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        made = Path(folder) / "bin"
        made.mkdir(mode=0o755)
        for package, output in ((".", "kubernetes"), ("./pause", "pause")):
            subprocess.run(
                [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(made / output), package],
                cwd=SOURCES,
                env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
                check=True,
            )
        for name in KUBERNETES:
            (made / name).symlink_to("kubernetes")
        os.rename(made, built)


def runtime() -> Path:
    """A directory tree with Debian's containerd, runc and CNI plugins below `usr`."""
    policy = call("apt-cache", "policy", *PACKAGES)
    candidates = re.findall(r"Candidate: (\S+)", policy)
    if len(candidates) != len(PACKAGES) or "(none)" in candidates:
        raise RuntimeError(f"apt doesn't know all of {', '.join(PACKAGES)}: run apt-get update. It says:\n{policy}")
    unpacked = cache() / f"runtime-{digest((), *candidates)}"
    with making(unpacked) as wanted:
        if wanted:
            _unpack(unpacked)
    return unpacked


def _unpack(unpacked: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        os.chmod(folder, 0o755)  # apt's own user must reach it
        made = Path(folder) / "tree"
        call("apt-get", "-o", "APT::Sandbox::User=root", "download", *PACKAGES, cwd=Path(folder))
        for package in Path(folder).glob("*.deb"):
            call("dpkg-deb", "-x", str(package), str(made))
        os.rename(made, unpacked)


def _go() -> str:
    """A go that is new enough: the one on PATH, or the toolchain that an older one fetches as a module."""
    go = shutil.which("go")
    if go is None:
        raise RuntimeError(f"go builds the cluster's programs: {GO_TOOLCHAIN} or newer, or any to fetch that one with")
    found = re.search(r"go(\d+)\.(\d+)", call(go, "version"))
    if found and (int(found[1]), int(found[2])) >= GO_AT_LEAST:
        return go
    toolchain = cache() / f"go-{GO_TOOLCHAIN}"
    with making(toolchain) as wanted:
        if wanted:
            _fetch_go(go, toolchain)
    return str(toolchain / "bin" / "go")


def _fetch_go(go: str, toolchain: Path) -> None:
    system = f"linux-{ARCHITECTURES.get(platform.machine(), platform.machine())}"
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        fetched = call(
            go, "mod", "download", "-json", f"golang.org/toolchain@v0.0.1-{GO_TOOLCHAIN}.{system}", cwd=Path(folder)
        )
        made = Path(folder) / "go"
        shutil.copytree(json.loads(fetched)["Dir"], made, copy_function=shutil.copyfile)
        for program in (*made.glob("bin/*"), *made.glob("pkg/tool/*/*")):
            program.chmod(0o755)  # files of a module aren't executable
        for directory in (made, *(p for p in made.rglob("*") if p.is_dir())):
            directory.chmod(0o755)
        os.rename(made, toolchain)


def _kubernetes_version() -> str:
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (SOURCES / "go.mod").read_text())
    assert found, "go.mod requires k8s.io/kubernetes"
    return found[1]
