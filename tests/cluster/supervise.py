"""Process 1 of a machine's namespaces: its own mounts, then its services, each started again when it dies.

    supervise.py SPEC.json

The specification holds `hostname`, `mounts` (argv lists), `binds` (pairs), `services` (name → argv), `environment`,
`logs` and `stopped`: a file of a service's name in the directory `stopped` keeps that service from being started again.
When this process is killed, the kernel kills all that lives in its process namespace. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PAUSE_S = 1.0


def main(spec_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    if spec["hostname"]:
        socket.sethostname(spec["hostname"])
    for argv in spec["mounts"]:
        subprocess.run(argv, check=True)
    for source, target in spec["binds"]:
        os.makedirs(source, exist_ok=True)
        os.makedirs(target, exist_ok=True)
        subprocess.run(["mount", "--bind", source, target], check=True)
    for path in spec["shared"]:
        subprocess.run(["mount", "--make-rshared", path], check=True)
    environment = {**os.environ, **spec["environment"]}
    logs, stopped = Path(spec["logs"]), Path(spec["stopped"])
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    not_before: dict[str, float] = {}
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it ends a sleep
    while True:
        for name, argv in spec["services"].items():
            if (
                any(name == other for other, _ in running.values())
                or (stopped / name).exists()
                or time.monotonic() < not_before.get(name, 0)
            ):
                continue
            with (logs / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    argv,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=spec["descriptors"],
                )
            running[process.pid] = (name, process)
            not_before[name] = time.monotonic() + PAUSE_S
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid in running:
                name, process = running.pop(pid)
                process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for: here, not by Popen
                with (logs / f"{name}.log").open("ab") as log:
                    log.write(f"-- {name} (process {pid}) ended with {process.returncode}\n".encode())
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1])
