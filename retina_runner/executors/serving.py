"""Links whose other side is one process of the agent that serves all that is asked: over SSH, or into a container.

What differs is how that process is started and how its bytes come; `Stream` is all that is asked of either.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from retina_runner.bundle import AgentBundle
from retina_runner.executors import EXACT_S, Clock, LinkLost, LinkRefused
from retina_runner.executors.bootstrap import FLAGS, LOADER, opening
from retina_runner.executors.local import answer_of
from retina_runner.executors.served import INTERRUPT, LimitReached, Served, Stream

PINGS_MOST, PINGS_IN_VAIN = 12, 4
"""Round trips of one comparison of clocks; as many in a row that are no better than the best end it."""
FOLLOW_S = 600.0
SERVED = b'{"served"'
CLOCKS_AT_ONCE = 4
"""Our own queueing is what spoils a measured round trip: few nodes at a time."""
INSTALL_LIMIT_S = 120.0
FETCH_LIMIT_S = 60.0
_clocks = threading.BoundedSemaphore(CLOCKS_AT_ONCE)


class ServedLink:
    """The verbs of `executors.Link`; whoever inherits it connects, and opens a stream to a command there.

    `work` is the folder for agents there, `python` what runs them.
    """

    def __init__(self, work: str, python: str):
        self._work, self._python = work, python
        self._first = b""
        """What goes before everything else, for whoever asks first: sudo's password."""
        self._served: Served | None = None
        self._bundle: AgentBundle | None = None
        self._strange = ""
        """The newest line on stdout that wasn't the agent's: docker says there what kept a command from starting."""

    def connect(self) -> None:
        """See `executors.Link`."""
        raise NotImplementedError

    def close(self) -> None:
        self._hang_up()

    def _open(self, argv: Sequence[str]) -> Stream:
        """Start this command there. Raises LinkLost, LinkRefused."""
        raise NotImplementedError

    def install(self, agent: AgentBundle) -> None:
        """Put the agent there if it isn't, and have it serve; one interpreter for the whole connection."""
        self._bundle = agent
        self._hang_up()
        self._strange = ""
        channel = self._open([self._python, *FLAGS, "-c", LOADER])
        self._served = served = Served(channel)
        try:
            served.send(self._first + opening(agent, self._work))
            if not self._told(served, "agent")["have"]:
                served.send(agent.content)
            self._told(served, "ready")
        except LinkLost:
            why = self._why_ended(channel)
            self._hang_up()
            if why is None:
                raise
            raise why from None
        except LimitReached as error:
            self._hang_up()
            raise LinkLost(f"installing the agent: {error}") from error
        except LinkRefused:
            self._hang_up()
            raise

    def _told(self, served: Served, key: str) -> Any:
        """The value of that key in the next line that has it; a login shell's own words may come before."""
        while True:
            line = served.line(INSTALL_LIMIT_S)
            try:
                answer = json.loads(line)
            except ValueError:
                self._strange = line.decode("utf-8", "replace")
                continue
            if not isinstance(answer, dict):
                continue
            told = answer.get("agent")
            if isinstance(told, dict) and "refused" in told:
                raise LinkRefused(**told["refused"])
            if key in answer:
                return answer[key]

    def _why_ended(self, channel: Stream) -> LinkRefused | None:
        """What kept the interpreter from starting, if it has ended by itself."""
        try:
            status = channel.status(5.0)
        except (LinkLost, LimitReached):
            return None
        said = channel.stderr.decode("utf-8", "replace").strip() or (self._strange if status else "")
        if status == 127 or ("not found" in said and self._python in said):
            return LinkRefused(self._python, "not installed on the host",
                               "install python3 (3.9 or newer), or set ansible_python_interpreter")  # fmt: skip
        return LinkRefused("agent", last_line(said) or f"exit status {status}", "does python3 work there?")

    def _serving(self) -> Served:
        if self._served is None:
            if self._bundle is None:
                raise LinkRefused("agent", "it isn't installed yet")
            self.install(self._bundle)
        assert self._served is not None
        return self._served

    def _hang_up(self) -> None:
        """End the agent's session, not the connection."""
        if self._served is not None:
            self._served.channel.close()
            self._served = None

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", limit_s: float = 60.0) -> dict[str, Any]:
        served = self._serving()
        deadline = time.monotonic() + limit_s
        lines: list[bytes] = []
        try:
            served.request(verb, arguments=arguments, stdin=stdin.decode())
            while True:
                line = served.line(max(0.0, deadline - time.monotonic()))
                if line.startswith(SERVED):
                    end = json.loads(line)
                    return answer_of(verb, end["served"], b"\n".join(lines), end["stderr"].encode())
                lines.append(line)
        except LimitReached as error:
            self._hang_up()
            raise LinkRefused(f"agent {verb}", f"no answer within {limit_s:.0f} s") from error
        except LinkLost:
            self._hang_up()
            raise

    def events(self, directory: str, first: int, give_up: threading.Event) -> Iterator[dict[str, Any]]:
        while not give_up.is_set():
            served = self._serving()
            ended = asked = False
            lines: list[bytes] = []
            try:
                served.request("events", arguments=[directory, "--from", str(first), "--follow", str(FOLLOW_S)])
                while not ended:
                    if give_up.is_set() and not asked:
                        served.send(INTERRUPT)
                        asked = True
                    lines = served.poll()
                    while lines:
                        line = lines.pop(0)
                        if line.startswith(SERVED):
                            ended = True
                            if json.loads(line)["served"] != 0:
                                return  # nobody lives there any more
                            continue
                        event: dict[str, Any] = json.loads(line)
                        if "event" in event:  # anything else says that the directory is gone, as the status will
                            first += 1
                            yield event
            except LinkLost:
                self._hang_up()
                raise
            finally:
                if not ended and self._served is served:
                    served.unread(lines)
                    self._interrupt(served, asked)

    def _interrupt(self, served: Served, asked: bool) -> None:
        """Whoever listened has heard enough; the session is free for the next request."""
        try:
            if not asked:
                served.send(INTERRUPT)
            while not served.line(INSTALL_LIMIT_S).startswith(SERVED):
                pass
        except (LinkLost, LimitReached):
            self._hang_up()

    def fetch(self, directory: str, name: str, offset: int) -> Iterator[bytes]:
        return self._read(name, {"directory": directory, "name": name, "offset": offset})

    def read_kept(self, folder: str, name: str, offset: int) -> Iterator[bytes]:
        """As `fetch`, of an archive that the node keeps in that folder (`upload: host_path`)."""
        return self._read(name, {"directory": folder, "name": name, "offset": offset, "kept": True})

    def _read(self, name: str, of: dict[str, Any]) -> Iterator[bytes]:
        served = self._serving()
        whole = False
        try:
            served.request("fetch", of=of)
            answer = json.loads(served.line(FETCH_LIMIT_S))
            if "why" in answer:
                whole = True
                raise LinkRefused(name, answer["why"], "its expiry may have passed")
            left = int(answer["bytes"])
            while left:
                chunk = served.some(left)
                left -= len(chunk)
                whole = not left
                yield chunk
            whole = True
        except LimitReached as error:
            raise LinkLost(f"fetching {name}: {error}") from error
        finally:
            if not whole:
                self._hang_up()

    def clock(self, enough_s: float = EXACT_S) -> Clock:
        """The best of several round trips over one open channel: the node's time lies within half of that one."""
        best = Clock(0.0, float("inf"))
        with _clocks:
            served = self._serving()
            try:
                in_vain = 0
                for _ in range(PINGS_MOST):
                    # In this order: whoever is interrupted between the two has a larger error, not a wrong offset.
                    sent, sent_wall = time.monotonic(), time.time()
                    served.request("clock")
                    answer = served.line(30.0)
                    took = time.monotonic() - sent
                    if took / 2 < best.error_s:
                        best, in_vain = Clock(float(json.loads(answer)["time"]) - (sent_wall + took / 2), took / 2), 0
                    elif (in_vain := in_vain + 1) == PINGS_IN_VAIN:
                        break
                    if best.error_s <= enough_s:
                        break
            except (KeyError, ValueError, LimitReached) as error:
                self._hang_up()
                raise LinkLost(f"clock: {error}") from error
            except LinkLost:
                self._hang_up()
                raise
        return best


def last_line(text: str) -> str:
    """The last line that says something, 300 characters of it."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
