"""The agent's verbs, one JSON object a line on stdout: check, start, release, freeze, events, alive, fetch, drop, reach, upload,
keep, stop, remove, bytecode, clock, serve, hold.

Exit status 0 when the verb did what it says, 2 for a plan or directory that won't do, 1 for a bug (a traceback).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

FOLLOW_POLL_S = 0.05
READ_BYTES = 1 << 20
GONE = 3
"""Exit status of `events` when no agent lives in the directory any more and none has said `end`."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    # On 3.9 the interpreter's own message for a newer syntax would come first; older ones still parse this file.
    if sys.version_info < (3, 9):
        return _refuse(f"Python {sys.version.split()[0]} is too old; the agent needs 3.9 or newer")
    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check", help="can this node do the plan on stdin? Touches nothing")
    for name, text in {
        "start": "run the plan on stdin in DIRECTORY, detached",
        "release": "tell the agent T0: a JSON object on stdin",
        "freeze": "keep a window of the rings: a JSON object on stdin",
        "drop": "delete the archive of a frozen window, which is somewhere else now",
        "events": "print the events of DIRECTORY",
        "alive": "does an agent live in DIRECTORY?",
        "fetch": "print the archive's bytes",
        "upload": "store the archive by the grant on stdin",
        "keep": "keep the archive on this node, as the JSON object on stdin says",
        "bytecode": "print the BPF programs that were compiled here",
        "stop": "end the window now and archive what is there",
        "remove": "end without an archive, and delete DIRECTORY",
    }.items():
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("directory", type=Path)
        if name == "events":
            verb.add_argument("--from", dest="first", type=int, default=0, help="the first seq wanted")
            verb.add_argument(
                "--follow", type=float, default=0.0, metavar="SECONDS", help="wait this long for more, until `end`"
            )
        if name == "fetch":
            verb.add_argument("--offset", type=int, default=0)
        if name == "upload":
            verb.add_argument("--deadline", type=float, default=3600.0, metavar="SECONDS")
        if name in ("fetch", "upload", "keep", "drop"):
            verb.add_argument("--name", required=True)
    check = verbs.choices["check"]
    check.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where `start` would be told to work")
    verbs.add_parser("reach", help="which of the places on stdin does this node get through to?")
    verbs.add_parser("clock", help="answer each line on stdin with this node's Unix time")
    verbs.add_parser("serve", help="answer requests on stdin, one a line: all verbs over one connection")
    holds = verbs.add_parser("hold", help="be a pod's first process: wait while agents work below DIRECTORY")
    holds.add_argument("directory", type=Path)
    holds.add_argument(
        "--limit", type=float, required=True, metavar="SECONDS", help="how long to wait for the first plan"
    )
    holds.add_argument("--plan", type=Path, metavar="FILE", help="a plan to carry out without a runner")
    holds.add_argument("--shelf", action="append", default=[], metavar="JSON", help="where its archive is put")
    chosen = parser.parse_args(arguments)
    return int(globals()["_" + chosen.verb](chosen))


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _refuse(why: str, hint: str = "") -> int:
    _say({"ok": False, "why": why, **({"hint": hint} if hint else {})})
    return 2


def _check(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.checks import check
    from retina_runner.agent.plan import Plan, PlanError

    try:
        plan = Plan.parse(sys.stdin.buffer.read())
    except PlanError as error:
        return _refuse(str(error))
    _say(check(plan, chosen.directory))
    return 0


def _start(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.plan import Plan, PlanError
    from retina_runner.agent.supervisor import launch
    from retina_runner.agent.workspace import UnsafeDirectory, Workspace

    text = sys.stdin.buffer.read()
    try:
        plan = Plan.parse(text)
        answer = launch(Workspace(chosen.directory), plan, text)
    except FileExistsError:
        return _refuse(
            f"{chosen.directory} holds another plan", "retina-run cleanup removes what finished or dead runs left"
        )
    except (PlanError, UnsafeDirectory) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(
            f"{error.filename or chosen.directory}: {error.strerror}",
            "the agent needs a directory that it may write to",
        )
    _say({"ok": True, **answer})
    return 0


def _release(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.workspace import Workspace, write_whole

    workspace = Workspace(chosen.directory)
    if not workspace.plan.exists():
        return _refuse(f"no plan in {chosen.directory}")
    release = json.loads(sys.stdin.buffer.read())
    if not isinstance(release.get("t0"), (int, float)) or not isinstance(release.get("reference_t0"), (int, float)):
        return _refuse("a release needs t0 and reference_t0, Unix times")
    if not workspace.release.exists():  # the first T0 stands: a repeated release changes nothing
        write_whole(workspace.release, release)
    _say({"ok": True, "alive": workspace.alive()})
    return 0


def _freeze(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.recorder import Freeze
    from retina_runner.agent.workspace import Workspace, write_whole

    workspace = Workspace(chosen.directory)
    if not workspace.plan.exists():
        return _refuse(f"no plan in {chosen.directory}")
    try:
        order = json.loads(sys.stdin.buffer.read())
        stamp = Freeze.of(order).stamp
    except (ValueError, TypeError) as error:
        return _refuse(f"not an order: {error}")
    if not stamp.isdecimal():
        return _refuse(f"not an event's name: {stamp!r}")
    workspace.orders.mkdir(mode=0o700, exist_ok=True)
    order_file = workspace.orders / f"{stamp}.json"
    if not order_file.exists():  # the first one stands: a repeated order changes nothing
        write_whole(order_file, order)
    _say({"ok": True, "alive": workspace.alive()})
    return 0


def _drop(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.workspace import Workspace

    archive = Workspace(chosen.directory).archive / chosen.name
    if os.sep in chosen.name:
        return _refuse(f"no archive {chosen.name} in {archive.parent}")
    archive.unlink(missing_ok=True)
    _say({"ok": True})
    return 0


def _events(chosen: argparse.Namespace) -> int:
    """Prints whole lines only. After `end`, or when no agent lives here any more, there is nothing to wait for."""
    from retina_runner.agent.workspace import Workspace

    workspace = Workspace(chosen.directory)
    if not workspace.plan.exists():
        return _refuse(f"no plan in {chosen.directory}")
    deadline = time.monotonic() + chosen.follow
    number, rest, ended = 0, b"", False
    file = None
    try:
        while True:
            alive = workspace.alive()
            if file is None and workspace.events.exists():
                file = open(str(workspace.events), "rb", buffering=0)  # noqa: SIM115 - it may appear later
            chunk = file.read(READ_BYTES) if file is not None else b""
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if number >= chosen.first:
                    sys.stdout.buffer.write(line + b"\n")
                number += 1
                ended = ended or b'"event":"end"' in line
            sys.stdout.buffer.flush()
            if chunk:
                continue
            if ended or time.monotonic() >= deadline:
                break
            if not alive:
                return GONE
            time.sleep(FOLLOW_POLL_S)
    except BrokenPipeError:
        # Whoever listened is gone; the agent isn't concerned.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if file is not None:
            file.close()
    return 0


def _alive(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.workspace import Workspace

    _say({"ok": True, "alive": Workspace(chosen.directory).alive()})
    return 0


def _fetch(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.workspace import Workspace

    folder = Workspace(chosen.directory).archive
    if os.sep in chosen.name or not (folder / chosen.name).is_file():
        return _refuse(f"no archive {chosen.name} in {folder}")
    try:
        with open(str(folder / chosen.name), "rb") as file:
            file.seek(chosen.offset)
            while True:
                chunk = file.read(READ_BYTES)
                if not chunk:
                    break
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _reach(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.upload import reach

    _say({"ok": True, "places": reach(json.loads(sys.stdin.buffer.read())["places"])})
    return 0


def _upload(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.supervisor import PR_SET_PDEATHSIG, prctl
    from retina_runner.agent.upload import GrantError, upload
    from retina_runner.agent.workspace import Workspace

    # It goes when its process's parent goes, and ends by its deadline; over a connection that broke, `serve` lets it go on.
    # Either way, what the store has confirmed is remembered, and the next call waits for this one and continues.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    archive = Workspace(chosen.directory).archive / chosen.name
    if os.sep in chosen.name or not archive.is_file():
        return _refuse(f"no archive {chosen.name} in {archive.parent}")
    try:
        _say(upload(archive, json.loads(sys.stdin.buffer.read()), chosen.deadline))
    except GrantError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename or archive}: {error.strerror}")
    return 0


def _keep(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.shelf import NotKept, keep
    from retina_runner.agent.workspace import Workspace

    archive = Workspace(chosen.directory).archive / chosen.name
    if os.sep in chosen.name or not archive.is_file():
        return _refuse(f"no archive {chosen.name} in {archive.parent}")
    options = json.loads(sys.stdin.buffer.read())
    try:
        _say({"ok": True, **keep(archive, options["sha256"], options)})
    except NotKept as why:
        _say({"ok": False, "why": str(why)})
    return 0


def _bytecode(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.ebpf.compiling import FOLDER
    from retina_runner.agent.workspace import Workspace

    found = sorted(Workspace(chosen.directory).raw.glob(f"*/{FOLDER}/*.json"))
    _say({"ok": True, "units": [json.loads(path.read_bytes()) for path in found]})
    return 0


def _stop(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.supervisor import signal_agent
    from retina_runner.agent.workspace import Workspace

    _say({"ok": True, "signalled": signal_agent(Workspace(chosen.directory), signal.SIGTERM)})
    return 0


def _remove(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.supervisor import remove
    from retina_runner.agent.workspace import Workspace

    answer: Dict[str, object] = remove(Workspace(chosen.directory))
    _say({"ok": answer["removed"], **answer})
    return 0


def _clock(chosen: argparse.Namespace) -> int:
    for _ in iter(sys.stdin.buffer.readline, b""):
        _say(time.time())
    return 0


def _hold(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.hold import hold

    if chosen.plan is None:
        return hold(chosen.directory, chosen.limit)
    from retina_runner.agent.plan import PlanError
    from retina_runner.agent.solo import Solo

    try:
        solo = Solo(chosen.directory, chosen.plan, [json.loads(s) for s in chosen.shelf])
    except PlanError as error:
        return _refuse(str(error))
    return hold(chosen.directory, chosen.limit, solo)


def _serve(chosen: argparse.Namespace) -> int:
    from retina_runner.agent.serve import serve

    return serve(main)


if __name__ == "__main__":
    sys.exit(main())
