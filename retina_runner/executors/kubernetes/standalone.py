"""Jobs that need no runner: `plan --manifests`, for kubectl or GitOps. The pod carries its plan out by itself.

Each begins when its pod is ready. (A runner is what begins on all nodes at one instant, and freezes all nodes' rings.)
Names are made of the content: the same is printed again byte for byte, to apply it twice changes nothing, and whatever
is different has other names, since a Job that is there can't be changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retina_runner.executors.kubernetes import objects

PLAN_DIRECTORY = "/retina-run-plan"
RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
"""What a user may call the run: with the digest and a number behind it, it is still a DNS label (63 characters)."""


def token(run_id: str, jobs: Iterable[Mapping[str, Any]], plans: Iterable[Mapping[str, Any]],
          shelves: Sequence[Mapping[str, Any]]) -> str:  # fmt: skip
    """What names the objects: the user's own word for the run, if there is one, and a digest of all that they hold.

    Jobs and plans are those of a run that has no name yet; the agent is in them by its own digest.
    """
    text = json.dumps([run_id, list(jobs), list(plans), list(shelves)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{run_id}-{digest}" if run_id else digest


def manifests(
    token: str, agent_name: str, agent: bytes, jobs: Iterable[Mapping[str, Any]], plans: Mapping[str, Mapping[str, Any]],
    shelves: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, Any], ...]:  # fmt: skip
    """What is to be applied, in that order. `plans` are by the Job's name; `shelves` as agent.shelf.keep takes them."""
    made: list[dict[str, Any]] = []
    agents: set[str] = set()
    for job in jobs:
        name, namespace = str(job["metadata"]["name"]), str(job["metadata"]["namespace"])
        plan = without_patience(plans[name])
        if namespace not in agents:
            agents.add(namespace)
            made.append(objects.config_map(token, namespace, str(plan["run"]), agent_name, agent))
        metadata = {k: job["metadata"][k] for k in ("namespace", "labels", "annotations")}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"{name}-plan", **metadata},
                "immutable": True,
                "data": {"plan.json": json.dumps(plan, indent=1) + "\n"},
            }
        )
        made.append(alone(job, f"{name}-plan", shelves))
    return tuple(made)


def without_patience(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a node that has no runner to wait for when its trigger's condition holds."""
    return {**plan, "trigger": {**plan["trigger"], "patience_s": 0}} if plan.get("trigger") else dict(plan)


def alone(job: Mapping[str, Any], plan: str, shelves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The Job with the plan from the ConfigMap of that name. It stays when it has ended: whoever keeps a cluster to a
    repository would make one that goes by itself again, and with it the capture."""
    result: dict[str, Any] = json.loads(json.dumps(job))
    del result["spec"]["ttlSecondsAfterFinished"]
    pod = result["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "plan", "configMap": {"name": plan}})
    container = pod["containers"][0]
    container["volumeMounts"].append({"name": "plan", "mountPath": PLAN_DIRECTORY, "readOnly": True})
    container["command"] += ["--plan", f"{PLAN_DIRECTORY}/plan.json"]
    for shelf in shelves:
        container["command"] += ["--shelf", json.dumps(shelf, sort_keys=True)]
    return result


def text(made: Sequence[Mapping[str, Any]]) -> str:
    """The manifests as YAML documents, with what to do with them."""
    from retina_runner.translate.yaml_text import lines

    label = f"{objects.RUN_LABEL}={made[0]['metadata']['labels'][objects.RUN_LABEL]}"
    head = [
        "# kubectl apply -f this file. Each Job captures once, as soon as its pod runs; its log says the rest:",
        f"#   kubectl logs -A -l {label}",
        "#   kubectl -n NAMESPACE cp POD:PATH ARCHIVE     then: retina-run verify ARCHIVE",
        f"#   kubectl delete job,configmap -A -l {label}   removes everything",
        "# To capture again, print them with another --run-id.",
    ]
    return "\n".join(head) + "\n" + "".join("---\n" + "\n".join(lines(m)) + "\n" for m in made)
