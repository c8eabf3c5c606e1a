"""Where each finished archive goes: straight from its node where a grant allows it, through the runner otherwise.

`via: auto` lets the node store what is large and isn't on this machine anyway, where it gets through to the store at that
moment. What a node can't store, the runner does. Every decision, its reason, and every result is an event.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina_runner.executors import LinkRefused
from retina_runner.secrets import redact
from retina_runner.units import format_size
from retina_runner.uploads import SINGLE_MOST_BYTES, Forgotten, NotStored, Parcel, Target
from retina_runner.uploads.opening import open_target

GRANT_SLACK_S = 600.0
LEAST_RATE_BYTES_S = 500_000
"""What a node is trusted to send at least: how long a grant has to live for an archive of some size."""
GRANTS_MOST = 3
REACH_LIMIT_S = 20.0
"""How long a node may take to say which stores it reaches; its own handshakes give up after 5 s."""
Call = Callable[..., dict[str, Any]]
Event = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One target of the runbook: `target` is None for `host_path`, whose options the node reads."""

    kind: str
    options: Mapping[str, Any]
    target: Target | None

    def describe(self) -> str:
        """Tells the places of a run apart: two prefixes of one store are two."""
        if self.target is not None:
            prefix = str(self.options.get("prefix") or "")
            return self.target.describe() + (f", prefix {prefix}" if prefix else "")
        return f"{self.options['base']}/{self.options['path']} on the node"

    def plan(self) -> str:
        """Who will store here, for people, before a run. Touches nothing."""
        via = self.target.via if self.target is not None else "node"
        by = {
            "runner": "the runner", "node": "its node" + (", or else the runner" if self.target is not None else ""),
            "auto": f"its node above {format_size(SINGLE_MOST_BYTES)} where that reaches it, the runner otherwise",
        }  # fmt: skip
        return f"{self.describe()}, by {by[via]}"


def open_places(uploads: Sequence[Mapping[str, Any]]) -> tuple[Place, ...]:
    """Targets of `{"kind": …, "options": …}`, as runbooks and a run's record have them."""
    return tuple(Place(u["kind"], u["options"], open_target(u["kind"], u["options"])) for u in uploads)


class Delivery:
    """All targets of one run. Used by many threads; each node's archive by one at a time."""

    def __init__(self, places: Sequence[Place], run: str, keep: str = "always"):
        self.places, self._run, self.keep = tuple(places), run, keep
        self._lock = threading.Lock()
        self._by_node: dict[str, dict[int, str]] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        self._parcels: list[tuple[Target, Parcel]] = []

    def preflight(self, needed_s: float) -> None:
        """Raise NotStored for the first target that can't work; `needed_s` is how long the run may take."""
        for place in self.places:
            if place.target is not None:
                try:
                    place.target.preflight(needed_s)
                except NotStored as why:
                    raise NotStored(f"upload to {place.describe()} can't work: {why}") from None

    def reach(self, local: bool, call: Call) -> list[dict[str, Any]]:
        """Which stores, of those that nodes may store at, a node gets through to now, and where it could keep archives itself:
        `target`, `ok` and `why` of each.

        Raises LinkLost. Of stores nothing is asked of a node that is this machine: the pre-flight has been there.
        """
        asked = [] if local else [(p, where) for p in self.places if (where := _place(p)) is not None]
        shelves = [p for p in self.places if p.target is None]
        answers = _reached([where for _, where in asked], call, [dict(p.options) for p in shelves])
        return [
            {"target": place.describe(), **answer}
            for place, answer in zip([*(p for p, _ in asked), *shelves], answers, strict=True)
        ]

    def refused(self, reached: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
        """What keeps a node that has said this from being asked for archives; a store that it doesn't reach is the runner's."""
        shelves = {p.describe() for p in self.places if p.target is None}
        for answer in reached:
            if not answer["ok"] and answer["target"] in shelves:
                return {
                    "what": "upload host_path",
                    "why": answer["why"],
                    "hint": "name another base, or make this one writable",
                }
        return None

    # -- from the node ---------------------------------------------------------------------------------------------------

    def from_node(
        self, identifier: str, node: str, local: bool, directory: str, archive: Mapping[str, Any], call: Call
    ) -> Iterator[Event]:
        """What the node itself keeps or stores, by the agent's verbs through `call`. Raises what `call` raises."""
        parcel = Parcel(self._run, node, Path(str(archive["name"])), str(archive["sha256"]), int(archive["size_bytes"]))
        done: dict[int, str] = {}
        for number, place in enumerate(self.places):
            told = {"event": "upload", "target": place.describe(), "via": "node"}
            if place.target is None:
                asked = {**place.options, "sha256": parcel.sha256}
                answer = call(
                    "keep", directory, "--name", parcel.path.name, stdin=json.dumps(asked).encode(), limit_s=600.0
                )
                if answer.get("ok"):
                    done[number] = str(answer["location"])
                    yield {**told, "state": "stored", "location": done[number]}
                else:
                    done[number] = ""
                    yield {**told, "state": "failed", "why": str(answer.get("why"))}
                continue
            by_node, reason = _way(place, parcel.size_bytes, local, call)
            with self._lock:
                self._reasons[identifier, number] = reason
            if by_node:
                try:
                    done[number] = self._granted(place.target, parcel, directory, call)
                    yield {**told, "state": "stored", "location": done[number], "chosen": reason}
                    with self._lock:
                        self._parcels.append((place.target, parcel))
                except (NotStored, LinkRefused) as why:
                    with self._lock:
                        self._reasons[identifier, number] = "its node couldn't"
                    yield {
                        "event": "warning",
                        "why": f"the node can't store at {place.describe()}, the runner does: {why}",
                    }
        with self._lock:
            self._by_node[identifier] = done

    def _granted(self, target: Target, parcel: Parcel, directory: str, call: Call) -> str:
        """Let the node store it, with as many grants as it takes; the location. Raises NotStored."""
        life_s = GRANT_SLACK_S + parcel.size_bytes / LEAST_RATE_BYTES_S
        afresh = False
        for last in (False,) * (GRANTS_MOST - 1) + (True,):
            grant = target.grant(parcel, life_s)
            if grant is None:
                raise NotStored("this credential can't be narrowed to one archive, and isn't given to nodes")
            document = {**grant.document, **({"afresh": True} if afresh else {})}
            answer = call(
                "upload", directory, "--name", parcel.path.name, "--deadline", str(life_s - 60),
                stdin=json.dumps(document).encode(), limit_s=life_s,
            )  # fmt: skip
            if answer["state"] == "expired" and not last:
                continue
            if not answer["ok"]:
                raise NotStored(redact(f"{answer['state']}: {answer['why']}"))
            try:
                return target.confirm(parcel, answer)
            except Forgotten:  # parts that it had confirmed: all of them once more
                if afresh or last:
                    raise
                afresh = True
        raise AssertionError("the last grant returns or raises")

    def note(self, identifier: str, node: str, archive: Mapping[str, Any], manifest: bytes) -> str:
        """Put the manifest of an archive that its node has stored beside it, everywhere; why not, or nothing."""
        parcel = Parcel(self._run, node, Path(str(archive["name"])), str(archive["sha256"]), int(archive["size_bytes"]))
        for number, place in enumerate(self.places):
            if place.target is not None and self._by_node[identifier].get(number):
                try:
                    place.target.note(parcel, "manifest.json", manifest)
                except NotStored as why:
                    return f"its manifest isn't at {place.describe()}: {why}"
        return ""

    def begin_with(self, identifier: str, parcel: Parcel, stored: Collection[str]) -> None:
        """Where an archive is stored already, by `describe` of its places: an earlier runner's work."""
        there = {n: p for n, p in enumerate(self.places) if p.describe() in stored}
        self._by_node[identifier] = {n: p.describe() for n, p in there.items()}
        with self._lock:
            self._parcels += [(p.target, parcel) for p in there.values() if p.target is not None]

    # -- from here -------------------------------------------------------------------------------------------------------

    def wanted_here(self, identifier: str) -> bool:
        """Whether the archive has to come to the runner."""
        done = self._by_node.get(identifier, {})
        all_stored = bool(self.places) and all(done.get(n) for n in range(len(self.places)))
        return not (all_stored and self.keep == "never")

    def location(self, identifier: str) -> str:
        """Where the node has stored its archive, of one that isn't fetched."""
        return next(v for v in self._by_node[identifier].values() if v)

    def store(self, identifier: str, node: str, path: Path, sha256: str, manifest: bytes = b"") -> Iterator[Event]:
        """What the runner stores; the copy here goes when that is wanted, and every target has confirmed."""
        parcel = Parcel(self._run, node, path, sha256, path.stat().st_size)
        done = dict(self._by_node.get(identifier, {}))
        whole = True
        for number, place in enumerate(self.places):
            if place.target is None or (number in done and not (done[number] and manifest)):
                continue
            told = {"event": "upload", "target": place.describe(), "via": "runner"}
            reason = self._reasons.get((identifier, number))
            told |= {"chosen": reason} if reason else {}
            try:
                if number in done:  # the node's work, or an earlier runner's: what lies beside it is what is left to do
                    with self._lock:
                        self._parcels.append((place.target, parcel))
                    place.target.note(parcel, "manifest.json", manifest)
                    continue
                done[number] = place.target.store(parcel)
                with self._lock:
                    self._parcels.append((place.target, parcel))
                yield {**told, "state": "stored", "location": done[number]}
                if manifest:
                    place.target.note(parcel, "manifest.json", manifest)
            except NotStored as why:
                done[number], whole = done.get(number, ""), False
                yield {**told, "state": "failed", "why": str(why)}
        if self.keep != "always" and self.places and whole and all(done.get(n) for n in range(len(self.places))):
            path.unlink()
            yield {"event": "delivered", "location": done[0]}

    def conclude(self, summary: bytes) -> tuple[str, ...]:
        """Put `run.json` beside the archives of every target that has one; what didn't work, in words."""
        problems: list[str] = []
        # One a run, also where the key template has a folder for each archive: beside the first of them.
        first: dict[int, tuple[Target, Parcel]] = {}
        for target, parcel in sorted(self._parcels, key=lambda stored: stored[0].key_for(stored[1])):
            first.setdefault(id(target), (target, parcel))
        for target, parcel in first.values():
            try:
                target.note(parcel, "run.json", summary)
            except NotStored as why:
                problems.append(f"run.json isn't at {target.describe()}: {why}")
        return tuple(problems)


def _way(place: Place, size_bytes: int, local: bool, call: Call) -> tuple[bool, str]:
    """Whether the node stores it, and why, for people. Raises LinkLost."""
    assert place.target is not None
    via = place.target.via
    if via != "auto":
        return via == "node", f"via: {via}"
    size = format_size(size_bytes)
    if local:
        return False, "auto: its node is this machine"
    if size_bytes <= SINGLE_MOST_BYTES:
        return False, f"auto: {size} is small"
    try:
        where = _place(place)
    except NotStored as why:
        return False, f"auto: {why}"
    if where is None:
        return False, "auto: the credential can't be narrowed to one archive, and isn't given to nodes"
    (answer,) = _reached([where], call)
    if not answer["ok"]:
        return False, f"auto: its node doesn't get through: {answer['why']}"
    return True, f"auto: {size} is large, and its node gets through"


def _place(place: Place) -> dict[str, Any] | None:
    """What a node would have to reach to store there itself."""
    return place.target.place() if place.target is not None and place.target.via != "runner" else None


def _reached(
    places: Sequence[Mapping[str, Any]], call: Call, shelves: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    if not places and not shelves:
        return []
    try:
        asked = {"places": places, "shelves": shelves}
        answer = call("reach", stdin=json.dumps(asked).encode(), limit_s=REACH_LIMIT_S)
        return [{"ok": bool(a["ok"]), "why": redact(str(a["why"]))} for a in (*answer["places"], *answer["shelves"])]
    except LinkRefused as refused:
        return [{"ok": False, "why": refused.why}] * (len(places) + len(shelves))


def as_record(delivery: Delivery) -> dict[str, Any]:
    """What a run keeps of its targets, to go on later: references to secrets, never secrets."""
    uploads = [{"kind": p.kind, "options": dict(p.options)} for p in delivery.places]
    return {"uploads": uploads, "keep_archives": delivery.keep}


def of_record(terms: Mapping[str, Any] | None, run: str) -> Delivery:
    """The inverse of `as_record`, for a run of that name."""
    terms = terms or {}
    return Delivery(open_places(terms.get("uploads", [])), run, terms.get("keep_archives", "always"))
