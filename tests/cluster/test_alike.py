"""The same capture as a Job, over SSH and on the machine itself, in one run at one T0: the archives are alike."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.cluster import Cluster
from tests.cluster.network import CONTROL_PLANE
from tests.cluster.runs import Runs, by_node
from tests.cluster.shop import Shop
from tests.lab import Archive, sh

pytestmark = pytest.mark.cluster


@pytest.fixture
def inventory(own_cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """An inventory of node 1, with an sshd in the node's own namespaces."""
    address = own_cluster.nodes[1].addresses[0]
    host_key, key, folder = tmp_path / "host", tmp_path / "id", tmp_path / "sshd"
    for path in (host_key, key):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    (tmp_path / "keys").write_text((tmp_path / "id.pub").read_text())
    (tmp_path / "known_hosts").write_text(f"{address} {' '.join((tmp_path / 'host.pub').read_text().split()[:2])}\n")
    folder.write_text(
        f"Port 22\nHostKey {host_key}\nAuthorizedKeysFile {tmp_path}/keys\nStrictModes no\nUsePAM no\nUseDNS no\n"
        f"PidFile none\nPermitRootLogin yes\n"
    )
    own_cluster.node_run(1, "mkdir", "-p", "/run/sshd")
    with (tmp_path / "sshd.log").open("wb") as log:
        server = subprocess.Popen(
            [*own_cluster.on_node(1), "/usr/sbin/sshd", "-D", "-e", "-f", str(folder)], stdout=log, stderr=log
        )
    try:
        probe = f"import socket; socket.create_connection(('{address}', 22), 5).recv(4)"
        own_cluster.eventually(lambda: own_cluster.node_run(1, "python3", "-c", probe) == "", "sshd answers")
        path = tmp_path / "inventory.yaml"
        path.write_text(
            f"all:\n  hosts:\n    {own_cluster.nodes[1].name}:\n      ansible_host: {address}\n      ansible_user: root\n"
            f"      ansible_ssh_private_key_file: {key}\n      retina_known_hosts: {tmp_path}/known_hosts\n"
            "      ansible_python_interpreter: /usr/bin/python3\n"
        )
        yield path
    finally:
        own_cluster.node_run(1, "pkill", "-x", "sshd")
        server.wait(60)


def layout(archive: Archive) -> set[str]:
    """The members without the part of a name that says which capture it is."""
    base = archive.path.name.removesuffix(".tar.gz")
    return {name.replace(base, "BASE") for name in archive.members if not name.startswith("state/")}


def test_a_job_and_ssh_on_one_node_and_this_machine_at_one_t0(
    own_cluster: Cluster, runs: Runs, shop: Shop, inventory: Path, tmp_path: Path
) -> None:
    """The runner is in the control plane's network, where it reaches all three."""
    node = own_cluster.nodes[1].name
    assert shop.node["client"] == node
    kubeconfig = own_cluster.kubeconfig_at(f"https://{CONTROL_PLANE}:6443", tmp_path / "inside.kubeconfig")
    collect = "[{tcpdump: {interfaces: [eth0], filter: udp port 7000}}, iptables, network-state]"
    run = runs.start(
        f"""
name: alike
duration: 12s
captures:
  - name: job
    nodes: {{kubernetes: {{nodes: [{node}], job: {{namespace: {shop.namespace}}}}}}}
    collect: {collect}
  - name: ssh
    nodes: {{inventory: {json.dumps(str(inventory))}}}
    collect: {collect}
  - name: here
    nodes: local
    collect: [network-state]
""",
        netns=own_cluster.network.control_plane,
        KUBECONFIG=str(kubeconfig),
    )
    for _ in range(3):
        run.wait_for("window")
    shop.send("client", shop.addresses["server"][0], 7000, 400)
    shop.send("client", shop.addresses["server"][1], 7000, 200)
    assert run.end() == 0, (run.events, own_cluster.state())
    archives = by_node(run)
    job, ssh = archives[f"job/{node}"], archives[f"ssh/{node}"]
    (here,) = (a for name, a in archives.items() if name.startswith("here/"))
    for archive in archives.values():
        assert verify_archive(archive.path).problems == ()
    assert len({a.manifest["window"]["t0"] for a in (job, ssh, here)}) == 1
    assert layout(job) == layout(ssh)
    assert set(job.manifest) == set(ssh.manifest) == set(here.manifest)
    assert (job.manifest["executor"], ssh.manifest["executor"]) == ("kubernetes", "ssh")
    # One packet socket may get a packet of another processor first: the same packets, in the order of their content.
    assert sorted(p for _, p in job.pcap()) == sorted(p for _, p in ssh.pcap())
    assert len(job.pcap()) == 600
    # Tools differ between the image and the node; what both have has the same name and the same content.
    for name in ("state/before/ip-addr.json", "state/before/ip6-route.json"):
        assert {link.get("ifname", link.get("dst")) for link in job.json(name)} == {
            link.get("ifname", link.get("dst")) for link in ssh.json(name)
        }
