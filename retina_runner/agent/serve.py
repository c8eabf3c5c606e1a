"""All verbs over one connection: a request a line in, the verb's own lines out, and a line with its exit status.

    request   {"verb": "check", "arguments": ["--directory", "/var/tmp/x"], "stdin": "…"}
    answer    what the verb prints, then {"served": 0, "stderr": "…"}

One interpreter a connection instead of one a verb. What takes no time is done here; each other verb is a fork of this
process, so that nothing of one can harm the next. `start` is done here too: what it starts detaches itself. An empty line
comes every few seconds, so that a silent connection is a dead one; an empty line that comes in ends a verb that only reads.
When the connection goes, this process goes, and what only reads goes with it; the agent itself isn't concerned.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, List, NoReturn, Optional, Sequence, Tuple

from retina_runner.agent import own_file, supervisor
from retina_runner.agent.workspace import Workspace

BEAT_S = 5.0
READ_BYTES = 1 << 18
REMOVED_WITHIN_S = 1.0
"""How long whoever asks hears nothing meanwhile: a fraction of a beat."""
READING_VERBS = ("check",)
QUICK_VERBS = ("start", "release", "freeze", "drop", "alive", "stop")
PRELOADED = ("checks", "plan", "supervisor", "workspace", "session", "following")
"""Imported before the first request, and by that once for all the verbs that are forks. What only some plans need, or only
after T0, is imported when they do: the agent's file is held for as long (own_file.py)."""


class _Gone(Exception):
    """Whoever asked isn't there any more."""


def serve(main: Callable[[Optional[Sequence[str]]], int]) -> NoReturn:
    """Answer requests on stdin until it ends, and the process with it. `main` is the agent's own entry point."""
    for name in PRELOADED:
        importlib.import_module("retina_runner.agent." + name)
    gc.freeze()
    gc.enable()  # the bootstrap has turned it off: what is imported stays
    server = _Server(main)
    try:
        server.say({"ready": True})
        server.run()
    except (_Gone, BrokenPipeError, ConnectionResetError):
        pass
    if own_file.held is not None:
        # A connection that was cut may be noticed here long after its run has ended: the last one to go takes the file away.
        own_file.sweep(Path(sys.argv[0]).parent)
    _reap()  # whoever inherits an ended agent may never wait for it, as the first process of many containers
    # Nothing is left to be written, and taking an interpreter apart costs the node as much as three verbs.
    os._exit(0)


class _Server:
    def __init__(self, main: Callable[[Optional[Sequence[str]]], int]):
        self._main = main
        self._input: BinaryIO = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - for the process's life
        self._buffer = b""

    def say(self, answer: Any) -> None:
        _write((json.dumps(answer) + "\n").encode())

    def run(self) -> None:
        while True:
            line = self._line()
            if not line.strip():
                continue
            request = json.loads(line)
            verb = request["verb"]
            if verb == "clock":
                self.say({"time": time.time()})
                continue
            _reap()
            if verb == "fetch":
                self._fetch(**request["of"])
                continue
            words, text = [verb, *request["arguments"]], request.get("stdin", "").encode()
            if verb == "events":
                self._here(words, text, self._follow)
            elif verb in QUICK_VERBS or (verb == "check" and _looks_only(text)):
                self._here(words, text, self._main)
            elif verb != "remove" or not self._removed(Path(words[1])):
                self._fork(words, text)

    def _line(self) -> bytes:
        """The next whole line; beats while there is none."""
        while b"\n" not in self._buffer:
            if select.select([0], [], [], BEAT_S)[0]:
                self._read()
            else:
                _write(b"\n")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _read(self) -> None:
        chunk = self._input.read(READ_BYTES)
        if not chunk:
            raise _Gone
        self._buffer += chunk

    def _fetch(self, directory: str, name: str, offset: int, kept: bool = False) -> None:
        """{"bytes": n}, and n bytes; {"why": …} for an archive that can't be read. `kept`: of a shelf, not of an agent."""
        folder = Path(directory) if kept else Workspace(Path(directory)).archive
        path = folder / os.path.basename(name)
        try:
            file = open(str(path), "rb")  # noqa: SIM115 - only the opening may be refused
        except OSError as error:
            self.say({"why": f"{path}: {error.strerror}"})
            return
        with file:
            left = max(0, os.fstat(file.fileno()).st_size - offset)
            self.say({"bytes": left})
            file.seek(offset)
            while left:
                chunk = file.read(min(left, READ_BYTES))
                if not chunk:
                    raise _Gone  # it became shorter: the count that was promised can't be kept
                _write(chunk)
                left -= len(chunk)

    def _here(self, arguments: List[str], text: bytes, do: Callable[[Sequence[str]], int]) -> None:
        """Carry a verb out in this process, and say how it ended."""
        sys.stdin = io.TextIOWrapper(io.BytesIO(text))
        status, trouble = 1, ""
        try:
            status = do(arguments)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            import traceback

            trouble = traceback.format_exc()[-2000:]
        self.say({"served": status, "stderr": trouble})

    def _removed(self, directory: Path) -> bool:
        """Carry `remove` out here, if that takes but a moment: as a rule the agent only lingers. False otherwise."""
        try:
            if not supervisor.remove(Workspace(directory), REMOVED_WITHIN_S)["removed"]:
                return False
        except OSError:
            return False  # whoever does it again tells it
        self.say({"ok": True, "removed": True})
        self.say({"served": 0, "stderr": ""})
        return True

    def _follow(self, arguments: Sequence[str]) -> int:
        """`events`, until an empty line comes in."""
        from retina_runner.agent.following import follow

        directory, options = arguments[1], dict(zip(arguments[2::2], arguments[3::2]))
        workspace = Workspace(Path(directory))
        if not workspace.plan.exists():
            self.say({"ok": False, "why": f"no plan in {directory}"})
            return 2
        beaten = time.monotonic()

        def write(lines: bytes) -> None:
            nonlocal beaten
            _write(lines)
            beaten = time.monotonic()

        def wait(seconds: float, descriptors: Tuple[int, ...]) -> bool:
            if time.monotonic() - beaten >= BEAT_S:
                write(b"\n")
            ready = select.select([0, *descriptors], [], [], seconds)[0]
            if 0 in ready:
                self._read()
            return 0 in ready

        return follow(workspace, int(options.get("--from", 0)), float(options.get("--follow", 0.0)), write, wait)

    def _fork(self, arguments: List[str], text: bytes) -> None:
        # memfd_create(2) where the kernel has it (3.17): a plan is larger than a pipe holds.
        given, told = _scratch(), _scratch()
        os.write(given, text)
        os.lseek(given, 0, os.SEEK_SET)
        out, inlet = os.pipe()
        child = os.fork()
        if child == 0:
            _become(self._main, arguments, given, inlet, told)
        os.close(inlet)
        try:
            status = self._relay(child, out, arguments[0] in READING_VERBS)
            size = os.fstat(told).st_size
            os.lseek(told, max(0, size - 2000), os.SEEK_SET)
            self.say({"served": status, "stderr": os.read(told, 2000).decode("utf-8", "replace")})
        finally:
            for descriptor in (out, given, told):
                os.close(descriptor)

    def _relay(self, child: int, out: int, reads: bool) -> int:
        """Pass the child's whole lines on until it has ended; its exit status, negative for a signal."""
        rest = b""
        try:
            while True:
                ready = select.select([out, 0], [], [], BEAT_S)[0]
                if not ready:
                    _write(b"\n")
                if 0 in ready:
                    self._read()
                    if reads:
                        os.kill(child, signal.SIGKILL)
                if out in ready:
                    chunk = os.read(out, READ_BYTES)
                    if not chunk:
                        break
                    whole, newline, rest = (rest + chunk).rpartition(b"\n")
                    _write(whole + newline)
        except BaseException:
            if reads:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _looks_only(plan: bytes) -> bool:
    """Whether checking the plan starts nothing and stays where this process is; another's check is a fork's.

    Imports a plan's collectors here, where whoever checks the plan and whoever carries it out find them. What is wrong with
    the plan, or with them here, is for those to say.
    """
    from retina_runner.agent import collectors

    try:
        document = json.loads(plan)
        names = {entry["name"] for entry in document["collectors"]}
        for name in names:
            collectors.module(name)
        return names <= collectors.LOOKING and not document.get("pod")
    except Exception:
        return False


def _reap() -> None:
    """Agents that were started here and have ended since."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _scratch() -> int:
    try:
        return os.memfd_create("retina-run")
    except (AttributeError, OSError):
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _become(
    main: Callable[[Optional[Sequence[str]]], int], arguments: List[str], given: int, inlet: int, told: int
) -> None:
    """Carry a verb out with these as its standard streams. Never returns."""
    status = 1
    try:
        os.setsid()
        for target, descriptor in ((0, given), (1, inlet), (2, told)):
            os.dup2(descriptor, target)
        for descriptor in (given, inlet, told):
            os.close(descriptor)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the process's life
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        status = main(arguments)
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(status)


def _write(content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(1, view) :]
