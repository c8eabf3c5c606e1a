"""A real Kubernetes cluster on this machine, without Docker and without a registry: up, down, and what tests ask of it.

Every node, and the control plane, is one process (supervise.py) that is process 1 of a process namespace of its own: when
it is killed the kernel kills everything below it. `up` may be called again at any time: it starts what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.cluster import controlplane, image, programs
from tests.cluster.api import Api
from tests.cluster.authority import Authority
from tests.cluster.cgroups import make_cgroup, remove_cgroup
from tests.cluster.network import Network
from tests.cluster.node import SOCKET, Node
from tests.cluster.places import CLUSTER_NAME, HERE, cache, call

# The kubelet sets these for the whole machine: put back when the cluster is up, and when it goes down.
MACHINE_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


class Cluster(Api):
    """The cluster of that name. `kubeconfig` is the administrator's."""

    def __init__(self, name: str = CLUSTER_NAME, nodes: int = 3):
        self.name = name
        self.directory = cache() / "clusters" / name
        super().__init__(self.directory / "admin.kubeconfig", image.NODE_IMAGE)
        self.network = Network(name, nodes)
        self.nodes = {n: Node(n, name, self.directory / f"node-{n}") for n in range(1, nodes + 1)}

    # --- up and down

    def up(self, say: Callable[[str], None] = print) -> None:
        """Bring up what isn't; returns when every node is ready and has the images."""
        began = time.monotonic()

        def step(text: str) -> None:
            say(f"{time.monotonic() - began:6.1f} s  {text}")

        (self.directory / "etc").mkdir(mode=0o755, parents=True, exist_ok=True)
        step("programs and images")
        kubernetes, runtime = programs.kubernetes(), programs.runtime()
        archives = [image.pause_archive(), image.node_archive()]
        authority = Authority(self.directory / "authority")
        controlplane.certificates(authority)
        step("network namespaces")
        self.network.up()
        self._save_machine_settings()
        if not self.alive("control-plane"):
            step("control plane")
            self._start_control_plane(kubernetes, authority)
        for node in self.nodes.values():
            if not self.alive(f"node-{node.number}"):
                make_cgroup(node.cgroup)
                node.certificates(authority)
                specification = node.specification(kubernetes, runtime, authority)
                self._supervise(f"node-{node.number}", self.network.nodes[node.number], specification)
        step("images")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self._import(node, runtime, archives), self.nodes.values()))
        step("waiting for the API server")
        self.eventually(lambda: self.kubectl("get", "--raw", "/readyz") == "ok", "the API server is ready")
        step("waiting for nodes")
        self.eventually(lambda: self.ready() == {n.name for n in self.nodes.values()}, "all nodes are ready")
        self.eventually(
            lambda: self.get("serviceaccount", "default", "-n", "default"), "the default service account is there"
        )
        self._restore_machine_settings()
        step(f"{self.name}: {len(self.nodes)} nodes are ready; KUBECONFIG={self.kubeconfig}")

    def down(self, wipe: bool = True) -> None:
        """Kill what `up` started, remove namespaces and control groups, and with `wipe` the cluster's state too."""
        killed = [self.pid(n) for n in ("control-plane", *(f"node-{n}" for n in self.nodes)) if self.alive(n)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        # The first process of a namespace is there until all of the others have ended: etcd, say, which writes what `wipe` removes.
        self.eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), "the machines have ended")
        self.eventually(lambda: not any(map(self._cgroup_processes, self.nodes.values())), "all processes are gone")
        self.network.down()
        for node in self.nodes.values():
            remove_cgroup(node.cgroup)
        self._restore_machine_settings()
        if wipe:
            subprocess.run(["rm", "-rf", "--one-file-system", str(self.directory)], check=True)

    def alive(self, name: str) -> bool:
        """Whether this supervisor runs: its process lives, and is the one that was started."""
        try:
            return str(self.directory / name / "spec.json") in Path(f"/proc/{self.pid(name)}/cmdline").read_text()
        except (OSError, LookupError, ValueError):
            return False

    def pid(self, name: str) -> int:
        """Process 1 of `control-plane` or `node-<number>`, as this machine numbers it."""
        outer = int((self.directory / name / "pid").read_text())
        inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(inner[0])

    # --- what tests do to nodes

    def program(self) -> str:
        return str(programs.kubernetes() / "kubectl")

    def logs(self) -> str:
        parts = []
        for log in sorted(self.directory.glob("*/logs/*.log")):
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - 1500))
                parts.append(f"--- the end of {log}\n{file.read().decode('utf-8', 'replace')}")
        return "\n".join(parts)

    def on_node(self, number: int) -> list[str]:
        """The argv that runs another argv in all of a node's namespaces, as root of that node."""
        return ["nsenter", "-t", str(self.pid(f"node-{number}")), "-m", "-n", "-u", "-p", "--"]

    def node_run(self, number: int, *argv: str) -> str:
        return call(*self.on_node(number), *argv)

    def user(self, name: str, namespace: str) -> Path:
        """The kubeconfig of a user who has no rights yet, with that namespace."""
        authority = Authority(self.directory / "authority")
        authority.client(f"user-{name}", name)
        server = f"https://127.0.0.1:{(self.directory / 'port').read_text()}"
        return authority.kubeconfig(self.directory / f"{name}.kubeconfig", server, f"user-{name}", namespace)

    def kubeconfig_at(self, server: str, path: Path) -> Path:
        """The administrator's kubeconfig, for whoever reaches the API server at that URL."""
        return Authority(self.directory / "authority").kubeconfig(path, server, "admin")

    def stop(self, machine: str, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a service of `control-plane` or `node-<number>`, until `start`."""
        (self.directory / machine / "stopped" / service).touch()

        def ended() -> bool:  # the one that was there, and one that the supervisor was about to begin instead
            pids = self._service_pids(machine, service)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return not pids

        self.eventually(ended, f"{service} on {machine} has ended")

    def start(self, machine: str, service: str) -> None:
        """Let a service that was stopped run again; doesn't wait."""
        (self.directory / machine / "stopped" / service).unlink(missing_ok=True)

    def load(self, archive: Path) -> None:
        """Have every node know the image of this docker-archive."""
        for node in self.nodes.values():
            self._import(node, programs.runtime(), [archive])

    # --- parts

    def _start_control_plane(self, kubernetes: Path, authority: Authority) -> None:
        port_file = self.directory / "port"
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port_file.read_text()) if port_file.exists() else 0))
        listener.listen(512)
        port = listener.getsockname()[1]
        port_file.write_text(str(port))
        authority.kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", "admin")
        etc = self.directory / "etc"
        for name in ("kube-controller-manager", "kube-scheduler"):
            authority.kubeconfig(etc / f"{name}.kubeconfig", "https://127.0.0.1:6443", name)
        specification = {
            "hostname": "",
            "mounts": [],
            "binds": [],
            "shared": [],
            "environment": {},
            "services": controlplane.services(self.directory, kubernetes, authority, listener.fileno()),
            "logs": str(self.directory / "control-plane" / "logs"),
            "stopped": str(self.directory / "control-plane" / "stopped"),
            "descriptors": [listener.fileno()],
        }
        self._supervise("control-plane", self.network.control_plane, specification)
        listener.close()

    def _supervise(self, name: str, namespace: str, specification: dict[str, Any]) -> None:
        """Start supervise.py in namespaces of its own; it outlives this process."""
        directory = self.directory / name
        for folder in ("logs", "stopped"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        for flag in (directory / "stopped").iterdir():
            flag.unlink()
        (directory / "spec.json").write_text(json.dumps(specification, indent=1))
        unshare = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
        argv = ("python3", str(HERE / "supervise.py"), str(directory / "spec.json"))
        with (directory / "logs" / "supervise.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace}", *unshare, "--propagation=private", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                pass_fds=specification["descriptors"],
            )
        process.returncode = 0  # not waited for: it shall live on
        (directory / "pid").write_text(str(process.pid))
        self.eventually(lambda: self.alive(name), f"{name} has been started")

    def _import(self, node: Node, runtime: Path, archives: list[Path]) -> None:
        ctr = [*self.on_node(node.number), f"{runtime}/usr/bin/ctr", "-a", SOCKET, "-n", "k8s.io"]
        self.eventually(lambda: call(*ctr, "version", limit_s=20), f"containerd answers on {node.name}")
        for archive in archives:
            done = node.directory / f"imported-{archive.name}"
            if not done.exists():
                call(*ctr, "images", "import", str(archive), limit_s=600)
                done.touch()

    def _service_pids(self, machine: str, service: str) -> list[int]:
        """Processes of that program whose parent is the machine's process 1."""
        init = self.pid(machine)
        found = []
        for pid in Path(f"/proc/{init}/task/{init}/children").read_text().split():
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argv[0].rsplit(b"/", 1)[-1] == service.encode():
                found.append(int(pid))
        return found

    def _cgroup_processes(self, node: Node) -> list[str]:
        group = Path("/sys/fs/cgroup/pids", node.cgroup)
        return [pid for procs in group.rglob("cgroup.procs") for pid in procs.read_text().split()]

    def _save_machine_settings(self) -> None:
        saved = self.directory / "machine-settings.json"
        if not saved.exists():
            values = {name: Path("/proc/sys", name).read_text().strip() for name in MACHINE_SETTINGS}
            saved.write_text(json.dumps(values))

    def _restore_machine_settings(self) -> None:
        saved = self.directory / "machine-settings.json"
        if saved.exists():
            for name, value in json.loads(saved.read_text()).items():
                if Path("/proc/sys", name).read_text().strip() != value:
                    Path("/proc/sys", name).write_text(value)
