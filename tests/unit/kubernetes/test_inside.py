"""`scope: pod-netns`: which pods, what becomes of the plans, and how a pod's processes are told from all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from retina_runner import planning
from retina_runner.agent.pod import belongs, processes
from retina_runner.agent.state_items import NODE_WIDE
from retina_runner.bundle import agent_bundle
from retina_runner.errors import DocumentError, UsageError
from retina_runner.executors.kubernetes import objects
from retina_runner.executors.kubernetes.api import Api
from retina_runner.executors.kubernetes.choosing import STATIC_UID, choose
from retina_runner.runbook import Runbook
from retina_runner.runbook_reading import parse_runbook
from retina_runner.schema import violations
from tests.unit.kubernetes.test_choosing import OBJECTS, FakeListing, pod
from tests.unit.kubernetes.test_objects import SETTINGS, plan, same_as_golden

UID = "2f1c9a34-52bb-4d7e-9a3e-0c5d1f6b7a89"
OTHER = "2f1c9a34-52bb-4d7e-9a3e-0c5d1f6b7a8a"
UNDERSCORED = UID.replace("-", "_")
STATIC = "0c5d1f6b7a892f1c9a3452bb4d7e9a3e"
FORMS = [
    f"5:memory:/kubepods/burstable/pod{UID}/3ab1\n4:cpuset:/\n",
    f"4:pids:/\n5:memory:/a-root-of-the-kubelets/kubepods/pod{UID}/3ab1\n",
    f"1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-3ab1.scope\n",
    f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-3ab1.scope\n",
    f"0::/kubepods/besteffort/pod{UID}/3ab1\n",
    f"0::/../../../kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-3ab1.scope\n",
    f"0::/kubelet/kubepods/pod{UID}/3ab1/docker/nested\n",
    f"0::/kubepods/burstable/pod{UID}\n",
]
NOT_IT = [
    f"0::/kubepods/burstable/pod{OTHER}/3ab1\n",
    f"0::/kubepods/burstable/pod{UID}0/3ab1\n",
    f"0::/kubepods/burstable/xpod{UID}/3ab1\n",
    f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}0.slice/cri-containerd-3ab1.scope\n",
    f"0::/{UID}\n",
    "0::/\n",
    "",
]


def a_fake_process(proc: Path, number: int, cgroup: str, started: int = 100) -> None:
    """Of /proc/PID what is read here, in files: the kernel's own is in tests/agent/test_pod.py."""
    folder = proc / str(number)
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    (folder / "stat").write_text(f"{number} (a ) name) S 1 {'0 ' * 17}{started} 0\n")


@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_a_pods_cgroup(tmp_path: Path, text: str) -> None:
    a_fake_process(tmp_path, 7, text)
    assert belongs(UID, 7, str(tmp_path))


@pytest.mark.parametrize("text", NOT_IT)
def test_what_only_looks_like_it(tmp_path: Path, text: str) -> None:
    a_fake_process(tmp_path, 7, text)
    assert not belongs(UID, 7, str(tmp_path))
    assert not belongs(UID, 8, str(tmp_path))


def test_the_uid_of_a_static_pod_has_no_hyphens(tmp_path: Path) -> None:
    a_fake_process(tmp_path, 7, f"0::/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-3ab1.scope\n")
    assert belongs(STATIC, 7, str(tmp_path))


def test_the_oldest_process_comes_first(tmp_path: Path) -> None:
    for number, started in ((30, 500), (4, 700), (9, 400)):  # numbers begin again at some time
        a_fake_process(tmp_path, number, FORMS[0], started)
    a_fake_process(tmp_path, 1, NOT_IT[0], 1)
    (tmp_path / "self").mkdir()
    assert processes(UID, str(tmp_path)) == [9, 30, 4]


def with_uid(name: str, on: str, **labels: Any) -> dict[str, Any]:
    made = pod(name, on, "10.0.0.1", **labels)
    made["metadata"] |= {"namespace": "shop", "uid": f"uid-of-{name}"}
    return made


PODS = [with_uid("web-2", "node-a", app="web"), with_uid("web-1", "node-a", app="web"), with_uid("web-3", "node-b", app="web"),
        with_uid("proxy-1", "node-b", app="proxy", host=True)]  # fmt: skip
ENDING = with_uid("web-0", "node-a", app="web")
ENDING["metadata"]["deletionTimestamp"] = "2026-11-23T03:17:00Z"
MIRROR = with_uid("static-1", "node-b", app="static")
MIRROR["metadata"]["annotations"] = {STATIC_UID: STATIC}
LISTING = FakeListing({**OBJECTS, "/api/v1/namespaces/shop/pods": [*PODS, ENDING, MIRROR]})


def views(**selection: Any) -> list[tuple[str, dict[str, str]]]:
    found = choose(cast(Api, LISTING), {"scope": "pod-netns", "namespace": "shop", **selection}, "shop").nodes
    assert all(c.scope is None for c in found)
    return [(c.node, dict(c.pod or {})) for c in found]


def test_one_view_a_pod_however_many_are_on_a_node() -> None:
    assert views(pods="app=web") == [
        ("node-a", {"namespace": "shop", "name": "web-1", "uid": "uid-of-web-1"}),
        ("node-a", {"namespace": "shop", "name": "web-2", "uid": "uid-of-web-2"}),
        ("node-b", {"namespace": "shop", "name": "web-3", "uid": "uid-of-web-3"}),
    ]


def test_a_static_pod_is_known_to_its_kubelet_by_another_uid() -> None:
    assert views(pods="app=static") == [
        ("node-b", {"namespace": "shop", "name": "static-1", "uid": "uid-of-static-1", "cgroup": STATIC})
    ]


def test_a_pod_with_its_nodes_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"pod shop/proxy-1 has its node's network, and none of its own"):
        views(pods="app in (web, proxy)")


def read(collect: str = "[tcpdump]", pods: str = "pods: {app: web}, ", more: str = "") -> Runbook:
    text = f"name: in\ncaptures:\n  - nodes: {{kubernetes: {{{pods}scope: pod-netns}}}}\n    collect: {collect}\n{more}"
    return parse_runbook(text.encode(), "r.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"pods": ""}, "r.yaml:3:33: captures[0].nodes.kubernetes.scope: pod-netns looks inside pods, and no pods are chosen"),
        ({"collect": "[{tcpdump: {netns: blue}}]"}, "r.yaml:4:33: captures[0].collect[0].tcpdump.netns: the namespace is the pod's"),
        ({"collect": '[{ebpf: {netns: ["pid:1"]}}]'}, "captures[0].collect[0].ebpf.netns: the namespace is the pod's"),
        ({"collect": "[{network-state: {netns: [a]}}]"}, "network-state.netns: the namespace is the pod's"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it(words: dict[str, str], said: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(**words)
    (problem,) = raised.value.problems
    assert said in str(problem), str(problem)


def test_a_plan_is_the_pods_and_has_its_name() -> None:
    known = {"namespace": "shop", "name": "web-1", "uid": UID}
    places = [planning.Place("node-a", "kubernetes", pod=known),
              planning.Place("node-a", "kubernetes", pod={**known, "name": "web-2"})]  # fmt: skip
    runbook = read("[tcpdump, network-state, {ebpf: {plugins: [dns]}}, {network-state: {exclude: [nstat]}}]")
    first, second = planning.build(runbook, {"": places}, "in-20261123031658UTC", agent_bundle())
    assert (first.id, second.id) == ("node-a/shop/web-1", "node-a/shop/web-2")
    assert "  inside 2 pods: shop/web-1, shop/web-2" in planning.describe([first, second], runbook)
    assert first.document["prefix"] == "in-shop_web-1"
    assert first.document["pod"] == known
    assert violations("plan", first.document) == []
    packets, state, metrics, again = (c["options"] for c in first.document["collectors"])
    assert packets["expression"] == ""
    assert metrics["scope"] == "netns"
    assert state["exclude"] == list(NODE_WIDE)
    assert again["exclude"] == ["nstat", *NODE_WIDE]
    assert {"meminfo", "resolv.conf", "dmesg", "softnet"} <= set(NODE_WIDE)
    assert not {"snmp", "ip-addr", "sysctl"} & set(NODE_WIDE)


def test_the_job_may_enter_and_no_more() -> None:
    made = {**plan("tcpdump", "network-state"), "pod": {"namespace": "shop", "name": "web-1", "uid": UID}}
    same_as_golden("inside", [objects.job("abc123", 0, "node-1", "agent-0.pyz", made, SETTINGS)])
    assert objects.capabilities({**made, "collectors": []}, SETTINGS) == ("SYS_ADMIN", "SYS_PTRACE")
