"""The agent's verbs, one JSON object a line on stdout: check, start, release, freeze, events, alive, fetch, drop, reach, upload,
keep, stop, remove, bytecode, clock, serve, hold.

Exit status 0 when the verb did what it says, 2 for a plan or directory that won't do, 1 for a bug (a traceback).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

READ_BYTES = 1 << 20
NEEDED, REPEATED = object(), object()
"""Defaults of options: it must be given; it may be given several times, and is a list."""
_Options = Dict[str, Tuple[str, Callable[[str], Any], Any]]
_NAME: _Options = {"--name": ("name", str, NEEDED)}
VERBS: Dict[str, Tuple[str, bool, _Options]] = {
    "check": ("can this node do the plan on stdin? Touches nothing", False,
              {"--directory": ("directory", Path, Path("/var/tmp"))}),
    "start": ("run the plan on stdin in DIRECTORY, detached", True, {}),
    "release": ("tell the agent T0: a JSON object on stdin", True, {}),
    "freeze": ("keep a window of the rings: a JSON object on stdin", True, {}),
    "drop": ("delete the archive of a frozen window, which is somewhere else now", True, _NAME),
    "events": ("print the events of DIRECTORY, from number --from on; wait --follow seconds for more, until `end`", True,
               {"--from": ("first", int, 0), "--follow": ("follow", float, 0.0)}),
    "alive": ("does an agent live in DIRECTORY?", True, {}),
    "fetch": ("print the archive's bytes", True, {**_NAME, "--offset": ("offset", int, 0)}),
    "upload": ("store the archive by the grant on stdin", True, {**_NAME, "--deadline": ("deadline", float, 3600.0)}),
    "keep": ("keep the archive on this node, as the JSON object on stdin says", True, _NAME),
    "bytecode": ("print the BPF programs that were compiled here", True, {}),
    "stop": ("end the window now and archive what is there", True, {}),
    "remove": ("end without an archive, and delete DIRECTORY", True, {}),
    "reach": ("which of the places on stdin does this node get through to, and where could it keep an archive itself?", False, {}),
    "clock": ("answer each line on stdin with this node's Unix time", False, {}),
    "serve": ("answer requests on stdin, one a line: all verbs over one connection", False, {}),
    "hold": ("be a pod's first process: wait --limit seconds for the first plan, and while agents work below DIRECTORY; carry "
             "the plan in the file --plan out without a runner, and put its archive where each --shelf says (JSON)", True,
             {"--limit": ("limit", float, NEEDED), "--plan": ("plan", Path, None), "--shelf": ("shelf", str, REPEATED)}),
}  # fmt: skip
"""Each verb: what it does, whether DIRECTORY follows, and its options: what they set, of which type, and the default."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    # On 3.9 the interpreter's own message for a newer syntax would come first; older ones still parse this file.
    if sys.version_info < (3, 9):
        return _refuse(f"Python {sys.version.split()[0]} is too old; the agent needs 3.9 or newer")
    words = sys.argv[1:] if arguments is None else arguments
    chosen = _understood(words) or _explained(words)
    return int(globals()["_" + chosen.verb](chosen))


def _understood(words: Sequence[str]) -> Optional[SimpleNamespace]:
    """Words that are as they should be, as a runner's are; None for all others. argparse takes ten times as long."""
    if not words or words[0] not in VERBS:
        return None
    _, placed, options = VERBS[words[0]]
    found: Dict[str, Any] = {name: [] if given is REPEATED else given for name, _, given in options.values()}
    places = []
    rest = iter(words[1:])
    for word in rest:
        if word in options:
            name, kind, given = options[word]
            try:
                value = kind(next(rest))
            except (StopIteration, ValueError):
                return None
            if given is REPEATED:
                found[name].append(value)
            else:
                found[name] = value
        elif word.startswith("-"):
            return None
        else:
            places.append(Path(word))
    if len(places) != placed or any(value is NEEDED for value in found.values()):
        return None
    return SimpleNamespace(verb=words[0], **found, **({"directory": places[0]} if placed else {}))


def _explained(words: Sequence[str]) -> Any:
    """What argparse makes of them: help, or what is wrong with them."""
    import argparse

    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (text, placed, options) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if placed:
            verb.add_argument("directory", type=Path)
        for flag, (attribute, kind, given) in options.items():
            verb.add_argument(
                flag, dest=attribute, type=kind, required=given is NEEDED, metavar=attribute.upper(),
                action="append" if given is REPEATED else "store",
                default=[] if given is REPEATED else None if given is NEEDED else given,
            )  # fmt: skip
    return parser.parse_args(words)


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _refuse(why: str, hint: str = "") -> int:
    _say({"ok": False, "why": why, **({"hint": hint} if hint else {})})
    return 2


def _check(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.checks import check
    from retina_runner.agent.plan import Plan, PlanError

    try:
        plan = Plan.parse(sys.stdin.buffer.read())
    except PlanError as error:
        return _refuse(str(error))
    _say(check(plan, chosen.directory))
    return 0


def _start(chosen: SimpleNamespace) -> int:
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


def _release(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.workspace import Workspace, write_whole

    workspace = Workspace(chosen.directory)
    if not workspace.plan.exists():
        return _refuse(f"no plan in {chosen.directory}")
    release = json.loads(sys.stdin.buffer.read())
    if not isinstance(release.get("t0"), (int, float)) or not isinstance(release.get("reference_t0"), (int, float)):
        return _refuse("a release needs t0 and reference_t0, Unix times")
    if not workspace.release.exists():  # the first T0 stands: a repeated release changes nothing
        write_whole(workspace.release, release, sync=False)
    _say({"ok": True, "alive": workspace.alive()})
    return 0


def _freeze(chosen: SimpleNamespace) -> int:
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


def _drop(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.workspace import Workspace

    archive = Workspace(chosen.directory).archive / chosen.name
    if os.sep in chosen.name:
        return _refuse(f"no archive {chosen.name} in {archive.parent}")
    archive.unlink(missing_ok=True)
    _say({"ok": True})
    return 0


def _events(chosen: SimpleNamespace) -> int:
    """Prints whole lines only. After `end`, or when no agent lives here any more, there is nothing to wait for."""
    from retina_runner.agent.following import follow
    from retina_runner.agent.workspace import Workspace

    workspace = Workspace(chosen.directory)
    if not workspace.plan.exists():
        return _refuse(f"no plan in {chosen.directory}")

    def write(lines: bytes) -> None:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()

    def wait(seconds: float, descriptors: Tuple[int, ...]) -> bool:
        select.select(descriptors, [], [], seconds)
        return False

    try:
        return follow(workspace, chosen.first, chosen.follow, write, wait)
    except BrokenPipeError:
        # Whoever listened is gone; the agent isn't concerned.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _alive(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.workspace import Workspace

    _say({"ok": True, "alive": Workspace(chosen.directory).alive()})
    return 0


def _fetch(chosen: SimpleNamespace) -> int:
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


def _reach(chosen: SimpleNamespace) -> int:
    from retina_runner.agent import shelf

    asked = json.loads(sys.stdin.buffer.read())
    shelves = [shelf.refusal(options) for options in asked.get("shelves", ())]
    answer = {"ok": True, "places": [], "shelves": [{"ok": not why, "why": why} for why in shelves]}
    if asked.get("places"):  # only who asks for a store pays for TLS
        from retina_runner.agent.upload import reach

        answer["places"] = reach(asked["places"])
    _say(answer)
    return 0


def _upload(chosen: SimpleNamespace) -> int:
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


def _keep(chosen: SimpleNamespace) -> int:
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


def _bytecode(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.ebpf.compiling import FOLDER
    from retina_runner.agent.workspace import Workspace

    found = sorted(Workspace(chosen.directory).raw.glob(f"*/{FOLDER}/*.json"))
    _say({"ok": True, "units": [json.loads(path.read_bytes()) for path in found]})
    return 0


def _stop(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.supervisor import signal_agent
    from retina_runner.agent.workspace import Workspace

    _say({"ok": True, "signalled": signal_agent(Workspace(chosen.directory), signal.SIGTERM)})
    return 0


def _remove(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.supervisor import remove
    from retina_runner.agent.workspace import Workspace

    answer: Dict[str, object] = remove(Workspace(chosen.directory))
    _say({"ok": answer["removed"], **answer})
    return 0


def _clock(chosen: SimpleNamespace) -> int:
    for _ in iter(sys.stdin.buffer.readline, b""):
        _say(time.time())
    return 0


def _hold(chosen: SimpleNamespace) -> int:
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


def _serve(chosen: SimpleNamespace) -> int:
    from retina_runner.agent.serve import serve

    serve(main)


if __name__ == "__main__":
    sys.exit(main())
