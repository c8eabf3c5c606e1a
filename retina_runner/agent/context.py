"""What a collector is given, and what it gives back: artefacts, gaps, verdicts. The session owns everything else.

A collector never opens a path of its own choosing, never starts a process but through the context, and never fails the
session: what can't be collected is a `Gap` with its reason, and the rest goes on.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from retina_runner.agent import process
from retina_runner.agent.artefact import Artefact, check_path
from retina_runner.agent.gaps import Gap as Gap
from retina_runner.agent.passing import is_full
from retina_runner.agent.records import dataclass, field

HELD_BYTES = 32 << 20
"""How much of what collectors write is kept in memory, for the archive, when the disk has no room for it."""
HELD_SMALL_BYTES = 64 << 10
"""A quarter of that is left to what is no larger than this: a few large outputs are not to cost every small one."""
COMPLETE, LOSSY, PARTIAL, UNKNOWN = "complete", "lossy", "partial", "unknown"
VERDICTS: Tuple[str, ...] = (COMPLETE, LOSSY, PARTIAL, UNKNOWN)
"""From best to worst: all of it; all of the window but with losses that are counted; a part of it; nobody can say."""


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of a whole from its parts'; `complete` for none."""
    return max(verdicts, key=VERDICTS.index, default=COMPLETE)


@dataclass
class Verdict:
    """Whether one artefact can be trusted. `counts` are whole numbers by name (`captured`, `dropped_by_kernel`, …)."""

    artefact: str
    verdict: str
    reasons: List[str] = field(default_factory=list)
    counts: Dict[str, int] = field(default_factory=dict)

    def lower(self, verdict: str, reason: str) -> None:
        """Make the verdict no better than `verdict`, and say why."""
        self.verdict = worst((self.verdict, verdict))
        if reason not in self.reasons:
            self.reasons.append(reason)

    @contextmanager
    def at_stake(self, what: str = "") -> Iterator[None]:
        """Lower it when that which it speaks of isn't finished: a collector that fails leaves nothing that claims to be whole."""
        try:
            yield
        except Exception as error:
            self.lower(PARTIAL, f"{what}: {said(error)}" if what else f"unfinished: {said(error)}")
            raise


@dataclass(frozen=True)
class Window:
    """T0 and its end on the node's own clock (Unix time, seconds), known once T0 is agreed."""

    t0: float
    duration_s: float

    @property
    def end(self) -> float:
        return self.t0 + self.duration_s


@dataclass(frozen=True)
class Short:
    """A member of which the archive has only `kept_bytes`; `count` is what is in these (Member.count), `why` says why."""

    path: str
    kept_bytes: int
    size_bytes: int
    count: int
    why: str


@dataclass
class Record:
    """Everything that the manifest says of a collection, gathered while it runs. Thread-safe by the context's lock."""

    commands: List[Dict[str, Any]] = field(default_factory=list)
    skipped: List[Dict[str, str]] = field(default_factory=list)
    verdicts: List[Verdict] = field(default_factory=list)
    collectors: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    packets: Dict[str, int] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)
    capabilities: List[Dict[str, Any]] = field(default_factory=list)
    programs: List[Dict[str, Any]] = field(default_factory=list)
    owners: Dict[str, str] = field(default_factory=dict)
    """Which collector (its id in the plan) an artefact of the archive is of."""
    held: Dict[str, bytes] = field(default_factory=dict)
    """Artefacts that the disk had no room for."""
    reserved: Dict[str, int] = field(default_factory=dict)
    """How many bytes of memory each of them has, also those that are being written."""
    full: bool = False
    """Whether that has been told."""

    def short(self, artefact: Short) -> None:
        """An artefact that isn't whole in the archive: a gap, and a verdict of it or of what it belongs to that says so."""
        owner = self.owners.get(artefact.path, "agent")
        self.skipped.append({"collector": owner, "what": artefact.path, "why": artefact.why})
        if artefact.path in self.packets:
            self.packets[artefact.path] = artefact.count
        mine = [v for v in self.verdicts if _covers(v.artefact, artefact.path)]
        if not mine:
            self.verdicts.append(Verdict(artefact.path, PARTIAL, [artefact.why]))
        for verdict in mine:
            verdict.lower(
                PARTIAL, artefact.why if verdict.artefact == artefact.path else f"{artefact.path}: {artefact.why}"
            )


def _covers(artefact: str, path: str) -> bool:
    """Whether a verdict of that artefact (a file, a folder, a pattern of names) speaks of this path."""
    return artefact == path or path.startswith(artefact + "/") or fnmatch.fnmatchcase(path, artefact)


class Context:
    """The node, as one collector sees it.

    `out` becomes the archive's content, path for path below its top folder; `raw` is scratch space that is thrown away.
    `emit(event, **fields)` writes to the session's event stream. `node_id` is the collector entry's own name in the
    plan (`tcpdump`, `tcpdump-2`, …). Known from the release on, when T0 is agreed: `window`, `base` (the archive's base
    name), `open_member(path)` (an archive member that grows while the window runs) and `intervals_ns()` (the stamps
    that lie in the window, clock steps so far included).
    """

    def __init__(self, node_id: str, options: Mapping[str, Any], out: Path, raw: Path, record: Record,
                 emit: Callable[..., None], lock: Optional[threading.RLock] = None):  # fmt: skip
        self.node_id, self.options = node_id, options
        self.out, self.raw = out, raw
        self.record, self.emit = record, emit
        self.window: Optional[Window] = None
        self.base = ""
        self.open_member: Optional[Callable[[str], Any]] = None
        self.intervals_ns: Optional[Callable[[], Tuple[Tuple[int, int], ...]]] = None
        self._lock = lock or threading.RLock()

    def arm(self, window: Window, base: str, open_member: Callable[[str], Any],
            intervals_ns: Callable[[], Tuple[Tuple[int, int], ...]]) -> None:  # fmt: skip
        """Give it what is known from the release on; `open_member` is the writer's. What is opened is this collector's."""

        def open_own(path: str) -> Any:
            self.own(path)
            return open_member(path)

        self.window, self.base, self.open_member, self.intervals_ns = window, base, open_own, intervals_ns

    def run(self, argv: Sequence[str], *, limit_s: float = 10.0, output_limit_bytes: int = process.OUTPUT_LIMIT_BYTES,
            stdin: bytes = b"", env: Optional[Mapping[str, str]] = None,
            keep: Optional[Callable[[bytes], None]] = None) -> process.Outcome:  # fmt: skip
        """Run a command to its end or limit and note it for the manifest. `keep` gets its stdout piece by piece instead of
        the outcome. Raises process.MissingTool, OSError."""
        outcome = process.run(
            argv, limit_s=limit_s, stdin=stdin, output_limit_bytes=output_limit_bytes, env=env, keep=keep
        )
        self.note_command(outcome)
        return outcome

    def note_command(self, outcome: process.Outcome) -> None:
        entry = {
            "collector": self.node_id, "argv": list(outcome.argv), "exit_status": outcome.exit_status,
            "start": utc(outcome.start), "duration_s": round(outcome.duration_s, 3),
            "timed_out": outcome.timed_out, "truncated": outcome.truncated,
        }  # fmt: skip
        with self._lock:
            self.record.commands.append(entry)

    def write(self, path: str, content: Union[bytes, str, Any]) -> None:
        """Put one artefact into the archive. `path` is relative, with `/`; anything but bytes and text becomes JSON.

        What a full disk has no room for waits in memory. Raises ValueError for a path that could leave the archive,
        OSError from the disk, ENOSPC only when HELD_BYTES are taken too; nothing of it is kept and the gap is noted then.
        """
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogateescape")
        elif not isinstance(content, (bytes, bytearray)):
            content = (json.dumps(content, indent=1, sort_keys=False) + "\n").encode()
        artefact = self._artefact(path)
        artefact.write(content)
        try:
            artefact.close()
        except OSError as error:
            artefact.discard()
            raise self._told(path, error, f"no space left on the node for {len(content)} B") from None

    @contextmanager
    def stream(self, path: str) -> Iterator[Artefact]:
        """Put one artefact into the archive as it comes; none of it is held in memory while the disk has room.

        Raises as `write`, when it is left; of an artefact that isn't whole then what came first is kept, and the gap is noted.
        """
        artefact = self._artefact(path)
        try:
            with artefact:
                yield artefact
        except OSError as error:
            raise self._told(
                path, error, f"no space left on the node: only its first {artefact.size_bytes} B are kept"
            ) from None

    def _artefact(self, path: str) -> Artefact:
        check_path(path)
        return Artefact(path, self.place, self.record.held, self._reserve)

    def _told(self, path: str, error: OSError, why: str) -> OSError:
        """The error to raise; of one that says that the disk is full the gap is noted."""
        if not is_full(error):
            return error
        self.skip(path, why, "free some space, or set limits.disk_free_bytes")
        return OSError(errno.ENOSPC, why)

    def _reserve(self, path: str, size_bytes: int) -> bool:
        """Set so much memory aside for that artefact, if there is so much for it. That the disk is full is told once."""
        with self._lock:
            first, reserved = not self.record.full, self.record.reserved
            taken = size_bytes + sum(size for other, size in reserved.items() if other != path)
            fits = taken <= HELD_BYTES - (0 if size_bytes <= HELD_SMALL_BYTES else HELD_BYTES // 4)
            if fits:
                reserved[path] = size_bytes
            self.record.full = self.record.full or size_bytes > 0
        if first and size_bytes:
            self.emit("limit", limit="disk_full", why="no space left on the node; small outputs are kept in memory")
        return fits

    def place(self, path: str) -> Path:
        """Where an artefact of this relative path is written; its folders are made. Raises ValueError, OSError."""
        check_path(path)
        self.own(path)
        target = self.out.joinpath(*path.split("/"))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return target

    def own(self, path: str) -> None:
        """Note that this artefact is this collector's."""
        with self._lock:
            self.record.owners[path] = self.node_id

    def skip(self, what: str, why: str, hint: str = "") -> None:
        """Note something that isn't collected, and why. It reaches the manifest and the report; it isn't a failure."""
        entry = {"collector": self.node_id, "what": what, "why": why}
        if hint:
            entry["hint"] = hint
        with self._lock:
            if entry not in self.record.skipped:
                self.record.skipped.append(entry)
        self.emit("skipped", collector=self.node_id, what=what, why=why, **({"hint": hint} if hint else {}))

    def note_packets(self, path: str, packets: int) -> None:
        """How many packets the pcap of this path holds; verification compares it with the file."""
        with self._lock:
            self.record.packets[path] = packets

    def note_capabilities(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What each hook of each metric plugin could do here: {plugin, hook, status, why, hint}, for the manifest."""
        with self._lock:
            self.record.capabilities += [{"collector": self.node_id, **row} for row in rows]

    def note_programs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What each BPF program cost this node: {program, run_count, run_time_ns, measured_share}, for the manifest."""
        with self._lock:
            self.record.programs += [{"collector": self.node_id, **row} for row in rows]

    def verdict(self, verdict: Verdict) -> Verdict:
        """Register the trust verdict of one artefact; it may still be lowered until the session ends."""
        with self._lock:
            self.record.verdicts.append(verdict)
        return verdict


def said(error: Exception) -> str:
    """An error for people; of one that isn't known as such, its kind too."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if type(error) in (RuntimeError, Gap) else f"{type(error).__name__}: {error}".removesuffix(": ")


def utc(when: Optional[float] = None) -> str:
    """ISO 8601 in UTC with microseconds and `Z`; `when` is Unix time in seconds, default now."""
    when = time.time() if when is None else when
    seconds, fraction = divmod(round(when * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:06d}Z"


def stamp_of(reference: float) -> str:
    """The name of an event at that instant, Unix time on the runner's clock: as in archives' names."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(reference))
