"""Archives come home: from a node to where they should be, verified; the node's copy stays until then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retina_runner.account import Account
from retina_runner.agent.passing import is_full
from retina_runner.delivery import Delivery
from retina_runner.errors import ArchiveError
from retina_runner.executors import LinkRefused
from retina_runner.fetching import Throttle, fetch
from retina_runner.freezing import Postponed
from retina_runner.persistence import Persistence
from retina_runner.targets import Target, Terms
from retina_runner.verification import Verification, first_manifest

Urgent = Callable[[], bool]
"""Whether something else has to be done at once."""


def _never() -> bool:
    return False


class Homecoming:
    """That of one run's archives, into the folder `archives` where they aren't stored elsewhere only. Used by the threads of
    all nodes. `verify(path)` returns what is wrong with an archive, nothing for an intact one."""

    def __init__(
        self, account: Account, persistence: Persistence, archives: Path, terms: Terms, *,
        verify: Callable[[Path], Verification], delivery: Delivery,
    ):  # fmt: skip
        self._account, self._persistence, self._archives = account, persistence, archives
        self._keep, self._verify, self._delivery = terms.keep, verify, delivery
        self._throttle = Throttle(terms.fetch_bytes_s)

    def bring(self, target: Target, archive: Mapping[str, Any], urgent: Urgent = _never) -> bool:
        """Have an archive where it should be; False when the node must keep it. Raises Postponed when something is urgent."""
        self._account.say_all(target, self._delivery.from_node(
            target.id, target.node, target.executor == "local", target.directory, archive,
            lambda *words, **options: self._persistence.call(target, *words, **options),
        ))  # fmt: skip
        if not self._delivery.wanted_here(target.id):
            trouble = self._delivery.note(target.id, target.node, archive, self._manifest(target, archive))
            if not trouble:
                self._account.say("delivered", target, location=self._delivery.location(target.id))
                return True
            why = f"{trouble}; the archive is fetched, so that it can be made up for"
            self._account.say("warning", target, why=why)
        path = self._fetch(target, archive, urgent)
        verified = self._verify(path)
        problems = verified.problems
        self._account.say("verified", target, ok=not problems, problems=list(problems))
        if problems:
            # Not removed: the node's copy may be the better one.
            self._account.failed(target, path.name, problems[0], f"the node keeps its copy in {target.directory}")
            return False
        wanted = verified.manifest if self._delivery.places else None
        manifest = json.dumps(wanted, indent=1).encode() if wanted else b""
        stored = self._delivery.store(target.id, target.node, path, archive["sha256"], manifest)
        self._account.say_all(target, stored)
        return True

    def bring_recording(self, row: Target, archive: Mapping[str, Any], urgent: Urgent) -> bool:
        """As `bring`, of a frozen window; what goes wrong with it is this one's trouble alone. The node then lets go of it."""
        try:
            if not self.bring(row, archive, urgent):
                return False
        except LinkRefused as refused:
            self._account.failed(row, refused.what, refused.why, refused.hint)
            return False
        except OSError as error:
            self.failed_here(row, error)
            return False
        if not self._keep:
            self._persistence.call(row, "drop", row.directory, "--name", str(archive["name"]))
        return True

    def failed_here(self, target: Target, error: OSError) -> None:
        """This machine couldn't take an archive: say so, and what to do about it."""
        free = "free some space, then " if is_full(error) else ""
        hint = (
            f"the node keeps its copy in {target.directory} until its expiry; {free}retina-run resume "
            f"{self._archives.parent} brings it here"
        )
        self._account.failed(target, error.filename or "this machine", error.strerror or str(error), hint)

    def _manifest(self, target: Target, archive: Mapping[str, Any]) -> bytes:
        """The manifest of an archive that stays where it is: its first member, of which no more is read than that."""
        found: list[dict[str, Any]] = []

        def read() -> None:
            try:
                found.append(first_manifest(target.link.fetch(target.directory, str(archive["name"]), 0)))
            except ArchiveError as error:
                raise LinkRefused(str(archive["name"]), str(error), f"it is in {target.directory}") from None

        self._persistence.do(target, read)
        return json.dumps(found[-1], indent=1).encode()

    def _fetch(self, target: Target, archive: Mapping[str, Any], urgent: Urgent) -> Path:
        """Bring the archive here, resuming where a broken connection left off; verified by the agent's digest."""
        path = self._archives / str(archive["name"])
        size, sha256 = int(archive["size_bytes"]), str(archive["sha256"])

        def read(offset: int) -> Iterator[bytes]:
            for chunk in target.link.fetch(target.directory, path.name, offset):
                yield chunk
                if urgent():
                    raise Postponed

        def bring() -> None:
            with self._persistence.slots:
                wrong = fetch(read, path, size, sha256, self._throttle)
            if wrong:
                raise LinkRefused(path.name, wrong, f"the node keeps its copy in {target.directory}")

        self._persistence.do(target, bring)
        self._account.say("fetched", target, path=str(path), size_bytes=size, sha256=sha256)
        return path
