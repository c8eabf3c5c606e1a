"""`window` is told when everything counts, however late a busy node's threads are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.agent.test_verbs import plan
from tests.lab import REPOSITORY

SESSION = """
import json, sys, threading, time
from pathlib import Path
from retina_runner.agent.collectors import ebpf
from retina_runner.agent.metrics.linuxutil import LinuxUtil
from retina_runner.agent.plan import Plan
from retina_runner.agent.session import Session
from retina_runner.agent.stopping import Stop
from retina_runner.agent.workspace import Journal, Workspace

ebpf.LATE_S = 60.0  # that thread may itself be late, and would zero no more
said = []
real = LinuxUtil.zero

def interrupted(source):
    if threading.current_thread() is not threading.main_thread():  # at T0; all others are before it
        time.sleep(1.5)  # as long as a busy node lets it wait
        said.append("zeroed at T0")
    real(source)

LinuxUtil.zero = interrupted
workspace = Workspace(Path(sys.argv[1]))
workspace.create()
journal = Journal(workspace.events, lambda event: said.append(event["event"]))
plan = {**json.load(sys.stdin), "t0": time.time() + 2.0}
Session(Plan.parse(json.dumps(plan).encode()), workspace, journal, Stop()).run()
print(json.dumps(said))
"""


def test_the_window_is_told_after_the_zero_at_t0(tmp_path: Path) -> None:
    options = {
        "plugins": ["linuxutil"],
        "files": [],
        "netns": [],
        "scope": "node",
        "interval": 0.2,
        "series_limit": 10**6,
    }
    document = plan(collectors=[{"id": "ebpf", "name": "ebpf", "options": options}])
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "plan")], input=json.dumps(document).encode(), capture_output=True,
        cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said.index("armed") < said.index("zeroed at T0") < said.index("window"), said
    assert said[-1] == "end"
