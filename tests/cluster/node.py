"""What runs in a node's namespaces: containerd, kubelet, kube-proxy, with the node's own /var, /run and /etc/cni.

Two settings are for machines whose root has fewer rights than a real node's: `restrict_oom_score_adj`, because to lower
the score takes CAP_SYS_RESOURCE, and `failCgroupV1: false`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster import network
from tests.cluster.authority import Authority
from tests.cluster.controlplane import API_SERVER
from tests.cluster.image import PAUSE_IMAGE

OWN = ("/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/lib/retina-run", "/var/log", "/var/tmp", "/run",
       "/etc/cni", "/opt", "/srv", "/mnt")  # fmt: skip
SOCKET = "/run/containerd/containerd.sock"
MOUNTS = (
    # A /sys of the node's own network namespace, with the machine's control groups in it.
    ("mkdir", "-p", "/mnt"),
    ("mount", "-t", "tmpfs", "tmpfs", "/mnt"),
    ("mkdir", "/mnt/cgroup"),
    ("mount", "--rbind", "/sys/fs/cgroup", "/mnt/cgroup"),
    ("mount", "-t", "sysfs", "sysfs", "/sys"),
    ("mount", "--rbind", "/mnt/cgroup", "/sys/fs/cgroup"),
    ("umount", "-l", "/mnt"),
    ("mount", "-t", "bpf", "bpf", "/sys/fs/bpf"),
    ("mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"),
    ("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"),
)


class Node:
    """Node `number` of a cluster, with its state in `directory`."""

    def __init__(self, number: int, cluster: str, directory: Path):
        self.number = number
        self.name = f"{cluster}-{number}"
        self.cgroup = f"rrc-{cluster}-{number}"
        self.directory = directory
        self.addresses = network.node_addresses(number)

    def certificates(self, authority: Authority) -> None:
        user = f"system:node:{self.name}"
        names = (f"DNS:{self.name}", "IP:127.0.0.1", *(f"IP:{a}" for a in self.addresses))
        authority.client(f"{self.name}-client", user, "system:nodes")
        authority.server(f"{self.name}-server", user, *names, groups=("system:nodes",))

    def specification(self, kubernetes: Path, runtime: Path, authority: Authority) -> dict[str, Any]:
        """What supervise.py shall do. Writes the configuration files that it names."""
        etc = self.directory / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        cni = self.directory / "etc-cni" / "net.d"
        cni.mkdir(parents=True, exist_ok=True)
        (cni / "10-tests.conflist").write_text(json.dumps(self._cni()))
        (etc / "containerd.toml").write_text(_containerd(runtime))
        (etc / "kubelet.json").write_text(json.dumps(self._kubelet(authority)))
        authority.kubeconfig(etc / "kubelet.kubeconfig", API_SERVER, f"{self.name}-client")
        authority.kubeconfig(etc / "kube-proxy.kubeconfig", API_SERVER, "kube-proxy")
        (etc / "kube-proxy.json").write_text(json.dumps(self._proxy(etc)))
        own = {target: str(self.directory / target.strip("/").replace("/", "-")) for target in OWN}
        kubelet = [
            str(kubernetes / "kubelet"),
            f"--config={etc}/kubelet.json",
            f"--kubeconfig={etc}/kubelet.kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self.addresses)}",
            "--housekeeping-interval=30s",
        ]
        path = f"{runtime}/usr/bin:{runtime}/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "hostname": self.name,
            "mounts": MOUNTS,
            "binds": [(source, target) for target, source in own.items()],
            "shared": ["/var/lib/kubelet"],
            "environment": {"PATH": path},
            "services": {
                "containerd": [f"{runtime}/usr/bin/containerd", "--config", f"{etc}/containerd.toml"],
                "kubelet": kubelet,
                "kube-proxy": [str(kubernetes / "kube-proxy"), f"--config={etc}/kube-proxy.json"],
            },
            "logs": str(self.directory / "logs"),
            "stopped": str(self.directory / "stopped"),
            "descriptors": [],
        }

    def _cni(self) -> dict[str, Any]:
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in network.pod_networks(self.number)],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": "tests", "plugins": [bridge, ports]}

    def _kubelet(self, authority: Authority) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(authority.certificate(f"{self.name}-server")),
            "tlsPrivateKeyFile": str(authority.key(f"{self.name}-server")),
            "resolvConf": "",
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
        }

    def _proxy(self, etc: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": f"{etc}/kube-proxy.kubeconfig"},
            "hostnameOverride": self.name,
            "mode": "nftables",
            "clusterCIDR": network.PODS,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }


def _containerd(runtime: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{SOCKET}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
[{cri}.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  BinaryName = "{runtime}/usr/sbin/runc"
  SystemdCgroup = false
[{cri}.cni]
  bin_dir = "{runtime}/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
"""
