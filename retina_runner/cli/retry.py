"""`retina-run retry RUN_DIR --failed`: a new run of the nodes that failed in an old one, by the same plans."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retina_runner import __version__, naming
from retina_runner.bundle import agent_bundle
from retina_runner.cli.pods import Reach, again, reach_from, settings_from
from retina_runner.cli.resolve import Links
from retina_runner.cli.resume import open_run, refuse_running, target_of, terms_of
from retina_runner.cli.run import Conduct, conduct
from retina_runner.delivery import as_record, of_record
from retina_runner.errors import Exit, UsageError
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.rundir import RunDirectory


def main(chosen: argparse.Namespace) -> int:
    if not chosen.failed:
        raise UsageError("retry: say --failed; to do all nodes again, run the runbook again")
    old, report = open_run(Path(chosen.run))
    refuse_running(old, report)
    failed = [n for n in report.nodes if n.state not in ("collected", "skipped") and not n.trigger]
    if not failed:
        print(f"{old.path}: no node failed")
        return Exit.OK
    for node in failed:
        if isinstance(reach_from(node.reach), PodReach):
            settings_from(report.terms, node.capture)  # a record that won't do is told before anything is made
    agent, token = agent_bundle(), secrets.token_hex(3)
    run = naming.run_id(report.runbook, time.time())
    directory = RunDirectory.create(Path(chosen.output) if chosen.output else old.path.parent, run)
    terms = terms_of(report, chosen)
    delivery = of_record(report.terms, directory.name)
    jobs: dict[str, dict[str, Any]] = {}
    links = Links(terms.forks, jobs)
    targets, reached = [], dict[str, Reach | None]()
    for number, node in enumerate(failed):
        target = target_of(old, report, node, links)
        plan = {
            **json.loads(target.plan),
            "run": run,
            "t0": None,
            "agent": {"name": agent.name, "sha256": agent.sha256},
        }
        reach = reach_from(node.reach)
        if isinstance(reach, PodReach):
            reach, job = again(reach, node.capture, report.terms, token, number, plan, agent.name)
            jobs[reach.job] = job
            target = replace(target, link=links.to(reach, target.work_directory))
        reached[target.id] = reach
        text = json.dumps(plan, indent=1) + "\n"
        directory.write(directory.plan(node.id), text)
        place = f"{target.work_directory}/{run}-{token}-{number}"
        targets.append(replace(target, plan=text.encode(), directory=place))
    begin = {
        "event": "run-start", "run": directory.name, "runbook": report.runbook, "runbook_sha256": report.runbook_sha256,
        "version": __version__, "directory": str(directory.path), "duration_s": report.duration_s,
        "fail_on_loss": report.fail_on_loss, "pid": os.getpid(),
        "terms": {**asdict(terms), **as_record(delivery), "jobs": (report.terms or {}).get("jobs") or {}},
        "nodes": [
            {"id": t.id, "node": t.node, "capture": t.capture, "executor": t.executor, "directory": t.directory,
             "reach": asdict(reach) if (reach := reached[t.id]) else None}
            for t in targets
        ],
    }  # fmt: skip
    return conduct(Conduct(directory, tuple(targets), links, terms, delivery, agent), begin, chosen)
