"""What runs in the control plane's namespaces: etcd, API server, controllers, scheduler, and the door to them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster import network
from tests.cluster.authority import Authority
from tests.cluster.places import HERE

ETCD = "http://127.0.0.1:2379"
API_SERVER = f"https://{network.CONTROL_PLANE}:6443"
NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)
IDENTITIES = {
    "admin": ("admin", "system:masters"),
    "apiserver-kubelet-client": ("kube-apiserver-kubelet-client", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager",),
    "kube-scheduler": ("system:kube-scheduler",),
    "kube-proxy": ("system:kube-proxy",),
}


def certificates(authority: Authority) -> None:
    """Those of the control plane's servers, and of the users that it knows."""
    addresses = ("127.0.0.1", network.CONTROL_PLANE, network.FIRST_SERVICE)
    authority.server("kube-apiserver", "kube-apiserver", *(f"DNS:{n}" for n in NAMES), *(f"IP:{a}" for a in addresses))
    for name, (user, *groups) in IDENTITIES.items():
        authority.client(name, user, *groups)
    authority.client("front-proxy-client", "front-proxy-client", authority="front-proxy-ca")


def services(directory: Path, bin_directory: Path, authority: Authority, listener: int) -> dict[str, list[str]]:
    """Name → argv. `listener` is the inherited descriptor at which the API server is reached from outside."""
    etc = directory / "etc"
    etcd = {
        "name": "tests",
        "data-dir": str(directory / "etcd"),
        "listen-client-urls": ETCD,
        "advertise-client-urls": ETCD,
        "listen-peer-urls": "http://127.0.0.1:2380",
        "initial-advertise-peer-urls": "http://127.0.0.1:2380",
        "initial-cluster": "tests=http://127.0.0.1:2380",
        "unsafe-no-fsync": True,
        "log-level": "warn",
    }
    (etc / "etcd.json").write_text(json.dumps(etcd))  # JSON is YAML
    certificate, key = authority.certificate, authority.key
    service_account_key = key("service-accounts")
    api_server = {
        "etcd-servers": ETCD,
        "secure-port": 6443,
        "advertise-address": network.CONTROL_PLANE,
        "service-cluster-ip-range": ",".join(network.SERVICES),
        "allow-privileged": "true",
        "client-ca-file": certificate("ca"),
        "tls-cert-file": certificate("kube-apiserver"),
        "tls-private-key-file": key("kube-apiserver"),
        "kubelet-client-certificate": certificate("apiserver-kubelet-client"),
        "kubelet-client-key": key("apiserver-kubelet-client"),
        "kubelet-certificate-authority": certificate("ca"),
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": service_account_key,
        "service-account-signing-key-file": service_account_key,
        "requestheader-client-ca-file": certificate("front-proxy-ca"),
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": certificate("front-proxy-client"),
        "proxy-client-key-file": key("front-proxy-client"),
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
    }
    controllers = {
        **_as("kube-controller-manager", etc),
        "service-account-private-key-file": service_account_key,
        "root-ca-file": certificate("ca"),
        "cluster-signing-cert-file": certificate("ca"),
        "cluster-signing-key-file": key("ca"),
        "use-service-account-credentials": "true",
        "node-monitor-grace-period": "40s",
    }
    return {
        "etcd": [str(bin_directory / "etcd"), str(etc / "etcd.json")],
        "kube-apiserver": _argv(bin_directory / "kube-apiserver", api_server),
        "kube-controller-manager": _argv(bin_directory / "kube-controller-manager", controllers),
        "kube-scheduler": _argv(bin_directory / "kube-scheduler", _as("kube-scheduler", etc)),
        "gate": ["python3", str(HERE / "gate.py"), str(listener), "127.0.0.1", "6443"],
    }


def _as(name: str, etc: Path) -> dict[str, object]:
    kubeconfig = etc / f"{name}.kubeconfig"
    options = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return {**dict.fromkeys(options, kubeconfig), "bind-address": "127.0.0.1", "leader-elect": "false"}


def _argv(program: Path, options: dict[str, object]) -> list[str]:
    return [str(program), *(f"--{name}={value}" for name, value in options.items())]
