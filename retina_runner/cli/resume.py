"""`retina-run resume RUN_DIR`: adopt a run whose runner died. Its agents have gone on; what is left is to bring home.

What `run.json` and the plans hold is enough: nodes and how to reach them, T0, the terms. Secrets are read again.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from retina_runner import bytecode
from retina_runner.bundle import agent_bundle
from retina_runner.cli.pods import reach_from
from retina_runner.cli.resolve import Links
from retina_runner.cli.run import Conduct, conduct
from retina_runner.delivery import of_record
from retina_runner.errors import Exit, UsageError
from retina_runner.folding import fold
from retina_runner.history import is_runner
from retina_runner.report import NodeReport, RunReport, from_json
from retina_runner.rundir import RUNS_HINT, RunDirectory
from retina_runner.targets import DEFAULT_FORKS, Adoption, Target, Terms


def main(chosen: argparse.Namespace) -> int:
    with RunDirectory(Path(chosen.run)).alone():
        return _resume(chosen)


def _resume(chosen: argparse.Namespace) -> int:
    directory, report = open_run(Path(chosen.run))
    refuse_running(directory, report)
    left = [n for n in report.nodes if n.directory and not n.removed and (n.started or not n.over or n.remains)]
    if not left:
        print(f"{directory.path}: nothing is left to do on any node")
        return report.exit_code if report.exit_code is not None else Exit.OK
    terms = terms_of(report, chosen)
    links = Links(terms.forks)
    targets = tuple(target_of(directory, report, n, links) for n in left)
    begin = {"event": "resumed", "pid": os.getpid(), "ids": [n.id for n in left]}
    t0 = datetime.fromisoformat(report.t0.replace("Z", "+00:00")).timestamp() if report.t0 else None
    how = Conduct(directory, targets, links, terms, of_record(report.terms, directory.name), agent_bundle())
    brought = frozenset(n.id for n in report.nodes if n.trigger and n.state == "collected")
    return conduct(how, begin, chosen, Adoption(t0, brought))


def open_run(path: Path) -> tuple[RunDirectory, RunReport]:
    """A run and what is known of it: by its journal, or by `run.json` where the journal is gone. Raises UsageError."""
    directory = RunDirectory(path)
    report = fold(directory.read_events())
    if report.nodes:
        return directory, report
    try:
        report = from_json(json.loads(directory.summary.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{path}: not a run directory: neither events.jsonl nor run.json tell of one ({why}); {RUNS_HINT}"
        ) from None
    # From here on the journal begins with what run.json knows.
    log = [{"event": "run-start", "run": report.run, "runbook": report.runbook, "runbook_sha256": report.runbook_sha256,
            "version": report.version, "directory": report.directory, "duration_s": report.duration_s, "time": report.started,
            "fail_on_loss": report.fail_on_loss, "pid": report.pid, "terms": report.terms,
            "nodes": [{"id": n.id, "node": n.node, "capture": n.capture, "executor": n.executor, "directory": n.directory,
                       "reach": n.reach} for n in report.nodes if not n.trigger]}]  # fmt: skip
    if report.t0:
        log.append({"event": "t0", "time": report.started, "t0": report.t0, "lead_s": 0.0})
    directory.write(directory.events, "".join(json.dumps({"seq": i, **e}) + "\n" for i, e in enumerate(log)))
    return directory, fold(directory.read_events())


def refuse_running(directory: RunDirectory, report: RunReport) -> None:
    """Raises UsageError for a run whose runner lives."""
    if report.exit_code is None and report.pid and report.pid != os.getpid() and is_runner(report.pid):
        raise UsageError(
            f"{directory.path}: it is still running (process {report.pid}); end it with Ctrl-C or kill {report.pid}"
        )


def terms_of(report: RunReport, chosen: argparse.Namespace) -> Terms:
    """The terms that the run began with."""
    known = {f.name for f in fields(Terms)}
    given = {k: v for k, v in (report.terms or {}).items() if k in known}
    terms = Terms(**{"ready_timeout_s": 60.0, "forks": DEFAULT_FORKS, **given})
    return Terms(**{**{n: getattr(terms, n) for n in known}, "keep": terms.keep or chosen.keep, "max_fail": None})


def target_of(directory: RunDirectory, report: RunReport, node: NodeReport, links: Links) -> Target:
    """The node's part of the run, as it was."""
    work = str(Path(node.directory).parent)
    try:
        plan = directory.plan(node.id).read_bytes()
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; a run without its plans can't be taken up") from None
    return Target(
        id=node.id, node=node.node, capture=node.capture, executor=node.executor, directory=node.directory, plan=plan,
        compiles=bytecode.Store.concerns(json.loads(plan)), duration_s=report.duration_s,
        link=links.to(reach_from(node.reach), work), work_directory=work,
    )  # fmt: skip
