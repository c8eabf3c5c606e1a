"""`retina-run retry --failed` for nodes that were Jobs: new Jobs, from what the run's record says of the old ones."""

from __future__ import annotations

import json

import pytest

from retina_runner.verification import verify_archive
from tests.cluster.api import Api
from tests.cluster.filling import full
from tests.cluster.runs import Runs, by_node, standing_still
from tests.lab import Archive

pytestmark = pytest.mark.cluster


def test_a_node_that_had_no_room_is_done_again(runs: Runs, cluster: Api, namespace: str) -> None:
    """One of two nodes is full. Afterwards it alone is done again, by a Job of the same making."""
    empty, filled = sorted(cluster.ready())[:2]
    with full(cluster, namespace, filled):
        run = runs.start(f"""
name: again
duration: 2s
limits: {{ready_timeout: 20s}}
captures:
  - nodes: {{kubernetes: {{nodes: [{empty}, {filled}], job: {{
      namespace: {namespace}, requests: {{cpu: 200m}}, annotations: {{"example.com/note": "kept"}}}}}}}}
    collect: [{{tcpdump: {{interfaces: [any]}}}}]
upload: [{{host_path: {{path: again}}}}]
""")
        assert run.end() == 3, (run.events, cluster.state())
        (failed,) = run.all("node-failed")
        assert "Insufficient cpu" in failed["why"]
    assert set(by_node(run)) == {f"again/{empty}"}
    first = run.directory
    again = runs.begin("retry", str(first), "--failed", "--json")
    assert again.stdout is not None
    note, said = "", ""
    for line in again.stdout:
        said += line
        if json.loads(line)["event"] == "node-check":
            with standing_still(again):  # it would remove its Job while we ask for it
                (job,) = cluster.get("jobs", "-n", namespace)["items"]
            note = job["metadata"]["annotations"]["example.com/note"]
    assert again.wait(60) == 0, (said, cluster.state())
    assert note == "kept"
    (directory,) = (d for d in (run.folder / "runs").iterdir() if d != first)
    (path,) = (directory / "archives").iterdir()
    assert verify_archive(path).problems == ()
    assert Archive(path).manifest["node"] == filled
    (row,) = json.loads((directory / "run.json").read_text())["nodes"]
    assert row["uploads"][0]["location"] == f"/var/lib/retina-run/archives/again/{path.name}"
    over = runs.command("retry", str(directory), "--failed")
    assert over.returncode == 0
    assert "no node failed" in over.stdout
