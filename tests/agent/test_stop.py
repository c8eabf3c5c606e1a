"""A request to stop reaches the thread that waits, whichever thread of the agent the kernel gives the signal to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.test_verbs import plan
from tests.lab import REPOSITORY

SCRIPT = """
import signal, threading, time
from retina_runner.agent.stopping import Stop
stop = Stop()
stop.on_signals()
others = [threading.Thread(target=stop.wait, args=(100,), daemon=True) for _ in range(2)]
for other in others:
    other.start()
threading.Timer(0.5, lambda: {send}).start()
began = time.monotonic()
print(stop.wait(100), stop.reason, time.monotonic() - began < 50, flush=True)
for other in others:
    other.join(50)
print([other.is_alive() for other in others])
"""


@pytest.mark.parametrize(
    "send",
    ["signal.pthread_kill(others[0].ident, signal.SIGTERM)", "signal.raise_signal(signal.SIGTERM)", "stop.request('stopped by request')"],
    ids=["another thread's", "the sender's own", "no signal"],
)  # fmt: skip
def test_whoever_waits_is_woken(send: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(send=send)], capture_output=True, text=True, check=False, timeout=150,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True stopped by request True\n[False, False]\n"), done.stderr


def test_a_byte_without_a_reason_ends_no_wait() -> None:
    """A child that was forked before it had its own handlers writes to the same pipe."""
    script = SCRIPT.format(send="(__import__('os').write(stop._write, b'x'), time.sleep(1), stop.request('later'))")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=150,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True later True\n[False, False]\n"), done.stderr


LAUNCH = """
import json, signal, sys, time
from pathlib import Path
from retina_runner.agent import supervisor
from retina_runner.agent.plan import Plan
from retina_runner.agent.stopping import Stop
from retina_runner.agent.workspace import Workspace, read_events

on_signals = Stop.on_signals

def slow(stop):
    time.sleep(1.5)  # a busy node
    on_signals(stop)

Stop.on_signals = slow
workspace, text = Workspace(Path(sys.argv[1])), sys.stdin.buffer.read()
supervisor.launch(workspace, Plan.parse(text), text)
assert supervisor.signal_agent(workspace, signal.SIGTERM)
until = time.monotonic() + 60
while not (told := [e for e in read_events(workspace.events) if e["event"] == "end"]) and time.monotonic() < until:
    time.sleep(0.05)
print([(e["state"], e["why"]) for e in told], supervisor.remove(workspace))
"""


def test_a_request_that_comes_before_the_agent_has_handlers_for_it_is_one(tmp_path: Path) -> None:
    """By default a SIGTERM kills: the supervisor, or a worker that is just forked."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(tmp_path / "plan")], input=json.dumps(plan()).encode(), capture_output=True,
        check=False, timeout=150, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.decode() == "[('abandoned', 'stopped by request')] {'removed': True}\n", done.stderr.decode()
