"""Real container engines for tests, with all that they store in a folder: containers without an image from a registry.

A container sees the machine's own /usr, so that it has python3 and tcpdump, and has everything else for itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.building import require
from tests.lab import eventually

STARTS_S = 60.0


def bare_root(root: Path) -> Path:
    """A system without /usr."""
    for folder in ("dev", "etc", "proc", "sys", "tmp", "usr", "var/tmp"):
        (root / folder).mkdir(parents=True)
    for folder in ("tmp", "var/tmp"):
        (root / folder).chmod(0o1777)
    for file in ("passwd", "group"):
        shutil.copy(f"/etc/{file}", root / "etc")
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    return root


class Engine:
    """`tool` is the program's name; its processes find the engine by `environment`."""

    tool: str
    environment: Mapping[str, str]

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([self.tool, *words], capture_output=True, text=True, env=self.environment, check=False)
        assert done.returncode == 0 or not check, f"{self.tool} {words}: {done.stderr}"
        return done.stdout

    def start(self, name: str, *options: str) -> str:
        """A container that runs until it is removed; its first process waits for no children, as that of many images."""
        self("run", "--detach", "--name", name, "--network", "none", *options, "--volume", "/usr:/usr:ro",
             *self._image(), "sleep", "100000")  # fmt: skip
        return name

    def remove(self, name: str) -> None:
        self("rm", "--force", name, check=False)

    def kill(self, name: str) -> None:
        """Returns when the engine itself knows that the container has ended."""
        self("kill", name)
        self("wait", name)

    def inside(self, name: str, *argv: str) -> str:
        return self("exec", name, *argv)

    def close(self) -> None:
        """End all of it."""
        raise NotImplementedError

    def _image(self) -> list[str]:
        raise NotImplementedError


class Docker(Engine):
    """dockerd in mount, process and network namespaces of its own, which end with it."""

    tool = "docker"

    def __init__(self, folder: Path):
        require("docker", "dockerd", "containerd", "runc", why="are the engine", install="docker.io")
        socket = folder / "socket"
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(folder)}
        self.environment.pop("DOCKER_CONTEXT", None)
        self._log = (folder / "log").open("wb")
        daemon = (
            f"mount -t tmpfs -o mode=755 none /run && exec dockerd --host unix://{socket} --data-root {folder}/data"
            f" --exec-root {folder}/exec --pidfile {folder}/pid --bridge none --iptables=false --storage-driver vfs"
        )
        self._daemon = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "bash", "-c", daemon],
            stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        try:
            eventually(lambda: self("ps", check=False), f"dockerd answers; {folder}/log says why not", STARTS_S)
            bare = bare_root(folder / "root")
            packed = subprocess.run(["tar", "-C", str(bare), "-c", "."], capture_output=True, check=True).stdout
            subprocess.run(["docker", "import", "-", "bare"], input=packed, env=self.environment, check=True,
                           capture_output=True)  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _image(self) -> list[str]:
        return ["bare"]

    def close(self) -> None:
        os.killpg(self._daemon.pid, signal.SIGKILL)
        self._daemon.wait()
        self._log.close()


class Podman(Engine):
    """podman has no daemon; its containers run as children of their own supervisors."""

    tool = "podman"

    def __init__(self, folder: Path):
        require("podman", "conmon", "runc", why="are the engine", install="podman runc")
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/data"\nrunroot = "{folder}/run"\n'
        )
        (folder / "containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
            f'tmp_dir = "{folder}/tmp"\n[containers]\ndefault_sysctls = []\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
        }
        for name in ("CONTAINER_HOST", "CONTAINER_CONNECTION"):
            self.environment.pop(name, None)
        self._folder = folder
        self._roots = 0

    def remove(self, name: str) -> None:
        self("rm", "--force", "--time", "0", name, check=False)

    def _image(self) -> list[str]:
        self._roots += 1
        return ["--rootfs", str(bare_root(self._folder / f"root{self._roots}"))]

    def close(self) -> None:
        self("rm", "--force", "--all", "--time", "0")
        # What it mounts for itself below its folder stays mounted otherwise.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (at := line.split()[1]).startswith(str(self._folder)):
                subprocess.run(["umount", "-l", at], check=True)


ENGINES = {"docker": Docker, "podman": Podman}
