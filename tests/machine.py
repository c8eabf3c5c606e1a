"""A machine of its own with a live systemd and cron: this one's root file system under an overlay, in namespaces of its own.

Its systemd is process 1 of its PID namespace, so everything in it ends with that process, and what it writes is in a tmpfs
that goes with its mount namespace: nothing has to be cleaned up on this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab import REPOSITORY, RETINA_RUN, eventually

# The host's own timers and services stay out: the target wants what the tests are about, and basic.target.
TARGET = """[Unit]
Requires=basic.target
After=basic.target
Wants=cron.service systemd-journald.service
AllowIsolate=yes
"""
BOOT = r"""
set -e
scratch=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
cd "$scratch/root"
for folder in run tmp var/tmp var/lib; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
for folder; do mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; mount -o remount,bind,ro ".$folder"; done
mount --rbind /dev dev; mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup
: > etc/fstab
rm -rf etc/systemd/system/*.wants etc/cron.d/* var/spool/cron/crontabs/*
for unit in systemd-udevd systemd-udevd-kernel systemd-udevd-control systemd-modules-load systemd-sysctl systemd-binfmt \
    systemd-tmpfiles-setup systemd-tmpfiles-clean; do
    ln -sf /dev/null etc/systemd/system/$unit.service
done
printf '%s' "$TARGET" > etc/systemd/system/tests.target
ip link set lo up
pivot_root . mnt
umount -l /mnt
exec env -i container=tests PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=tests.target --log-target=journal
"""


class Machine:
    """Boot with `with`; `run` is a root shell's command on it. `scratch` is an empty folder of this machine's, to mount on."""

    def __init__(self, scratch: Path):
        self._scratch = scratch
        self._init = 0
        self._unshare: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        argv = [
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
            "--fork",
            "--kill-child",
            "bash",
            "-c",
            BOOT,
        ]
        # What the runner needs may lie on a file system that the overlay of / doesn't show, or below /tmp. Only to be read.
        seen = sorted({str(REPOSITORY), sys.prefix, sys.base_prefix} - {"/usr", "/"})
        self._unshare = subprocess.Popen(
            [*argv, "boot", str(self._scratch), *seen], env={**os.environ, "TARGET": TARGET}, stdin=subprocess.DEVNULL
        )
        try:
            eventually(self._running, "systemd of the tests' machine is up", 120.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _running(self) -> bool:
        assert self._unshare
        assert self._unshare.poll() is None, "the machine didn't boot; its errors are above"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        if not children or not Path(f"/proc/{children[0]}/cmdline").read_bytes().startswith(b"/lib/systemd/systemd"):
            return False
        self._init = int(children[0])
        return self.run("systemctl", "is-active", "tests.target").stdout.strip() == "active"

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command on the machine, as root; its outcome, whatever it is."""
        return subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", "--wd=/", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", *argv],
            capture_output=True, text=True, check=False, timeout=120.0, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def retina_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("env", f"PYTHONPATH={REPOSITORY}", *RETINA_RUN, *arguments)

    def __exit__(self, *_: object) -> None:
        assert self._unshare
        if self._init:
            os.kill(self._init, signal.SIGKILL)
        else:
            self._unshare.kill()
        self._unshare.wait()
