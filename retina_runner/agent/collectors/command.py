"""command: the output of the user's own commands, before, after, or every so often during the window.

A command that fails or hangs costs its own output only. Each run is in the manifest with its argv, status and duration.
Output goes to the disk as it comes: how much of it is kept isn't a matter of memory.
"""

from __future__ import annotations

import threading
import time
from typing import Any, List, Mapping, Optional, Tuple

from retina_runner.agent import process
from retina_runner.agent.artefact import Artefact
from retina_runner.agent.clock import both
from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, PARTIAL, Context, Gap, Verdict
from retina_runner.agent.passing import is_full


class Command(Collector):
    """See `Collector` for when each hook runs."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._argv = [str(word) for word in context.options["argv"]]
        self._when = context.options["when"]
        self._folder = f"commands/{context.node_id}"
        self._verdict: Optional[Verdict] = None
        self._over = threading.Event()
        self._lost: List[str] = []
        self._trouble: Optional[Exception] = None
        self._thread: Optional[threading.Thread] = None

    def prepare(self) -> None:
        if process.find(self._argv[0]) is None:
            raise Gap(self._argv[0], "not installed on this node")
        self._verdict = self.context.verdict(Verdict(self._folder, COMPLETE))
        if "before" in self._when:
            self._run("before")

    def begin(self) -> None:
        if self.context.window is not None and "during" in self._when:
            self._thread = threading.Thread(target=self._repeat, name=self.context.node_id, daemon=True)
            self._thread.start()

    def _repeat(self) -> None:
        assert self.context.window is not None
        realtime, monotonic = both()
        begun = monotonic + (self.context.window.t0 - realtime)
        every, number = self.context.options["every"], 0
        while not self._over.wait(max(0.0, begun + number * every - time.monotonic())):
            try:
                self._run(f"during-{number:05d}")
            except Exception as error:
                self._trouble = error
                return
            # The next beat that is still ahead: a slow run leaves out those that it overlaps.
            number = max(number + 1, int((time.monotonic() - begun) / every) + 1)

    def _run(self, when: str) -> None:
        """A full disk costs this output, and with `during` those that would come: none of the earlier ones."""
        assert self._verdict is not None
        with self._verdict.at_stake(when):
            try:
                with self.context.stream(f"{self._folder}/{when}.stdout") as stdout:
                    outcome = self._outcome(when, stdout)
                if outcome is not None and outcome.stderr:
                    self.context.write(f"{self._folder}/{when}.stderr", outcome.stderr)
            except OSError as error:
                if not is_full(error):
                    raise
                self._over.set()
                self._lost.append(when)
                self._verdict.lower(PARTIAL, f"{when}: {error.strerror}")

    def _outcome(self, when: str, stdout: Artefact) -> Optional[process.Outcome]:
        """How the command ended, judged; None when it couldn't be started."""
        options = self.context.options
        assert self._verdict is not None
        try:
            outcome = self.context.run(
                self._argv, limit_s=options["limit"], output_limit_bytes=options["output_limit"], env=options["env"],
                keep=stdout.write,
            )  # fmt: skip
        except (process.MissingTool, OSError) as error:
            stdout.discard()
            self._verdict.lower(PARTIAL, f"{when}: {error}")
            return None
        if outcome.timed_out or outcome.exit_status not in options["ok_exit"]:
            self._verdict.lower(PARTIAL, f"{when}: {outcome.why() or f'exit status {outcome.exit_status}'}")
        if outcome.truncated:
            self._verdict.lower(PARTIAL, f"{when}: output cut at {options['output_limit']} B")
        return outcome

    def end(self) -> None:
        self._over.set()

    def finish(self) -> None:
        self.abandon()
        if "after" in self._when:
            self._run("after")
        if self._trouble is not None:
            raise self._trouble
        if self._lost:
            raise RuntimeError(f"no space left on the node for {', '.join(self._lost)}")

    def abandon(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def problems(options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """(nothing is fatal, a gap when the program isn't there)."""
    tool = str(options["argv"][0])
    return [], [] if process.find(tool) else [Gap(tool, "not installed on this node")]
