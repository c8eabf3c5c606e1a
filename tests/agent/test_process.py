"""The one door to processes: limits hold, nothing survives, output is bounded, and nothing is inherited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner.agent import process
from tests.lab import REPOSITORY, eventually


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_output_status_and_time_are_told() -> None:
    outcome = process.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (outcome.stdout, outcome.stderr, outcome.exit_status, outcome.ok) == (b"out\n", b"err\n", 3, False)
    assert outcome.why() == "sh: exit status 3: err"


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(process.MissingTool, match="no-such-tool: not installed"):
        process.run(["no-such-tool"])


def test_a_limit_ends_the_command_and_whatever_it_started(tmp_path: Path) -> None:
    outcome = process.run(
        ["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; trap '' TERM; wait; sleep 1000"], limit_s=3.0
    )
    assert outcome.timed_out
    assert not outcome.ok
    child = int((tmp_path / "pid").read_text())
    eventually(lambda: not alive(child), "the grandchild is gone")


def test_a_daemon_that_keeps_the_pipe_does_not_hold_us(tmp_path: Path) -> None:
    # The command goes on only when its daemon has a session of its own: before that, it would be ended with it.
    daemon = f"setsid sh -c 'echo $$ > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/ready; exec sleep 1000'"
    outcome = process.run(
        ["sh", "-c", f"{daemon} & until [ -e {tmp_path}/ready ]; do sleep 0.02; done; echo done"], limit_s=60.0
    )
    assert (outcome.stdout, outcome.timed_out) == (b"done\n", False)
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGKILL)


def test_output_is_cut_at_its_cap_and_the_command_still_ends() -> None:
    outcome = process.run(["head", "-c", "5000000", "/dev/zero"], output_limit_bytes=1000)
    assert (len(outcome.stdout), outcome.truncated, outcome.exit_status) == (1000, True, 0)


def test_input_reaches_the_command_and_one_that_reads_none_is_no_trouble() -> None:
    assert process.run(["wc", "-c"], stdin=b"x" * 300_000).stdout.strip() == b"300000"
    assert process.run(["true"], stdin=b"x" * 300_000).ok


def test_nothing_of_our_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary-7f3a")
    outcome = process.run(["env"])
    assert b"canary" not in outcome.stdout
    assert b"LC_ALL=C" in outcome.stdout


@pytest.mark.parametrize("argument", ["; echo injected", "$(echo injected)", "`echo injected`", "a\nb", "--"])
def test_arguments_are_never_read_by_a_shell(argument: str) -> None:
    assert process.run(["printf", "%s", "--", argument]).stdout.decode().endswith(argument)


def test_a_process_dies_with_the_agent_that_started_it() -> None:
    """The agent is killed, so it can't clean up; the kernel does."""
    script = (
        "from retina_runner.agent import process; import time;"
        "print(process.spawn(['sleep', '1000']).pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY) as agent:
        assert agent.stdout is not None
        child = int(agent.stdout.readline())
        # Until setpriv(1) has become the command, its parent-death signal may not be set yet.
        eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the child runs")
        agent.kill()
    eventually(lambda: not alive(child), "the child is gone")


@pytest.mark.parametrize("told", [True, False])
def test_an_end_is_noticed_whether_the_kernel_tells_of_it_or_not(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not told:

        def refuse(*_: object) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr("os.pidfd_open", refuse)
    done = process.run(["sh", "-c", "sleep 0.2; exit 3"], limit_s=30.0)
    assert (done.exit_status, done.timed_out) == (3, False)
    assert process.run(["sleep", "30"], limit_s=0.1).timed_out
