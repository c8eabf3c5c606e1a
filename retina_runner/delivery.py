"""Where each finished archive goes: straight from its node where a grant allows it, through the runner otherwise.

`via: auto` lets the node store what is large, and what isn't on this machine anyway; a node that can't reach the store is
told so by the attempt, and the runner does it. Every decision and every result is an event.
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
from retina_runner.uploads import SINGLE_MOST_BYTES, Forgotten, NotStored, Parcel, Target
from retina_runner.uploads.opening import open_target

GRANT_SLACK_S = 600.0
LEAST_RATE_BYTES_S = 500_000
"""What a node is trusted to send at least: how long a grant has to live for an archive of some size."""
GRANTS_MOST = 3
Call = Callable[..., dict[str, Any]]
Event = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One target of the runbook: `target` is None for `host_path`, whose options the node reads."""

    kind: str
    options: Mapping[str, Any]
    target: Target | None

    def describe(self) -> str:
        if self.target is not None:
            return self.target.describe()
        return f"{self.options['base']}/{self.options['path']} on the node"


def open_places(uploads: Sequence[Mapping[str, Any]]) -> tuple[Place, ...]:
    """Targets of `{"kind": …, "options": …}`, as runbooks and a run's record have them."""
    return tuple(Place(u["kind"], u["options"], open_target(u["kind"], u["options"])) for u in uploads)


class Delivery:
    """All targets of one run. Used by many threads; each node's archive by one at a time."""

    def __init__(self, places: Sequence[Place], run: str, keep: str = "always"):
        self.places, self._run, self.keep = tuple(places), run, keep
        self._lock = threading.Lock()
        self._by_node: dict[str, dict[int, str]] = {}
        self._parcels: list[tuple[Target, Parcel]] = []

    def preflight(self, needed_s: float) -> None:
        """Raise NotStored for the first target that can't work; `needed_s` is how long the run may take."""
        for place in self.places:
            if place.target is not None:
                try:
                    place.target.preflight(needed_s)
                except NotStored as why:
                    raise NotStored(f"upload to {place.describe()} can't work: {why}") from None

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
            elif place.target.via == "node" or (
                place.target.via == "auto" and not local and parcel.size_bytes > SINGLE_MOST_BYTES
            ):
                try:
                    done[number] = self._granted(place.target, parcel, directory, call)
                    yield {**told, "state": "stored", "location": done[number]}
                    with self._lock:
                        self._parcels.append((place.target, parcel))
                except (NotStored, LinkRefused) as why:
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

    def begin_with(self, identifier: str, stored: Collection[str]) -> None:
        """What of an archive is stored already, by `describe` of its places: an earlier runner's work."""
        self._by_node[identifier] = {n: p.describe() for n, p in enumerate(self.places) if p.describe() in stored}

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
        for number, place in enumerate(self.places):
            if place.target is None or (number in done and not (done[number] and manifest)):
                continue
            told = {"event": "upload", "target": place.describe(), "via": "runner"}
            try:
                if number in done:  # the node's work, or an earlier runner's: the manifest is what is left to do
                    place.target.note(parcel, "manifest.json", manifest)
                    continue
                done[number] = place.target.store(parcel)
                with self._lock:
                    self._parcels.append((place.target, parcel))
                yield {**told, "state": "stored", "location": done[number]}
                if manifest:
                    place.target.note(parcel, "manifest.json", manifest)
            except NotStored as why:
                done[number] = done.get(number, "")
                yield {**told, "state": "failed", "why": str(why)}
        if self.keep != "always" and self.places and all(done.get(n) for n in range(len(self.places))):
            path.unlink()
            yield {"event": "delivered", "location": done[0]}

    def conclude(self, summary: bytes) -> tuple[str, ...]:
        """Put `run.json` beside the archives of every target that has one; what didn't work, in words."""
        problems, seen = [], set()
        for target, parcel in self._parcels:
            if target.describe() in seen:
                continue
            seen.add(target.describe())
            try:
                target.note(parcel, "run.json", summary)
            except NotStored as why:
                problems.append(f"run.json isn't at {target.describe()}: {why}")
        return tuple(problems)


def as_record(delivery: Delivery) -> dict[str, Any]:
    """What a run keeps of its targets, to go on later: references to secrets, never secrets."""
    uploads = [{"kind": p.kind, "options": dict(p.options)} for p in delivery.places]
    return {"uploads": uploads, "keep_archives": delivery.keep}


def of_record(terms: Mapping[str, Any] | None, run: str) -> Delivery:
    """The inverse of `as_record`, for a run of that name."""
    terms = terms or {}
    return Delivery(open_places(terms.get("uploads", [])), run, terms.get("keep_archives", "always"))
