"""A tap: one tcpdump on one interface, the thread that looks after its files, its counts, and the verdict of what came of it.

What the thread does with the files is a subclass's: `Stream` reads one while it grows, `Ring` keeps the newest of many.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from retina_runner.agent import process
from retina_runner.agent.context import COMPLETE, LOSSY, PARTIAL, UNKNOWN, Context, Verdict
from retina_runner.agent.packets.command import argv, last_words
from retina_runner.agent.passing import Passing, is_full
from retina_runner.agent.pcap import Cutter

READY_LIMIT_S = 20.0
POLL_S = 0.1
STATISTICS_EVERY_S = 2.0
CHUNK_BYTES = 1 << 20
RUNAWAY_ROOM_BYTES = 64 << 20
DRAIN_POLL_S, DRAIN_LIMIT_S = 0.02, 15.0
COUNTS_TAIL_BYTES = 2000
"""The newest counts are in the log's end; after hours of asking every two seconds the log is a megabyte."""
LISTENING = re.compile(rb"listening on ")
COUNTS = re.compile(rb"(\d+) packets? (captured|received by filter|dropped by kernel|dropped by interface)")
COUNT_NAMES = {
    b"captured": "captured",
    b"received by filter": "received_by_filter",
    b"dropped by kernel": "dropped_by_kernel",
    b"dropped by interface": "dropped_by_interface",
}


class Tap:
    """What is the same of all taps. `failures` are told as the collector's, once `finish` has been called.

    With `protected` a ring forgets nothing; others don't care.
    """

    def __init__(self, context: Context, interface: str, suffix: str, optimise: bool):
        self._context, self._options, self.interface, self._suffix = context, context.options, interface, suffix
        # AppArmor's profile for tcpdump permits these names only; the interface's own name is in the log.
        self._file = context.raw / f"tap{suffix or '-1'}.pcap"
        self._log = context.raw / f"tap{suffix or '-1'}.log"
        self._argv = argv(self._options, interface, str(self._file), as_root=os.geteuid() == 0, optimise=optimise)
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._thread: Optional[threading.Thread] = None
        self._stopping = threading.Event()
        self._started, self._begun = 0.0, 0.0
        self._statistics_at = 0.0
        self._listening_at = 0.0
        self._unread = False
        self._error = ""
        self._disk_full = self._told_full = False
        self._cutters: List[Cutter] = []
        self.protected = False
        self.failures: List[str] = []

    # -- what a subclass says ----------------------------------------------------------------------------------------

    @property
    def bound_bytes(self) -> int:
        """How large one file of tcpdump's should become at most."""
        raise NotImplementedError

    def look_after(self) -> None:
        """What the thread does until the tap is stopped."""
        raise NotImplementedError

    def held(self, now: float, counts: Dict[str, int]) -> Dict[str, int]:
        """`bytes` and `packets` so far; `now` is monotonic, `counts` tcpdump's newest."""
        raise NotImplementedError

    def wrap_up(self) -> None:
        """Archive what the thread hasn't."""

    def judge(self, status: int, text: bytes) -> None:
        """`status` is tcpdump's, `text` everything that it said."""
        raise NotImplementedError

    def record(self, context: Context) -> None:
        """See `Collector.record`."""

    # -- life of the process -----------------------------------------------------------------------------------------

    def start(self) -> None:
        command = self._argv
        if process.find("prlimit"):
            # A backstop for an agent that can't keep up: the kernel itself refuses to let the file grow further.
            size = 2 * self.bound_bytes + RUNAWAY_ROOM_BYTES
            command = ["prlimit", f"--fsize={size}:{size}", "--", process.find(command[0]) or command[0], *command[1:]]
        self._started, self._begun = time.time(), time.monotonic()
        with open(str(self._log), "wb") as log:
            os.chmod(str(self._log), 0o600)
            self._process = process.spawn(command, stderr=log)
        try:
            # The agent gives way to the node's work; the one process that must keep up with the packets doesn't.
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 0)
        except OSError:
            pass  # raising a priority takes CAP_SYS_NICE

    def wait_until_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_LIMIT_S
        while True:
            text = self._log.read_bytes()
            if LISTENING.search(text):
                self._listening_at = self._log.stat().st_mtime  # when it said so; a busy node may read it late
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"tcpdump on {self.interface} ended at once: {last_words(text)}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"tcpdump on {self.interface} isn't listening after {READY_LIMIT_S:.0f} s: {last_words(text)}"
                )
            time.sleep(0.01)

    def follow(self) -> None:
        """Begin to look after what tcpdump writes. Called once T0 is known."""
        self._thread = threading.Thread(target=self._guarded, name=f"follow-{self.interface}", daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self.look_after()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            self._context.emit("warning", why=f"tcpdump on {self.interface}: {self._error}")

    def stop(self) -> None:
        if self.running:
            # The overrun has passed: what the kernel still holds is younger than the window, unless tcpdump couldn't run.
            self.drain()
            process.end(self._process, grace_s=5.0)  # type: ignore[arg-type]  # it runs, so it is one
        self._stopping.set()

    def drain(self) -> None:
        """Wait until tcpdump has read what the kernel had taken when the window was over: it forgets what it hasn't when it is
        ended. After the overrun the kernel keeps nothing of that back, so a tcpdump that sleeps has no block left to read, and
        one that has told of a younger packet has none that is older. By its counts it can't be known: libpcap leaves out one
        half of what the kernel counts on a loopback."""
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while self.running and not (self._sleeps() or any(c.packets_after for c in self._cutters)):
            if time.monotonic() > deadline:
                self._unread = True
                return
            time.sleep(DRAIN_POLL_S)

    def _sleeps(self) -> bool:
        assert self._process is not None
        return process.stat_fields(self._process.pid)[:1] == ["S"]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def abandon(self) -> None:
        if self._process is not None:
            process.end(self._process, grace_s=1.0)
            self._process = None
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for path in self._files():
            path.unlink()

    def finish(self) -> None:
        """Wait for the thread, archive the rest, note the process, and judge. After `stop`."""
        assert self._process is not None
        if self._thread is not None:
            self._thread.join()
        status = self._process.returncode
        self.wrap_up()
        text = read(self._log)
        self.judge(status, text)
        self._context.note_command(
            process.Outcome(
                argv=tuple(self._argv), exit_status=status, stdout=b"", stderr=text, start=self._started,
                duration_s=time.monotonic() - self._begun,
            )
        )  # fmt: skip
        self._write_log(self._context, text)

    # -- its files and counts ------------------------------------------------------------------------------------------

    def _files(self) -> List[Path]:
        """The files that tcpdump has written, oldest first: tap.pcap, tap.pcap1, tap.pcap2, …"""
        found = []
        for path in self._context.raw.glob(self._file.name + "*"):
            number = path.name[len(self._file.name) :]
            if number.isdigit() or not number:
                found.append((int(number or 0), path))
        return [path for _, path in sorted(found)]

    @property
    def _log_name(self) -> str:
        return "logs/" + ("tcpdump" + self._suffix if self._suffix.startswith("-") else "tcpdump") + ".log"

    def _write_log(self, context: Context, text: bytes) -> None:
        context.write(self._log_name, b"argv: " + repr(self._argv).encode() + b"\n" + text)

    def counts(self) -> Dict[str, int]:
        """The newest that tcpdump has told; see `counts_of`."""
        return counts_of(read(self._log, COUNTS_TAIL_BYTES))

    def progress(self) -> Dict[str, int]:
        now = time.monotonic()
        if now - self._statistics_at >= STATISTICS_EVERY_S and self.running:
            self._statistics_at = now
            self._ask()
        counts = self.counts()
        dropped = counts.get("dropped_by_kernel", 0) + counts.get("dropped_by_interface", 0)
        return {**self.held(now, counts), "dropped": dropped}

    def _ask(self) -> None:
        try:
            if self._process is not None:
                self._process.send_signal(signal.SIGUSR1)
        except ProcessLookupError:
            pass

    # -- into the archive ----------------------------------------------------------------------------------------------

    def _member_name(self, number: int = 0) -> str:
        return f"{self._context.base}{self._suffix}" + (f"-{number:05d}" if number else "") + ".pcap"

    def _new_cutter(self, limit_bytes: Optional[int]) -> Cutter:
        assert self._context.intervals_ns is not None
        cutter = Cutter(self._context.intervals_ns(), limit_bytes=limit_bytes)
        self._cutters.append(cutter)
        return cutter

    def _write(self, member: Any, data: bytes, cutter: Cutter, source: Passing, fast: bool = False) -> None:
        """Whole packets into the archive. When the disk is full the capture ends, and the raw file is traded for room;
        what there is none for yet, the member keeps in memory until the archive is finished."""
        try:
            member.write(data, fast=fast, count=cutter.packets_kept)
        except OSError as error:
            if not is_full(error):
                raise
            self._end_for_want_of_room()
            source.give_up()

    def _end_member(self, member: Any) -> None:
        try:
            member.close()
        except OSError as error:
            if not is_full(error):
                raise
            self._end_for_want_of_room()

    def _end_for_want_of_room(self) -> None:
        assert self._process is not None
        self._tell_full()
        if not self._stopping.is_set() and not self._disk_full:  # else the capture is over anyway
            self._disk_full = True
            process.end(self._process)

    def _tell_full(self) -> None:
        if not self._told_full:
            self._told_full = True
            why = f"no space left on the node while capturing on {self.interface}"
            self._context.emit("limit", limit="disk_full", why=why)

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def judged(self, name: str, counts: Dict[str, int]) -> Verdict:
        """The verdict of the pcap (or pattern of pcaps) of that name, by tcpdump's counts and by when it was listening."""
        window = self._context.window
        assert window is not None
        kept, outside = self.kept, self.outside
        verdict = self._context.verdict(
            Verdict(name, COMPLETE, [], {**counts, "in_window": kept, "outside_window": outside})
        )
        for what in ("kernel", "interface"):
            dropped = counts.get(f"dropped_by_{what}", 0)
            if dropped:
                of = counts.get("received_by_filter", 0) or kept + dropped
                verdict.lower(LOSSY, f"{dropped} of {of} packets dropped by {what}")
        if self._unread:
            verdict.lower(
                PARTIAL, f"tcpdump was still reading {DRAIN_LIMIT_S:.0f} s after the window, when it was ended"
            )
        if self._listening_at > window.t0:
            verdict.lower(PARTIAL, f"tcpdump was listening {self._listening_at - window.t0:.3f} s after T0")
        return verdict

    @property
    def kept(self) -> int:
        """Packets of the window that are in the archive."""
        return sum(c.packets_kept for c in self._cutters)

    @property
    def outside(self) -> int:
        """Packets that were read and aren't of the window."""
        return sum(c.packets_before + c.packets_after for c in self._cutters)

    def judge_end(self, verdict: Verdict, status: int, text: bytes) -> None:
        """That the capture ended before it was stopped, if it did."""
        if self._disk_full:
            verdict.lower(PARTIAL, "the node's disk is full")
            self.failures.append(f"{self.interface}: the node's disk is full")
        elif status != 0:
            why = why_ended(status, text)
            verdict.lower(PARTIAL, f"tcpdump ended early: {why}")
            self.failures.append(f"tcpdump on {self.interface} ended early: {why}")

    def judge_files(self, verdict: Verdict, counts: Dict[str, int], status: int, whole: bool) -> None:
        """What the files themselves show. `whole`: everything that tcpdump captured should be in them."""
        if self._error:
            verdict.lower(PARTIAL, self._error)
            self.failures.append(f"{self.interface}: {self._error}")
        if any(c.broken for c in self._cutters):
            verdict.lower(UNKNOWN, "tcpdump's file holds a record that can't be read")
        if whole and status == 0 and not self._error:
            missing = counts.get("captured", 0) - self.kept - self.outside
            if missing > 0:
                verdict.lower(PARTIAL, f"{missing} packets that tcpdump captured are not in its file")
        if not counts and status == 0:
            verdict.lower(UNKNOWN, "tcpdump said nothing of its losses")


def counts_of(text: bytes) -> Dict[str, int]:
    """The newest counts in tcpdump's stderr: captured, received_by_filter, dropped_by_kernel, dropped_by_interface."""
    return {COUNT_NAMES[what]: int(number) for number, what in COUNTS.findall(text)}


def read(path: Path, tail_bytes: int = 0) -> bytes:
    """A log, or the end of it."""
    try:
        with open(str(path), "rb") as file:
            if tail_bytes:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            return file.read()
    except FileNotFoundError:
        return b""


def size_of(path: Path) -> int:
    """Bytes; 0 for a file that isn't there any more."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def why_ended(status: int, text: bytes) -> str:
    """In words, by exit status and stderr."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}: {last_words(text)}"
