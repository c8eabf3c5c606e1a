"""A guest of one CPU's worth: a Debian kernel under QEMU's own translation (no KVM), a job in, what came of it out.

Disks are the only way in and out: the root (written to a snapshot that goes with the process), the job as a tar, and a raw
disk that takes a tar. No network, no shared folder, nothing to clean up.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.building import require
from tests.kernels.image import Image

LIMIT_S = 2700.0
"""From power-on to power-off. Translated code is slow: a compile by BCC takes a minute, on a busy machine several."""
MEMORY, CPUS, OUT_BYTES = "1500M", "2", 64 << 20
BEGIN = """
export PYTHONPATH=$(echo /tmp/job /tmp/job/agent-*.pyz | tr " " :) PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
mount -t tmpfs tmpfs /var/tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
mkdir -m 700 /tmp/out
ip link set lo up
cd /tmp/job
touch /tmp/out/said.txt
tail -f /tmp/out/said.txt &
python3 -u -m tests.kernels.guest /tmp/out >/tmp/out/said.txt 2>&1
echo $? >/tmp/out/status
dmesg >/tmp/out/dmesg.txt
rm -rf /tmp/out/work-*
tar -c -C /tmp/out -f /dev/vdc .
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class Failed(Exception):
    """The guest didn't do what it was told, with the end of what it said."""


def run(image: Image, job: Mapping[str, bytes], limit_s: float = LIMIT_S) -> dict[str, bytes]:
    """Start the guest, have it do the job (files by path), wait for its end; the files that it made. Raises Failed."""
    require("qemu-system-x86_64", why="runs the guests", install="qemu-system-x86")
    with tempfile.TemporaryDirectory() as folder:
        given, out, console = (Path(folder, name) for name in ("job.tar", "out.tar", "console.txt"))
        with tarfile.open(given, "w") as tar:
            for name, content in {**job, "begin": BEGIN.encode()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        with out.open("wb") as file:
            file.truncate(OUT_BYTES)
        for disk in (given, out):  # whole sectors
            os.truncate(disk, (disk.stat().st_size + 4095) // 4096 * 4096)
        argv = [
            "setpriv", "--pdeathsig", "KILL", "nice", "-n", "10",
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", CPUS, "-m", MEMORY,
            "-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{console}", "-device", "virtio-rng-pci",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append",
            "console=ttyS0 root=/dev/vda rw init=/sbin/matrix panic=-1 mitigations=off quiet",
            "-drive", f"file={image.root},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={given},format=raw,if=virtio,readonly=on",
            "-drive", f"file={out},format=raw,if=virtio",
        ]  # fmt: skip
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        )  # fmt: skip
        try:
            said = process.communicate(timeout=limit_s)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            said = f"no end after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        shown = console.read_text("utf-8", "replace")[-6000:] if console.exists() else ""
        try:
            with tarfile.open(out) as tar:
                found = {
                    m.name.removeprefix("./"): tar.extractfile(m).read()  # type: ignore[union-attr]
                    for m in tar
                    if m.isfile()
                }
        except tarfile.TarError as error:
            raise Failed(f"the guest left nothing: {said}\n{shown}") from error
    if found.get("status", b"").strip() != b"0":
        raise Failed(f"{found.get('said.txt', b'').decode('utf-8', 'replace')[-6000:]}\n{shown[-1500:]}")
    return found
