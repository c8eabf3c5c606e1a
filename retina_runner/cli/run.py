"""`retina-run RUNBOOK`: resolve, say the plan, carry it out, show it, and end with an exit status that can be trusted."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retina_runner import __version__, bytecode, planning
from retina_runner.bundle import AgentBundle
from retina_runner.cli import prune, unattended
from retina_runner.cli.moves import Moves
from retina_runner.cli.resolve import Links, Resolved, directory_of, resolve, work_directory_of
from retina_runner.delivery import Delivery, as_record, open_places
from retina_runner.errors import Exit, PreflightError, UsageError
from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.fleet import Fleet
from retina_runner.folding import Fold
from retina_runner.report import RunReport, exit_code, to_json
from retina_runner.runbook import Limits
from retina_runner.runbook_reading import load_runbook
from retina_runner.rundir import EventLog, RunDirectory
from retina_runner.targets import Adoption, Target, Terms
from retina_runner.units import parse_size
from retina_runner.uploads import NotStored
from retina_runner.verification import verify_archive
from retina_runner.views import View

KEPT_SHOWN = 5
UPLOAD_SLACK_S = 900.0
"""How long fetching and storing may take at the end of a run; a credential has to live so long."""


def main(chosen: argparse.Namespace) -> int:
    how = unattended.manners(chosen.lock, chosen.jitter, chosen.deadline)
    if chosen.list_hosts or chosen.check:
        return _main(chosen, None)
    unattended.give_way()
    if how.jitter_s:
        load_runbook(
            chosen.runbook, chosen.extra_vars, on_hosts=bool(chosen.inventory)
        )  # a mistake is told now, not in a while
        unattended.spread_out(how.jitter_s)
    if not how.lock:
        return _main(chosen, how.deadline_s)
    with unattended.alone(Path(chosen.output), Path(chosen.runbook)) as died:
        if died:
            print(
                f"retina-run: the last run of {chosen.runbook} died ({died}); `retina-run list {chosen.output}` has it, "
                "`retina-run resume` or `cleanup` takes care of what it left",
                file=sys.stderr,
            )
        return _main(chosen, how.deadline_s)


def _main(chosen: argparse.Namespace, deadline_s: float | None) -> int:
    resolved = resolve(chosen)
    if chosen.list_hosts:
        for node in dict.fromkeys(p.node for p in resolved.plans):
            print(node)
        return Exit.OK
    if not resolved.plans:
        # Of many shards of few nodes some are empty: nothing to do is done well.
        print(f"shard {chosen.shard} has no node of this runbook; nothing to do")
        return Exit.OK
    runbook = resolved.runbook
    terms = terms_of(runbook.limits, chosen, resolved.forks, len(resolved.plans))
    delivery = Delivery(
        open_places([{"kind": u.kind, "options": u.options} for u in runbook.uploads]), resolved.run, runbook.keep
    )
    try:
        delivery.preflight(runbook.duration_s + 2 * runbook.limits.ready_timeout_s + UPLOAD_SLACK_S)
    except NotStored as why:
        raise PreflightError(f"{why}; nothing was touched") from why
    if not (chosen.quiet or chosen.quiet_ok):
        for note in runbook.notes:
            print(f"retina-run: {runbook.document.name}: {note}", file=sys.stderr)
        for note in resolved.notes:
            print(f"retina-run: {note}", file=sys.stderr)
    if not (chosen.json or chosen.quiet or chosen.quiet_ok):
        print("\n".join(planning.describe(resolved.plans, resolved.runbook)))
        for place in delivery.places:
            print(f"  archives to {place.plan()}")
        sys.stdout.flush()
    if chosen.check:
        return _check(resolved, delivery)
    return _run(resolved, chosen, terms, delivery, deadline_s)


def _check(resolved: Resolved, delivery: Delivery) -> int:
    """Ask every node whether it could, `forks` at a time, and say it in the plan's order; the exit status."""
    from concurrent.futures import ThreadPoolExecutor

    status = Exit.OK
    links = Links(resolved.forks, resolved.jobs)
    with ThreadPoolExecutor(resolved.forks, thread_name_prefix="check") as pool:
        answers = pool.map(lambda number: _ask(resolved, links, number, delivery), range(len(resolved.plans)))
        for plan, answer in zip(resolved.plans, answers, strict=True):
            print(f"{plan.id}: {'ok' if answer['ok'] else 'not possible'}")
            for problem in answer["problems"]:
                kind = "gap" if problem["severity"] == "gap" else "problem"
                hint = f" ({problem['hint']})" if problem["hint"] else ""
                print(f"  {kind}: {problem['what']}: {problem['why']}{hint}")
            for store in answer.get("stores", ()):
                if not store["ok"]:
                    print(f"  gap: {store['target']}: {store['why']} (the runner will store the archive)")
            if not answer["ok"]:
                status = Exit.UNTOUCHED
    links.close()
    return status


def _ask(resolved: Resolved, links: Links, number: int, delivery: Delivery) -> dict[str, Any]:
    """The node's own answer to `check`; the agent is installed for that, and taken away again."""
    plan = resolved.plans[number]
    link = links.to(resolved.reach.get(plan.id), work_directory_of(resolved, plan))
    supplied = bytecode.Store(bytecode.default_directory()).supply(plan.document)
    try:
        link.connect()
        link.install(resolved.agent)
        try:
            answer = link.call("check", "--directory", work_directory_of(resolved, plan), stdin=supplied)
            stores = delivery.reach(plan.executor == "local", link.call)
            refused = delivery.refused(stores)
            if refused is not None:
                fatal = [{"severity": "fatal", **refused}]
                return {**answer, "ok": False, "problems": [*answer["problems"], *fatal]}
            return {**answer, "stores": stores}
        finally:
            link.call("remove", directory_of(resolved, plan, number))
    except LinkRefused as refused:
        trouble = {"what": refused.what, "why": refused.why, "hint": refused.hint}
    except LinkLost as lost:
        trouble = {"what": "connection", "why": str(lost), "hint": ""}
    finally:
        link.close()
    return {"ok": False, "problems": [{"severity": "fatal", **trouble}]}


def _run(
    resolved: Resolved, chosen: argparse.Namespace, terms: Terms, delivery: Delivery, deadline_s: float | None = None
) -> int:
    directory = RunDirectory.create(Path(chosen.output), resolved.run, {p.id: p.text.decode() for p in resolved.plans})
    links = Links(resolved.forks, resolved.jobs)
    moves = Moves(resolved, links, directory)
    targets = [moves.target(plan, number) for number, plan in enumerate(resolved.plans)]
    begin = {
        "event": "run-start", "run": directory.name, "runbook": resolved.runbook.name, "runbook_sha256": resolved.runbook.sha256,
        "version": __version__, "directory": str(directory.path), "duration_s": resolved.runbook.duration_s,
        "fail_on_loss": resolved.runbook.fail_on_loss, "pid": os.getpid(),
        "terms": {**asdict(terms), **as_record(delivery), "jobs": resolved.job_settings},
        "nodes": [
            {"id": t.id, "node": t.node, "capture": t.capture, "executor": t.executor, "directory": t.directory,
             "reach": asdict(t.reach) if t.reach is not None else None}
            for t in targets
        ],
    }  # fmt: skip
    named = Delivery(delivery.places, directory.name, delivery.keep)
    how = Conduct(
        directory, tuple(targets), links, terms, named, resolved.agent, deadline_s, metrics=resolved.runbook.metrics,
        watch=moves if moves.possible else None,
    )  # fmt: skip
    status = conduct(how, begin, chosen)
    prune.after_run(Path(chosen.output), resolved.runbook, quiet=chosen.quiet or chosen.quiet_ok or chosen.json)
    return status


@dataclass(frozen=True)
class Conduct:
    """Everything that carrying a run out takes, whether it is new or was left by a runner that died."""

    directory: RunDirectory
    targets: tuple[Target, ...]
    links: Links
    terms: Terms
    delivery: Delivery
    agent: AgentBundle
    metrics: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    watch: Moves | None = field(default=None, kw_only=True)
    deadline_s: float | None = None


def conduct(how: Conduct, begin: Mapping[str, Any], chosen: argparse.Namespace, adopt: Adoption | None = None) -> int:
    """Carry it out, show it, record it; the exit status. `begin` is the first event."""
    fleet = Fleet(
        how.targets, how.agent, how.directory.archives, how.terms,
        verify=verify_archive, delivery=how.delivery, adopt=adopt,
        keep_bytecode=bytecode.Store(bytecode.default_directory()).keep, watch=how.watch,
    )  # fmt: skip
    recorder = Recorder(how.directory, view_of(chosen))
    interrupts = _Interrupts(fleet)
    recorder.add(begin)
    with interrupts, unattended.by(how.deadline_s, interrupts.deadline):
        for event in fleet.events():
            if event["event"] == "interrupted" and interrupts.leave:
                recorder.add({**event, "remains": list(fleet.remains())})
                recorder.end()
                os._exit(interrupts.leave)
            recorder.add(event)
    how.links.close()
    remains = fleet.remains()
    if interrupts.received and (remains or not recorder.report.interrupted):
        recorder.add({"event": "interrupted", "signal": interrupts.received, "remains": list(remains)})
    status = recorder.end()
    if how.metrics:
        _publish(how, recorder.report)
    for problem in how.delivery.conclude(how.directory.summary.read_bytes()):
        print(f"retina-run: {problem}", file=sys.stderr)
    if how.terms.keep:
        for line in _kept(recorder.report, how.directory):
            print(f"retina-run: {line}", file=sys.stderr)
    finishable = {p.describe() for p in how.delivery.places if p.target is not None}
    if any(u.state == "failed" and u.target in finishable for n in recorder.report.nodes for u in n.uploads):
        print(f"retina-run: to finish the uploads: retina-run upload {how.directory.path}", file=sys.stderr)
    return status


def _kept(report: RunReport, directory: RunDirectory) -> Iterator[str]:
    """What `--keep` has left for a look, and what takes it away."""
    there = [n for n in report.nodes if n.started and not n.removed and not n.trigger]
    for node in there[:KEPT_SHOWN]:
        job = (node.reach or {}).get("job")
        place = f"Job {(node.reach or {}).get('namespace')}/{job}" if job else node.directory
        yield f"kept for a look: {node.id}: {place}"
    if len(there) > KEPT_SHOWN:
        yield f"kept for a look: and on {len(there) - KEPT_SHOWN} more nodes"
    if there:
        yield f"retina-run cleanup {directory.path} removes it"


def _publish(how: Conduct, report: RunReport) -> None:
    """The run's counters for monitoring. What goes wrong is said, and changes nothing of the run."""
    from retina_runner import publishing

    texts = [
        (n, publishing.metrics_of(how.directory.archives / Path(n.archive).name)) for n in report.nodes if n.archive
    ]
    content = publishing.render(report, texts)
    try:
        if "textfile" in how.metrics:
            publishing.write_textfile(Path(how.metrics["textfile"]), report.runbook, content)
        if "pushgateway" in how.metrics:
            publishing.push(how.metrics["pushgateway"], report.runbook, content)
    except publishing.NotPublished as why:
        print(f"retina-run: metrics: {why}", file=sys.stderr)


def terms_of(limits: Limits, chosen: argparse.Namespace, forks: int, nodes: int) -> Terms:
    """The run's terms: the runbook's limits, where the command line doesn't say otherwise. Raises UsageError."""
    given = chosen.max_fail if chosen.max_fail is not None else limits.max_fail
    max_fail = None
    if given is not None:
        text = str(given)
        number = text.removesuffix("%")
        if not number.isdecimal() or (text.endswith("%") and int(number) > 100):
            raise UsageError(f"--max-fail {text}: a number of nodes, or percent of them, such as 3 or 10%")
        max_fail = int(number) * nodes // 100 if text.endswith("%") else int(number)
    return Terms(
        ready_timeout_s=limits.ready_timeout_s, reconnect_timeout_s=limits.reconnect_timeout_s, forks=forks,
        max_fail=max_fail, fetch_bytes_s=fetch_rate(chosen), keep=chosen.keep,
    )  # fmt: skip


def fetch_rate(chosen: argparse.Namespace) -> float | None:
    """`--fetch-rate` in bytes a second; None for no bound. Raises UsageError."""
    if chosen.fetch_rate is None:
        return None
    try:
        rate = float(parse_size(chosen.fetch_rate.removesuffix("/s")))
    except ValueError as error:
        raise UsageError(f"--fetch-rate {chosen.fetch_rate}: {error}") from None
    if rate <= 0:
        raise UsageError("--fetch-rate: must be more than nothing")
    return rate


def view_of(chosen: argparse.Namespace) -> View:
    if chosen.json:
        from retina_runner.views.jsonlines import JsonLines

        return JsonLines()
    quiet = chosen.quiet or getattr(chosen, "quiet_ok", False)
    if not quiet and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from retina_runner.views.console import Console

        return Console()
    from retina_runner.views.lines import Lines

    if getattr(chosen, "quiet_ok", False):
        from retina_runner.views.lines import QuietOk

        return QuietOk()
    return Lines(quiet=chosen.quiet, verbose=bool(chosen.verbose))


class Recorder:
    """Where every event goes: the run's journal, the report, the view; and the run's files at its end."""

    def __init__(self, directory: RunDirectory, view: View):
        self._directory, self._view = directory, view
        self._log = EventLog(directory)
        self._fold = Fold()
        for event in directory.read_events():  # of a runner that died
            self._fold.add(event)
        self._trouble = ""

    def add(self, event: Mapping[str, Any]) -> None:
        from retina_runner.agent.context import utc

        numbered = self._log.append({"time": utc(), **event})
        self._fold.add(numbered)
        if numbered["event"] in ("run-start", "t0", "resumed"):
            self.save()
        self._view.event(numbered, self._fold.report())

    @property
    def report(self) -> RunReport:
        """What has become of the run so far."""
        return self._fold.report()

    def save(self, indent: int | None = None) -> None:
        """Make `run.json` anew from the events so far. Indented, for people, it takes several times as long."""
        self._write(self._directory.summary, json.dumps(to_json(self._fold.report()), indent=indent) + "\n")

    def _write(self, path: Path, text: str) -> None:
        try:
            self._directory.write(path, text)
        except OSError as error:
            self._trouble = f"{path}: {error.strerror}"

    def end(self) -> Exit:
        """Conclude: the last event, `run.json`, `junit.xml`, the view's last word; the exit status."""
        from retina_runner.views.junit import junit

        status = exit_code(self._fold.report())
        self.add({"event": "run-end", "exit_code": int(status)})
        report = self._fold.report()
        self.save(indent=1)
        self._write(self._directory.junit, junit(report))
        self._log.close()
        self._view.close(report)
        if self._log.trouble or self._trouble:
            print(
                f"retina-run: the run's own records are incomplete: {self._trouble or self._log.trouble}",
                file=sys.stderr,
            )
        return status


class _Interrupts:
    """Ctrl-C once: end the windows, keep what is there. Twice: leave at once, and say what remains."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._before: dict[int, Any] = {}
        self.received = ""
        self.why = ""
        self.leave: Exit | None = None

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def deadline(self) -> None:
        """As Ctrl-C once, from another thread."""
        self.why = "DEADLINE"
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        name = self.why or signal.Signals(number).name
        self.why = ""
        # Only noted here: whoever reads the fleet's events does the rest, and is not in the middle of a write then.
        if self.received:
            self.leave = Exit.TERMINATED if number == signal.SIGTERM else Exit.INTERRUPTED
        self.received = self.received or name
        self._fleet.interrupt(name)
