"""Detached life: a supervisor that outlives the connection, the worker that runs the plan, and what is done if it dies.

    start verb ── fork ── supervisor (own session, subreaper) ── fork ── worker (session.py) ── tcpdump, iptables-save, …

The supervisor does nothing but wait. If the worker ends without having said `end` (SIGKILL, out of memory, a bug), it
kills whatever the worker left running and packs what is there. If the supervisor dies, the kernel sends the worker a
SIGTERM, which packs and ends. Finished archives wait for the runner until the plan's expiry, then the directory goes.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Dict, List

from retina_runner.agent import own_file
from retina_runner.agent.plan import Plan
from retina_runner.agent.process import start_ticks, stat_fields
from retina_runner.agent.session import Session
from retina_runner.agent.stopping import Stop
from retina_runner.agent.workspace import Journal, Workspace, read_events, replace_whole, write_whole

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
LINGER_POLL_S, PLAN_WAIT_S = 0.5, 5.0
END_LIMIT_S = 60.0
ENDING = (signal.SIGTERM, signal.SIGINT)
"""Held back from before a process is forked until it has handlers for them: by default they would kill it without a word."""
REMOVE_POLL_FIRST_S, REMOVE_POLL_MOST_S = 0.002, 0.1
"""As a rule the agent only lingers, and is gone at once; one that ends its window takes longer."""


def launch(workspace: Workspace, plan: Plan, plan_text: bytes) -> Dict[str, object]:
    """Start the plan, detached, in a directory that isn't there yet. Returns once the supervisor holds the lock.

    Starting a plan that is there already changes nothing and says so. Raises FileExistsError for another plan in the
    same directory, workspace.UnsafeDirectory, OSError.
    """
    try:
        workspace.create()
    except FileExistsError:
        if _plan_there(workspace) == plan_text:
            return {"state": "already", "directory": str(workspace.directory)}
        raise
    replace_whole(workspace.plan, plan_text, sync=False)
    lock = workspace.take_lock()
    assert lock is not None, "the directory was made a moment ago"
    sys.stdout.flush()
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        _become_supervisor(workspace, plan)  # never returns
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    os.close(lock)
    write_whole(workspace.pid, {"pid": pid, "start": start_ticks(pid)}, sync=False)
    return {"state": "started", "directory": str(workspace.directory), "pid": pid}


def _plan_there(workspace: Workspace) -> bytes:
    """What a directory that is there already was made for; the call that made it, and lost its link, may not have written
    that yet."""
    deadline = time.monotonic() + PLAN_WAIT_S
    while not workspace.plan.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return workspace.plan.read_bytes() if workspace.plan.exists() else b""


def _become_supervisor(workspace: Workspace, plan: Plan) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        _detach_streams(workspace.directory / "agent.log")
        status = _supervise(workspace, plan)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _detach_streams(log: Path) -> None:
    """Let go of the connection's pipes: sshd(8) keeps a session open while anybody holds them."""
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.close(null)
    os.close(out)


def _supervise(workspace: Workspace, plan: Plan) -> int:
    expires = time.monotonic() + plan.duration_s + plan.expiry_s
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    stop = Stop()
    parent = os.getpid()
    worker = os.fork()
    if worker == 0:
        _become_worker(workspace, plan, parent)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def pass_on(number: int, frame: object) -> None:
        stop.request("signal")
        try:
            os.kill(worker, signal.SIGTERM)
        except ProcessLookupError:
            pass

    for number in ENDING:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    status = _wait_for(worker)
    _end_orphans()
    if not any(e["event"] == "end" for e in read_events(workspace.events)):
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        from retina_runner.agent.rescue import rescue

        rescue(workspace, plan, f"the agent's worker died ({why}); packed by its supervisor")
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    if (workspace.directory / "discard").exists():
        return 0  # `remove` is waiting for the lock
    while time.monotonic() < expires and workspace.plan.exists():
        time.sleep(LINGER_POLL_S)
    if workspace.plan.exists():
        # Holding the lock until the directory is gone: nobody can mistake a half-removed one for a free one.
        remove_tree(workspace)
    return 0


def _become_worker(workspace: Workspace, plan: Plan, parent: int) -> None:
    status = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        stop = Stop()
        stop.on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        if os.getppid() != parent:
            stop.request("the supervisor died")
        journal = Journal(workspace.events)
        journal.emit("started", agent=str(plan.document.get("agent", {}).get("name", "")), pid=os.getpid(),
                     python=".".join(map(str, sys.version_info[:3])))  # fmt: skip
        Session(plan, workspace, journal, stop).run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _wait_for(worker: int) -> int:
    """Reap children until the worker has ended; its exit status, negative for a signal."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_orphans() -> None:
    """Kill what the worker left: as subreaper, its children are ours now, and theirs become ours when they die."""
    while True:
        for pid in children_of(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children_of(parent: int) -> List[int]:
    """Direct children by proc(5): /proc/<pid>/stat, field 4. Not from `children`, which needs CONFIG_PROC_CHILDREN."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and stat_fields(int(name))[1:2] == [str(parent)]:
            found.append(int(name))
    return found


def prctl(option: int, value: int) -> None:
    """prctl(2); a kernel or C library that doesn't know it only loses the safety net."""
    try:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
    except (OSError, AttributeError):
        pass


def signal_agent(workspace: Workspace, number: int) -> bool:
    """Send a signal to the supervisor, if it is the one that was started here; whether it was."""
    try:
        known = json.loads(workspace.pid.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    if not workspace.alive() or start_ticks(known["pid"]) != known["start"]:
        return False
    try:
        os.kill(known["pid"], number)
    except ProcessLookupError:
        return False
    return True


def remove(workspace: Workspace, limit_s: float = END_LIMIT_S) -> Dict[str, object]:
    """End the agent without an archive if it still runs, and delete its directory. Idempotent.

    Returns {"removed": bool}; False, with `why`, when the agent didn't end within the limit.
    """
    if not workspace.directory.exists():
        own_file.sweep(workspace.directory.parent)
        return {"removed": True}
    (workspace.directory / "discard").touch(mode=0o600)
    deadline = time.monotonic() + limit_s
    pause_s, signalled = REMOVE_POLL_FIRST_S, 0.0
    while workspace.alive():
        now = time.monotonic()
        if now >= signalled + REMOVE_POLL_MOST_S:
            # Once for a worker in its window, once more for a supervisor that lingers.
            signal_agent(workspace, signal.SIGTERM)
            signalled = now
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, REMOVE_POLL_MOST_S)
        if now > deadline:
            return {"removed": False, "why": f"the agent in {workspace.directory} hasn't ended within {limit_s:.0f} s"}
    remove_tree(workspace)
    return {"removed": True}


def remove_tree(workspace: Workspace) -> None:
    """Delete the directory, and with the last one of them the agent itself and their parent."""
    shutil.rmtree(str(workspace.directory), ignore_errors=True)
    own_file.sweep(workspace.directory.parent)
