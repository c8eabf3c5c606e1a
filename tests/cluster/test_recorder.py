"""The flight recorder on a cluster: an event on one node keeps one window of all nodes' rings, to the packet, and it goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.runs import LABEL, PatientRun, Runs
from tests.cluster.shop import PARTS, Shop
from tests.cluster.test_captures import UDP4, numbers
from tests.lab import Archive

pytestmark = pytest.mark.cluster

BEFORE_S = 30
DESTINATION_PORT = slice(14 + 20 + 2, 14 + 20 + 4)
RUNBOOK = """
name: recorder
duration: 1h
trigger: {condition: 'delta("Udp.NoPorts") > 0', every: 200ms, before: %ds, after: 15s, count: %d, cooldown: 1s}
captures:
  - nodes: {kubernetes: {nodes: all, job: {namespace: %s}}}
    collect: [{tcpdump: {interfaces: [eth0], filter: udp portrange 7000-7001}}, network-state]
%s"""
SENT = {"client": [*range(300), *range(50)], "bystander": [*range(200)]}
"""What each part sends to the server around the first event."""


def event_on(shop: Shop, part: str, sender: str) -> None:
    """A datagram to a closed port of the part's node."""
    node = shop.api.get("node", shop.node[part])
    (address,) = [
        a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP" and ":" not in a["address"]
    ]
    shop.send(sender, address, 9, 1)


def recordings(run: PatientRun, stamp: str) -> dict[str, Archive]:
    """The archives of one event, by node."""
    return {a.manifest["node"]: a for a in run.archives() if a.manifest.get("trigger", {}).get("stamp") == stamp}


def test_one_window_of_three_nodes_and_on_to_the_next_until_ctrl_c(runs: Runs, shop: Shop) -> None:
    run = runs.start(RUNBOOK % (BEFORE_S, 5, shop.namespace, ""))
    for _ in PARTS:
        run.wait_for("window")
    time.sleep(BEFORE_S + 1)  # the rings go back as far as the window does, so that its archive can be complete
    server = shop.addresses["server"][0]
    shop.send("client", server, 7000, 300)
    shop.send("bystander", server, 7000, 200)
    event_on(shop, "bystander", "client")
    first = run.wait_for("freeze")
    shop.send("client", server, 7000, 50)
    for _ in PARTS:
        run.wait_for("fetched")
    shop.send("bystander", server, 7001, 30)
    # What happens in the cool-down, and up to the first look after it, is no event.
    second = run.provoke(lambda: event_on(shop, "server", "bystander"), "freeze")
    for _ in PARTS:
        run.wait_for("fetched")
    run.signal(signal.SIGINT)
    assert run.end() == 130, (run.events, runs.api.state())

    assert (first["at"], second["at"]) == (shop.node["bystander"], shop.node["server"])
    of_first, of_second = recordings(run, first["stamp"]), recordings(run, second["stamp"])
    assert set(of_first) == set(of_second) == set(shop.node.values())
    for archive in (*of_first.values(), *of_second.values()):
        assert verify_archive(archive.path).problems == ()
        assert archive.lacking() == {}
        assert archive.manifest["trigger"]["alone"] == ""
        assert archive.manifest["executor"] == "kubernetes"
    for of_event, at in ((of_first, "bystander"), (of_second, "server")):
        assert {a.manifest["trigger"]["node"] for a in of_event.values()} == {shop.node[at]}
        assert len({(a.manifest["window"]["t0"], a.manifest["window"]["end"]) for a in of_event.values()}) == 1
        moved = {c["name"]: c["delta"] for c in of_event[shop.node[at]].json("state/delta/trigger.json")["counters"]}
        assert moved["Udp.NoPorts"] >= 1

    def held(of_event: dict[str, Archive], part: str) -> list[int]:
        return numbers(of_event[shop.node[part]], UDP4, 4)

    assert held(of_first, "client") == sorted(SENT["client"])
    assert held(of_first, "bystander") == SENT["bystander"]
    assert held(of_first, "server") == sorted([*SENT["client"], *SENT["bystander"]])
    for part, count in (("client", 0), ("bystander", 30), ("server", 30)):
        # The seconds before the second event may reach into the first one's packets, which are of another port.
        packets = [p for _, p in of_second[shop.node[part]].pcap() if p[DESTINATION_PORT] == (7001).to_bytes(2, "big")]
        assert sorted(int.from_bytes(p[UDP4 : UDP4 + 4], "big") for p in packets) == list(range(count))
    own = [a for a in run.archives() if "trigger" not in a.manifest]
    assert {a.manifest["node"] for a in own} == set(shop.node.values())
    assert all("state/delta/network-state.json" in a.members and not a.pcaps() for a in own)


def test_jobs_without_a_runner_shelve_their_own_recordings(runs: Runs, shop: Shop, tmp_path: Path) -> None:
    """Each node its own events, kept on its disk while the rings go on; to apply the same again changes nothing."""
    api, folder = shop.api, f"recorder-{shop.namespace}"
    runbook = tmp_path / "recorder.yaml"
    # Each look for an event is one more, and the last of `count` would end the Job that is looked at.
    runbook.write_text(RUNBOOK % (BEFORE_S, 99, shop.namespace, f"upload: [{{host_path: {{path: {folder}}}}}]\n"))
    printed = [runs.command("plan", "--manifests", "--run-id", "night", str(runbook)) for _ in range(2)]
    assert printed[0].returncode == 0, printed[0].stderr
    assert "one window on all nodes takes a runner" in printed[0].stderr
    assert printed[0].stdout == printed[1].stdout
    api.kubectl("apply", "--validate=strict", "-f", "-", stdin=printed[0].stdout)
    again = api.kubectl("apply", "-f", "-", stdin=printed[1].stdout).splitlines()
    assert len(again) == 7
    assert all(line.endswith(" unchanged") for line in again), again
    pods: dict[str, str] = {}

    def run() -> bool:
        for pod in api.get("pods", "-n", shop.namespace, "-l", LABEL)["items"]:
            if pod["status"]["phase"] == "Running":
                pods[pod["spec"]["nodeName"]] = pod["metadata"]["name"]
        return set(pods) == set(shop.node.values())

    def said(part: str) -> list[dict[str, Any]]:
        log = api.kubectl("logs", "-n", shop.namespace, pods[shop.node[part]])
        return [json.loads(line) for line in log.splitlines()]

    def kept(part: str) -> list[str]:
        return [s["location"] for s in said(part) if s["event"] == "kept"]

    api.eventually(run, "the Jobs' pods run", 300)
    try:
        for part, other in (("server", "client"), ("client", "server")):

            def happens(part: str = part, other: str = other) -> bool:
                shop.send(other, shop.addresses[part][0], 7000, 20)
                event_on(shop, part, other)
                return bool(kept(part))

            api.eventually(happens, f"the node of {part} has kept its event", 300)
            (location,) = kept(part)[:1]
            assert location.startswith(f"/var/lib/retina-run/archives/{folder}/recorder-{shop.node[part]}-event-")
            here = tmp_path / Path(location).name
            api.kubectl("cp", f"{shop.namespace}/{pods[shop.node[part]]}:{location}", str(here))
            archive = Archive(here)
            assert verify_archive(here).problems == ()
            assert archive.manifest["trigger"]["node"] == shop.node[part]
            assert archive.manifest["trigger"]["alone"] == "there is no runner"
            assert set(range(20)) <= set(numbers(archive, UDP4, 4))
        assert not kept("bystander"), "nothing happened there"
        for node in shop.node.values():
            api.kubectl("exec", "-n", shop.namespace, pods[node], "--", "sh", "-c",
                        f"rm -rf /var/lib/retina-run/archives/{folder}")  # fmt: skip
    finally:
        label = next(line for line in printed[0].stdout.splitlines() if LABEL in line and "delete" in line).split()[-3]
        api.kubectl("delete", "job,configmap", "-n", shop.namespace, "-l", f"{LABEL}", limit_s=300)
    assert label.startswith(f"{LABEL}=night-")
    api.eventually(
        lambda: not api.get("jobs,pods,configmaps", "-n", shop.namespace, "-l", label)["items"], "nothing is left", 300
    )
