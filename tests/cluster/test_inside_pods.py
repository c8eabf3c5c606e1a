"""`scope: pod-netns` on real kubelets: each pod's own view, exactly; nothing of its neighbour's, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.runs import LABEL, Runs, standing_still
from tests.cluster.shop import Shop
from tests.cluster.test_captures import UDP4, UDP6, numbers
from tests.lab import RECEIVER, Archive

pytestmark = pytest.mark.cluster

CAPABILITIES = "BPF, NET_ADMIN, NET_RAW, PERFMON, SETGID, SETUID, SYS_ADMIN, SYS_PTRACE"


@pytest.fixture
def neighbour(shop: Shop) -> str:
    """A pod beside the server's, on its node; its address."""
    container = {"name": "main", "image": shop.api.image, "command": ["python3", "-c", RECEIVER, "::", "7000"]}
    labels = {"app": "neighbour"}
    shop.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "neighbour", "namespace": shop.namespace, "labels": labels},
            "spec": {"nodeName": shop.node["server"], "terminationGracePeriodSeconds": 0, "containers": [container]},
        }
    )

    def addresses() -> list[str]:
        pod = shop.api.get("pod", "neighbour", "-n", shop.namespace)
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        return sorted((p["ip"] for p in pod["status"]["podIPs"]), key=lambda a: ":" in a) if ready else []

    shop.api.eventually(addresses, "the neighbour runs")
    shop.send("client", addresses()[0], 7999, 1)
    return addresses()[0]


def runbook(shop: Shop, pods: str, duration: str = "12s", collect: str = "", job: str = "") -> str:
    collect = collect or "[{tcpdump: {interfaces: [eth0], filter: udp port 7000}}]"
    return f"""
name: inside
duration: {duration}
captures:
  - nodes: {{kubernetes: {{namespace: {shop.namespace}, pods: "{pods}", scope: pod-netns, job: {{{job}}}}}}}
    collect: {collect}
"""


def uid_of(shop: Shop, name: str) -> str:
    return str(shop.api.get("pod", name, "-n", shop.namespace)["metadata"]["uid"])


def by_pod(archives: list[Archive]) -> dict[str, Archive]:
    return {a.manifest["pod"]["name"]: a for a in archives}


def test_each_pod_has_its_own_view_and_its_own_archive(runs: Runs, shop: Shop, neighbour: str) -> None:
    """Server and neighbour share a node; what each got is in its own archive alone, packets, metrics and counters."""
    everything = """
      - tcpdump: {interfaces: [eth0], filter: udp port 7000}
      - iptables
      - network-state
      - ebpf: {plugins: [packetforward, linuxutil]}"""
    text = runbook(shop, "app in (server, neighbour, client)", collect=everything)
    run = runs.start(text)
    for _ in range(3):
        run.wait_for("window")
    v4, v6 = shop.addresses["server"]
    shop.send("client", v4, 7000, 500)
    shop.send("client", v6, 7000, 300)
    shop.send("client", neighbour, 7000, 4000)
    assert run.end() == 0, (run.events, runs.api.state())
    archives = by_pod(run.archives())
    server, client = shop.pods["server"], shop.pods["client"]
    assert set(archives) == {server, client, "neighbour"}
    assert numbers(archives[server], UDP4, 4) == list(range(500))
    assert numbers(archives[server], UDP6, 6) == list(range(300))
    assert numbers(archives["neighbour"], UDP4, 4) == list(range(4000))
    assert numbers(archives["neighbour"], UDP6, 6) == []
    assert len(archives[client].pcap()) == 4800
    for name, archive in archives.items():
        assert verify_archive(archive.path).problems == ()
        assert archive.lacking() == {}
        assert archive.manifest["pod"] == {"namespace": shop.namespace, "name": name, "uid": uid_of(shop, name)}
        assert archive.path.name.startswith(f"inside-{shop.namespace}_{name}-"), archive.path.name
        links = {i["ifname"] for i in archive.json("state/before/ip-addr.json")}
        assert "eth0" in links
        assert not {i for i in links if i.startswith(("veth", "cni"))}, "those are the node's"
    assert archives[server].manifest["node"] == archives["neighbour"].manifest["node"] == shop.node["server"]
    assert v4 in archives[server].members["state/before/ip-addr.json"].decode()
    assert 800 <= received(archives[server]) < 1000, "of this namespace only"
    assert 4000 <= received(archives["neighbour"]) < 4200
    moved = {c["name"]: c["delta"] for c in archives[server].json("state/delta/network-state.json")["counters"]}
    assert moved["Udp.InDatagrams"] == 500


def received(archive: Archive) -> int:
    """Packets that came into the namespace, by packetforward's own count."""
    lines = archive.members["metrics/metrics.prom"].decode().splitlines()
    found = [
        line
        for line in lines
        if line.startswith("networkobservability_forward_count{") and 'direction="ingress"' in line
    ]
    assert found, [line for line in lines if "forward" in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


def test_the_capabilities_that_plan_prints_are_what_it_takes(runs: Runs, shop: Shop) -> None:
    """Job and `plan` agree, and the capture with exactly these is whole: also of what the pod says to itself."""
    collect = "[{tcpdump: {interfaces: [lo], filter: udp port 7000}}, {ebpf: {plugins: [dropreason]}}]"
    text = runbook(shop, "app=server", "12s", collect)
    path = runs.folder / "printed.yaml"
    path.write_text(text)
    told = runs.command("plan", str(path))
    assert told.returncode == 0, told.stderr
    assert f"; capabilities: {CAPABILITIES}; sees the node's processes\n" in told.stdout, told.stdout
    run = runs.start(text)
    run.wait_for("window")
    shop.send("server", "127.0.0.1", 7000, 70)
    with standing_still(run.process):  # it removes its Job in the end
        pod = runs.api.get("jobs", "-n", shop.namespace)["items"][0]["spec"]["template"]["spec"]
    assert run.end() == 0, (run.events, runs.api.state())
    context = pod["containers"][0]["securityContext"]
    assert ", ".join(context["capabilities"]["add"]) == CAPABILITIES
    assert (context["capabilities"]["drop"], pod["hostPID"], "privileged" in context) == (["ALL"], True, False)
    archive = run.archive()
    assert len(archive.pcap()) == 70
    assert archive.lacking() == {}
    assert all(c["status"] == "done" for c in archive.manifest["collectors"].values()), archive.manifest["collectors"]


def test_a_pod_that_goes_away_ends_its_own_window_and_nothing_holds_its_namespace(
    own_cluster: Cluster, runs: Runs, shop: Shop
) -> None:
    number = next(n for n, node in own_cluster.nodes.items() if node.name == shop.node["server"])
    script = "for p in /proc/[0-9]*; do echo $(readlink $p/ns/net) $(tr '\\0' ' ' < $p/cmdline); done 2>/dev/null"

    def there() -> list[list[str]]:  # those in the server's namespace; who ends meanwhile leaves an empty line
        found = [line.split() for line in own_cluster.node_run(number, "sh", "-c", script).splitlines()]
        return [words for words in found if words[:1] == [namespace]]

    look = ("readlink", "/proc/self/ns/net")
    namespace = shop.api.kubectl("exec", "-n", shop.namespace, shop.pods["server"], "--", *look).strip()
    run = runs.start(runbook(shop, "app in (server, client)", "45s"))
    for _ in range(2):
        run.wait_for("window")
    assert any("agent-" in " ".join(words) for words in there()), "the agent is in there"
    shop.send("client", shop.addresses["server"][0], 7000, 50)
    gone = shop.pods["server"]
    shop.api.kubectl("delete", "pod", gone, "-n", shop.namespace, "--wait=false")
    ended = run.wait_for("archive", node=shop.node["server"])
    assert ended["cut_short"] == f"pod {shop.namespace}/{gone} has gone"
    own_cluster.eventually(lambda: not there(), "nobody is in its namespace")
    assert run.end() == 3, (run.events, runs.api.state())
    archives = by_pod(run.archives())
    assert numbers(archives[gone], UDP4, 4) == list(range(50))
    assert archives[gone].manifest["verdict"] == "partial"
    assert archives[gone].manifest["window"]["stopped_early"] == f"pod {shop.namespace}/{gone} has gone"
    assert archives[shop.pods["client"]].lacking() == {}
    assert archives[shop.pods["client"]].manifest["window"]["stopped_early"] is None


def test_printed_jobs_look_inside_without_a_runner(runs: Runs, shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    path.write_text(runbook(shop, "app=server", "2s", "[{tcpdump: {interfaces: [eth0]}}, network-state]"))
    printed = runs.command("plan", "--manifests", str(path))
    assert printed.returncode == 0, printed.stderr
    shop.api.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=printed.stdout)
    shop.api.kubectl("apply", "-f", "-", stdin=printed.stdout)
    job = ("-n", shop.namespace, "-l", LABEL)

    def said() -> str:
        return shop.api.kubectl("logs", *job)

    shop.api.eventually(lambda: '"archive"' in said() or '"failed"' in said(), "the Job has its archive")
    told = json.loads(said().splitlines()[0])
    assert told["event"] == "archive", told
    (pod,) = shop.api.get("pods", *job)["items"]
    here = tmp_path / Path(told["path"]).name
    shop.api.kubectl("cp", f"{shop.namespace}/{pod['metadata']['name']}:{told['path']}", str(here))
    assert verify_archive(here).problems == ()
    archive = Archive(here)
    assert archive.manifest["pod"]["uid"] == uid_of(shop, shop.pods["server"])
    assert archive.lacking() == {}
    shop.api.kubectl("delete", "job,configmap", *job)
    shop.api.eventually(lambda: not shop.api.get("pods", *job)["items"], "its pod is gone", 300)


def test_pod_security_refuses_and_says_what(runs: Runs, shop: Shop) -> None:
    shop.api.kubectl("label", "namespace", shop.namespace, "pod-security.kubernetes.io/enforce=baseline")
    run = runs.start(runbook(shop, "app=server"))
    assert run.end() in (2, 4), (run.events, runs.api.state())
    (failed,) = run.all("node-failed")
    assert failed["id"] == f"{shop.node['server']}/{shop.namespace}/{shop.pods['server']}"
    for part in ('violates PodSecurity "baseline', "hostPID=true", '"SYS_ADMIN"', '"SYS_PTRACE"'):
        assert part in failed["why"], failed
    assert "pod-security.kubernetes.io/enforce=privileged" in failed["hint"]


def test_a_pod_with_its_nodes_network_is_refused_before_anything_is_made(runs: Runs, cluster: Api, shop: Shop) -> None:
    container = {"name": "main", "image": cluster.image, "command": ["sleep", "infinity"]}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "hosted", "namespace": shop.namespace, "labels": {"app": "hosted"}},
            "spec": {"nodeName": shop.nodes[0], "hostNetwork": True, "terminationGracePeriodSeconds": 0,
                     "containers": [container]},
        }
    )  # fmt: skip
    cluster.eventually(
        lambda: cluster.get("pod", "hosted", "-n", shop.namespace)["status"]["phase"] == "Running", "it runs"
    )
    run = runs.start(runbook(shop, "app=hosted"))
    assert run.end() == 2
    said = run.stderr
    assert f"pod {shop.namespace}/hosted has its node's network, and none of its own to look inside" in said
    assert "runbook.yaml:5:" in said
