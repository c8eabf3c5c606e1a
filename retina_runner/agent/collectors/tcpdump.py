"""tcpdump: the packets of the window, one process and one pcap an interface, every loss counted.

What was measured with tcpdump 4.99 and is kept to here:

* A stopped tcpdump forgets the kernel ring's unfinished block, up to a second of packets, without counting them. So it
  runs past the window's end by `OVERRUN_S`, and the pcap is cut by time stamp.
* `--immediate-mode` with a large snaplen leaves the ring room for some eight packets; it is never used. `-B` is large.
* Distribution builds drop to user `tcpdump` and then can't rotate in a private directory: `-Z root`. AppArmor lets
  them write `*.pcap` and `*.pcap<digits>` only.
* Several `-i` capture on the last interface only: one process each.
* `-C` with `-W` rewrites its files in place. A ring here is `-C` alone, whose names are unique, pruned by us.
* libpcap's optimiser (1.10.3) miscompiles: of `(net fd00::/63) and (dst net fd00::/63)` it makes "from there and to
  there". The filter runs as it was generated, `-O`, unless the kernel can't take a program of that length.
* SIGUSR1 makes tcpdump print its counts while it runs. SIGUSR2 would flush its file, but from inside the signal
  handler, and into a file that `-C` may have closed: a ring that is frozen while it runs is written with `-U` instead.
"""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from retina_runner.agent import kernel, pcap, process
from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, LOSSY, PARTIAL, UNKNOWN, Context, Gap, Verdict
from retina_runner.agent.passing import Passing, is_full
from retina_runner.agent.pcap import Cutter

READY_LIMIT_S = 20.0
COMPILE_LIMIT_S = 30.0
POLL_S = 0.1
STATISTICS_EVERY_S = 2.0
CHUNK_BYTES = 1 << 20
BACKLOG_BYTES = 32 << 20
"""With more than this still to be compressed, compression makes way (stored blocks) rather than delay the archive."""
RUNAWAY_ROOM_BYTES = 64 << 20
RING_STEP_BYTES = 1_000_000
"""tcpdump(8): the units of -C are millions of bytes."""
COUNTS_TAIL_BYTES = 2000
"""The newest counts are in the log's end; after hours of asking every two seconds the log is a megabyte."""
COUNTS_LIMIT_S = 3.0
SETTLE_LIMIT_S = 15.0
MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS, linux/bpf_common.h: with a longer program libpcap filters in user space, where it would cost packets."""
LISTENING = re.compile(rb"listening on ")
COUNTS = re.compile(rb"(\d+) packets? (captured|received by filter|dropped by kernel|dropped by interface)")
COUNT_NAMES = {
    b"captured": "captured",
    b"received by filter": "received_by_filter",
    b"dropped by kernel": "dropped_by_kernel",
    b"dropped by interface": "dropped_by_interface",
}


def argv(
    options: Mapping[str, Any], interface: str, target: str, *, as_root: bool = True, optimise: bool = False
) -> List[str]:
    """The command for one interface. Pure, so that a plan can show exactly what will run.

    `options` are normalised (bytes); `expression` is the built filter, empty for everything.
    """
    command = ["ip", "netns", "exec", str(options["netns"])] if options.get("netns") else []
    command += [
        "tcpdump",
        "-i",
        interface,
        "-n",
        "-s",
        str(options["snaplen"]),
        "-B",
        str(options["buffer_size"] // 1024),
    ]
    if as_root:
        command += ["-Z", "root"]
    if not options["promiscuous"]:
        command.append("-p")
    command += ["-w", target]
    ring = options.get("ring")
    if ring:
        command += ["-C", str(ring["file_size"] // RING_STEP_BYTES)]
    if options.get("hold_s"):
        command.append("-U")
    return command + (["-O"] if options.get("expression") and not optimise else []) + _expression(options)


def _expression(options: Mapping[str, Any]) -> List[str]:
    # After `--`, so that no text, whatever it begins with, is read as an option.
    return ["--", options["expression"]] if options.get("expression") else []


def worst_case_bytes(options: Mapping[str, Any], interfaces: int) -> int:
    """The most that this entry can hold on the node's disk: the pcap and its compressed copy, for each interface."""
    ring = options.get("ring")
    one = (ring["files"] + 1) * ring["file_size"] if ring else options["max_size"]
    # A ring that is being frozen may grow to twice its size, beside the archive that is made of it.
    return int((3 if options.get("hold_s") else 2) * one * interfaces)


def interfaces_of(options: Mapping[str, Any]) -> List[str]:
    """The interfaces that the names and globs stand for on this node, in the given order, each once. Raises Gap."""
    netns = options.get("netns")
    if netns:
        listing = process.run(["ip", "netns", "exec", str(netns), "ls", "/sys/class/net"])
        if not listing.ok:
            raise Gap(f"network namespace {netns}", listing.why(), "ip netns list")
        present = listing.stdout.decode("utf-8", "replace").split()
    else:
        present = kernel.interfaces()
    chosen: List[str] = []
    for wanted in options["interfaces"]:
        found = ["any"] if wanted == "any" else fnmatch.filter(present, wanted)
        if not found:
            raise Gap(f"interface {wanted}", "no such interface on this node", "there are " + ", ".join(present))
        chosen += [name for name in found if name not in chosen]
    return chosen


def counts_of(text: bytes) -> Dict[str, int]:
    """The newest counts in tcpdump's stderr: captured, received_by_filter, dropped_by_kernel, dropped_by_interface."""
    return {COUNT_NAMES[what]: int(number) for number, what in COUNTS.findall(text)}


class Tcpdump(Collector):
    """All interfaces of one entry of the plan."""

    OVERRUN_S = 1.2

    def __init__(self, context: Context):
        super().__init__(context)
        self._taps: List[_Tap] = []
        self._interfaces: List[str] = []
        self._optimise: Dict[str, bool] = {}

    def prepare(self) -> None:
        if process.find("tcpdump") is None:
            raise Gap("tcpdump", "not installed", "apt-get install tcpdump, or dnf install tcpdump")
        self._interfaces = interfaces_of(self.context.options)
        self._optimise = {name: _too_long(self.context.options, name) for name in self._interfaces}

    def begin(self) -> None:
        """Start listening. Before T0 is known this is the rehearsal: each tcpdump starts for real, and is stopped again."""
        self.abandon()
        try:
            for interface in self._interfaces:
                tap = _Tap(self.context, interface, self._suffix(interface), self._optimise[interface])
                self._taps.append(tap)
                tap.start()
            for tap in self._taps:
                tap.wait_until_listening()
        except Exception:
            self.abandon()
            raise
        if self.context.window is None:
            self.abandon()
        else:
            for tap in self._taps:
                tap.follow()

    def _suffix(self, interface: str) -> str:
        """What tells this entry's pcaps apart: nothing for a single one, as in Retina's own names."""
        number = self.context.node_id[len("tcpdump") :]
        if len(self._interfaces) > 1:
            number += "-" + re.sub(r"[^A-Za-z0-9_.-]", "_", interface)
        return number

    def protect(self, on: bool) -> None:
        for tap in self._taps:
            tap.protected = on

    def record(self, context: Context) -> None:
        for tap in self._taps:
            tap.record(context)

    def progress(self) -> Dict[str, int]:
        total: Dict[str, int] = {"bytes": 0, "packets": 0, "dropped": 0}
        for tap in self._taps:
            for name, number in tap.progress().items():
                total[name] += number
        return total

    def finish(self) -> None:
        for tap in self._taps:
            tap.stop()
        reasons: List[str] = []
        for tap in self._taps:
            tap.finish()
            reasons += tap.failures
        if reasons:
            raise RuntimeError("; ".join(reasons))

    def abandon(self) -> None:
        for tap in self._taps:
            tap.abandon()
        self._taps = []


class _Tap:
    """One tcpdump on one interface, and the thread that reads its file while it grows."""

    SETTLED_S = 1.5
    """tcpdump(8) asks libpcap for blocks at least every second."""

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
        self._kept_files: List[Path] = []
        self._evicted = 0
        self.protected = False
        self._pruning = threading.Lock()
        self._appeared: Dict[str, float] = {}
        self._evicted_until = 0.0
        self._counted: Deque[Tuple[float, Dict[str, int]]] = deque()
        self._error = ""
        self._full = self._disk_full = self._told_full = self._was_full = False
        self._cutters: List[Cutter] = []
        self.failures: List[str] = []
        self.verdict: Optional[Verdict] = None

    # -- life of the process ---------------------------------------------------------------------------------------

    def start(self) -> None:
        ring = self._options.get("ring")
        bound = ring["file_size"] if ring else self._options["max_size"]
        command = self._argv
        if process.find("prlimit"):
            # A backstop for an agent that can't keep up: the kernel itself refuses to let the file grow further.
            size = 2 * bound + RUNAWAY_ROOM_BYTES
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
                raise RuntimeError(f"tcpdump on {self.interface} ended at once: {_last_words(text)}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"tcpdump on {self.interface} isn't listening after {READY_LIMIT_S:.0f} s: {_last_words(text)}"
                )
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # The overrun has passed: what the kernel still holds is younger than the window.
            process.end(self._process, grace_s=5.0)
        self._stopping.set()

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

    def _files(self) -> List[Path]:
        """The files that tcpdump has written, oldest first: tap.pcap, tap.pcap1, tap.pcap2, …"""
        found = []
        for path in self._context.raw.glob(self._file.name + "*"):
            number = path.name[len(self._file.name) :]
            if number.isdigit() or not number:
                found.append((int(number or 0), path))
        return [path for _, path in sorted(found)]

    # -- while the window runs ---------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Begin to read what tcpdump writes. Called once T0 is known."""
        work = self._prune_until_stopped if self._options.get("ring") else self._stream_until_stopped
        self._thread = threading.Thread(target=self._guard, args=(work,), name=f"follow-{self.interface}", daemon=True)
        self._thread.start()

    def _guard(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            self._context.emit("warning", why=f"tcpdump on {self.interface}: {self._error}")

    def _member_name(self, number: int = 0) -> str:
        return f"{self._context.base}{self._suffix}" + (f"-{number:05d}" if number else "") + ".pcap"

    def _stream_until_stopped(self) -> None:
        assert self._context.open_member is not None
        assert self._process is not None
        cutter = self._new_cutter(self._options["max_size"])
        member = self._context.open_member(self._member_name())
        source = Passing(self._file)
        try:
            while True:
                over = self._stopping.is_set() or self._process.poll() is not None
                chunk = source.read(CHUNK_BYTES)
                if not chunk and over:
                    break
                if not chunk:
                    self._stopping.wait(POLL_S)
                    continue
                self._pass_on(cutter, member, chunk, source)
                if cutter.full and not self._full:
                    self._full = True
                    self._note_full(cutter)
                    process.end(self._process)
        finally:
            source.close()
        self._end_member(member)
        # Everything in it is in the archive now; the room may be needed to finish it.
        self._file.unlink(missing_ok=True)

    def _pass_on(self, cutter: Cutter, member: Any, chunk: bytes, source: Passing) -> None:
        assert self._context.intervals_ns is not None
        # Sampled after the read: whatever clock stamped these packets, its step is known by now.
        cutter.intervals = self._context.intervals_ns()
        behind = source.behind_bytes() > BACKLOG_BYTES
        pieces = cutter.feed(chunk)
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._write(member, data, cutter, source, behind)

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

    def _new_cutter(self, limit_bytes: Optional[int]) -> Cutter:
        assert self._context.intervals_ns is not None
        cutter = Cutter(self._context.intervals_ns(), limit_bytes=limit_bytes)
        self._cutters.append(cutter)
        return cutter

    def _note_full(self, cutter: Cutter) -> None:
        self._context.emit(
            "limit",
            limit="max_size",
            why=f"the pcap of {self.interface} has reached {self._options['max_size']} B after {cutter.packets_kept} packets",
        )

    def _prune_until_stopped(self) -> None:
        while not self._stopping.wait(POLL_S):
            self._look_for_room()
            self._prune()
        self._look_for_room()
        self._prune()

    def _look_for_room(self) -> None:
        """Of a file that it can't write tcpdump says nothing, and goes on with the next one."""
        disk = os.statvfs(str(self._context.raw))
        if not self._was_full and not (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail):
            self._was_full = True
            self._tell_full()

    def _prune(self) -> None:
        """Forget the oldest files: those beyond the ring's number, and of a ring that is held those beyond its seconds."""
        keep, hold_s, now = self._options["ring"]["files"], self._options.get("hold_s"), time.monotonic()
        with self._pruning:
            files = self._files()
            for path in files:
                self._appeared.setdefault(path.name, now)
            most = 2 * keep if self.protected else keep
            while len(files) > 1:
                # A file's last packet came before the next file's first. By the monotonic clock: steps age nothing.
                aged = hold_s and not self.protected and self._appeared[files[1].name] < now - hold_s
                if len(files) <= most and not aged:
                    break
                self._evicted_until = max(self._evicted_until, files[0].stat().st_mtime)
                self._appeared.pop(files[0].name, None)
                files.pop(0).unlink()
                self._evicted += 1

    def progress(self) -> Dict[str, int]:
        now = time.monotonic()
        if (
            now - self._statistics_at >= STATISTICS_EVERY_S
            and self._process is not None
            and self._process.poll() is None
        ):
            self._statistics_at = now
            try:
                self._process.send_signal(signal.SIGUSR1)
            except ProcessLookupError:
                pass
        counts = counts_of(_read(self._log, COUNTS_TAIL_BYTES))
        dropped = counts.get("dropped_by_kernel", 0) + counts.get("dropped_by_interface", 0)
        if self._options.get("hold_s"):
            self._counted.append((now, counts))
            while len(self._counted) > 1 and self._counted[1][0] < now - 2 * self._options["hold_s"]:
                self._counted.popleft()
        if self._options.get("ring"):
            return {
                "bytes": sum(_size(p) for p in self._files()),
                "packets": counts.get("captured", 0),
                "dropped": dropped,
            }
        return {
            "bytes": sum(c.bytes_kept for c in self._cutters),
            "packets": sum(c.packets_kept for c in self._cutters),
            "dropped": dropped,
        }

    # -- a part of the ring, while it goes on ------------------------------------------------------------------------

    def record(self, context: Context) -> None:
        """One pcap of the packets of `context.window`, into an archive of its own, with a verdict of its own."""
        assert context.intervals_ns is not None
        assert context.open_member is not None
        name = f"{context.base}{self._suffix}.pcap"
        unwritten, counts = self._settle()
        log = ("tcpdump" + self._suffix if self._suffix.startswith("-") else "tcpdump") + ".log"
        context.write(f"logs/{log}", b"argv: " + repr(self._argv).encode() + b"\n" + _read(self._log))
        cutters: List[Cutter] = []
        member = context.open_member(name)
        header = b""
        with self._pruning:
            try:
                for path in self._files():
                    cutters.append(Cutter(context.intervals_ns()))
                    header = _copy_cut(path, cutters[-1], member, header)
                if not header:
                    member.write(pcap.header(snaplen=self._options["snaplen"]))
            finally:
                member.close()
        kept = sum(c.packets_kept for c in cutters)
        context.note_packets(name, kept)
        verdict = context.verdict(Verdict(name, COMPLETE, [], {"in_window": kept}))
        self._judge_record(context, verdict, cutters, counts, unwritten)

    def _settle(self) -> Tuple[int, Dict[str, int]]:
        """Wait until everything that the kernel has taken by now is in the ring's files; (packets that aren't, counts).

        tcpdump's counts say it: what it captured then is what the kernel had received and not dropped. A difference
        that stays the same while tcpdump answers, for longer than the kernel keeps an unfinished block, isn't waiting.
        """
        begun = time.monotonic()
        first = self._ask_counts()
        wanted = first.get("received_by_filter", 0) - first.get("dropped_by_kernel", 0)
        counts, moved_at = first, begun
        while counts and counts.get("captured", 0) < wanted:
            now = time.monotonic()
            if now - begun > SETTLE_LIMIT_S:
                return wanted - counts.get("captured", 0), counts
            if now - moved_at > self.SETTLED_S:
                break
            self._stopping.wait(POLL_S)
            newer = self._ask_counts()
            if newer.get("captured") != counts.get("captured"):
                moved_at = time.monotonic()
            counts = newer or counts
        return 0, counts

    def _ask_counts(self) -> Dict[str, int]:
        """tcpdump's counts from after this call; the newest that are known, if it doesn't say."""
        before = _size(self._log)
        deadline = time.monotonic() + COUNTS_LIMIT_S
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGUSR1)
                while time.monotonic() < deadline and self._process.poll() is None:
                    said = counts_of(_read(self._log)[before:])
                    if "dropped_by_kernel" in said:
                        return said
                    time.sleep(0.02)
        except ProcessLookupError:
            pass
        return counts_of(_read(self._log, COUNTS_TAIL_BYTES))

    def _judge_record(self, context: Context, verdict: Verdict, cutters: List[Cutter], counts: Dict[str, int],
                      unwritten: int) -> None:  # fmt: skip
        window = context.window
        assert window is not None
        start = time.monotonic() - (time.time() - window.t0)
        before = next((c for at, c in reversed(self._counted) if at <= start), {})
        received = counts.get("received_by_filter", 0) - before.get("received_by_filter", 0)
        for what in ("kernel", "interface"):
            dropped = counts.get(f"dropped_by_{what}", 0) - before.get(f"dropped_by_{what}", 0)
            verdict.counts[f"dropped_by_{what}"] = max(0, dropped)
            if dropped > 0:
                verdict.lower(LOSSY, f"{dropped} of {received} packets dropped by {what}, in the window or just before")
        missing_from = max(self._listening_at, self._evicted_until)
        if missing_from >= window.end:
            verdict.lower(PARTIAL, "the ring held nothing of this window any more")
        elif missing_from > window.t0:
            why = (
                "tcpdump wasn't listening yet" if self._listening_at >= self._evicted_until else "the ring is too small"
            )
            verdict.lower(
                PARTIAL, f"the first {missing_from - window.t0:.1f} of {window.duration_s:.1f} s are missing: {why}"
            )
        if unwritten:
            verdict.lower(PARTIAL, f"tcpdump had {unwritten} packets still to write")
        if self._process is None or self._process.poll() is not None:
            verdict.lower(PARTIAL, "tcpdump has ended")
        if self._error:
            verdict.lower(PARTIAL, self._error)
        if self._was_full:
            verdict.lower(PARTIAL, "the node's disk was full: packets may be missing")
        if any(c.broken for c in cutters):
            verdict.lower(UNKNOWN, "tcpdump's file holds a record that can't be read")

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        assert self._process is not None
        if self._thread is not None:
            self._thread.join()
        ring = self._options.get("ring")
        if self._options.get("hold_s"):
            ring = None
        if ring and not self._error:
            try:
                self._archive_ring()
            except Exception as error:
                self._error = f"{type(error).__name__}: {error}"
        text = _read(self._log)
        status = self._process.returncode
        self._context.note_command(
            process.Outcome(
                argv=tuple(self._argv), exit_status=status, stdout=b"", stderr=text, start=self._started,
                duration_s=time.monotonic() - self._begun,
            )
        )  # fmt: skip
        log = ("tcpdump" + self._suffix if self._suffix.startswith("-") else "tcpdump") + ".log"
        self._context.write(f"logs/{log}", b"argv: " + repr(self._argv).encode() + b"\n" + text)
        if self._options.get("hold_s"):
            self._judge_watch(f"logs/{log}", status, text)
        else:
            self._judge(counts_of(text), status, text, ring)

    def _judge_watch(self, name: str, status: int, text: bytes) -> None:
        """Of a ring that is for freezing nothing is left at the end but the log, and whether it ran all the time."""
        verdict = self._context.verdict(Verdict(name, COMPLETE, [], counts_of(text[-COUNTS_TAIL_BYTES:])))
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}: {_last_words(text)}"
        for trouble in [f"tcpdump ended early: {why}"] if status else []:
            verdict.lower(PARTIAL, trouble)
            self.failures.append(f"{self.interface}: {trouble}")
        if self._was_full:
            verdict.lower(PARTIAL, "the node's disk was full")
            self.failures.append(f"{self.interface}: the node's disk was full, packets are missing")
        if self._error:
            verdict.lower(PARTIAL, self._error)
            self.failures.append(f"{self.interface}: {self._error}")

    def _archive_ring(self) -> None:
        assert self._context.open_member is not None
        first = self._evicted + 1
        for number, path in enumerate(self._files(), start=first):
            cutter = self._new_cutter(None)
            member = self._context.open_member(self._member_name(number))
            source = Passing(path)
            try:
                while True:
                    chunk = source.read(CHUNK_BYTES)
                    if not chunk:
                        break
                    for piece in cutter.feed(chunk):
                        self._write(member, piece, cutter, source)
            finally:
                source.close()
                self._end_member(member)
            path.unlink(missing_ok=True)
            self._context.note_packets(self._member_name(number), cutter.packets_kept)

    def _judge(self, counts: Dict[str, int], status: int, text: bytes, ring: Any) -> None:
        window = self._context.window
        assert window is not None
        name = self._member_name() if not ring else f"{self._context.base}{self._suffix}-*.pcap"
        if not ring:
            self._context.note_packets(name, sum(c.packets_kept for c in self._cutters))
        kept = sum(c.packets_kept for c in self._cutters)
        outside = sum(c.packets_before + c.packets_after for c in self._cutters)
        verdict = self._context.verdict(
            Verdict(name, COMPLETE, [], {**counts, "in_window": kept, "outside_window": outside})
        )
        self.verdict = verdict
        for what in ("kernel", "interface"):
            dropped = counts.get(f"dropped_by_{what}", 0)
            if dropped:
                of = counts.get("received_by_filter", 0) or kept + dropped
                verdict.lower(LOSSY, f"{dropped} of {of} packets dropped by {what}")
        if self._listening_at > window.t0:
            verdict.lower(PARTIAL, f"tcpdump was listening {self._listening_at - window.t0:.3f} s after T0")
        if self._full:
            verdict.lower(PARTIAL, f"stopped at max_size ({self._options['max_size']} B)")
        elif self._disk_full:
            verdict.lower(PARTIAL, "the node's disk is full")
            self.failures.append(f"{self.interface}: the node's disk is full")
        elif status != 0:
            why = f"killed by signal {-status}" if status < 0 else f"exit status {status}: {_last_words(text)}"
            verdict.lower(PARTIAL, f"tcpdump ended early: {why}")
            self.failures.append(f"tcpdump on {self.interface} ended early: {why}")
        torn = sum(1 for c in self._cutters if c.leftover_bytes and c.broken is None)
        if ring and (self._was_full or torn) and not self.failures:
            verdict.lower(PARTIAL, "the node's disk was full: packets are missing")
            self.failures.append(f"{self.interface}: the node's disk was full, packets are missing")
        if self._evicted:
            verdict.counts["files_evicted"] = self._evicted
            verdict.lower(
                PARTIAL, f"the ring kept the last {len(self._cutters)} of {self._evicted + len(self._cutters)} files"
            )
        if self._error:
            verdict.lower(PARTIAL, self._error)
            self.failures.append(f"{self.interface}: {self._error}")
        if any(c.broken for c in self._cutters):
            verdict.lower(UNKNOWN, "tcpdump's file holds a record that can't be read")
        if not self._full and not self._evicted and status == 0 and not self._error:
            missing = counts.get("captured", 0) - kept - outside
            if missing > 0:
                verdict.lower(PARTIAL, f"{missing} packets that tcpdump captured are not in its file")
        if not counts and status == 0:
            verdict.lower(UNKNOWN, "tcpdump said nothing of its losses")


def _copy_cut(path: Path, cutter: Cutter, member: Any, header: bytes) -> bytes:
    """Append what the cutter lets through of one file of a ring, its header only to an empty member; the header."""
    with open(str(path), "rb", buffering=0) as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return header
            fresh = not cutter.bytes_kept
            for piece in cutter.feed(chunk):
                if not fresh or not header:
                    member.write(piece)
                if fresh:
                    header, fresh = piece, False


def _read(path: Path, tail_bytes: int = 0) -> bytes:
    """A log, or the end of it."""
    try:
        with open(str(path), "rb") as file:
            if tail_bytes:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            return file.read()
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_words(text: bytes) -> str:
    lines = [
        line for line in text.decode("utf-8", "replace").splitlines() if line.strip() and "listening on" not in line
    ]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def problems(options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """(what makes the plan impossible here, what will be a gap): tool, interfaces, rights, and the filter as libpcap reads it."""
    if process.find("tcpdump") is None:
        return [], [Gap("tcpdump", "not installed", "apt-get install tcpdump, or dnf install tcpdump")]
    try:
        interfaces = interfaces_of(options)
    except Gap as gap:
        return [gap], []
    fatal: List[Gap] = []
    for interface in interfaces:
        outcome = process.run(compile_argv(options, interface), limit_s=COMPILE_LIMIT_S)
        if not outcome.ok:
            why = _last_words(outcome.stderr).replace("tcpdump: ", "", 1) if not outcome.timed_out else outcome.why()
            what = (
                "filter"
                if "syntax error" in why or "expression" in why or "unknown" in why
                else f"capture on {interface}"
            )
            hint = "run as root, or give tcpdump the capability cap_net_raw" if "permi" in why.lower() else ""
            fatal.append(Gap(what, why, hint))
            break
    return fatal, []


def compile_argv(options: Mapping[str, Any], interface: str, optimise: bool = True) -> Sequence[str]:
    """Compile the filter for this interface's own link type and print the program; nothing is captured.

    The optimiser also finds out that a filter can never match.
    """
    command = ["ip", "netns", "exec", str(options["netns"])] if options.get("netns") else []
    flags = ["-d"] if optimise else ["-d", "-O"]
    return [*command, "tcpdump", *flags, "-i", interface, "-s", str(options["snaplen"]), *_expression(options)]


def _too_long(options: Mapping[str, Any], interface: str) -> bool:
    """Whether the filter as generated is more than the kernel takes, so that only an optimised one can run there."""
    if not options.get("expression"):
        return False
    program = process.run(compile_argv(options, interface, optimise=False), limit_s=COMPILE_LIMIT_S)
    return program.ok and len(program.stdout.splitlines()) > MOST_INSTRUCTIONS
