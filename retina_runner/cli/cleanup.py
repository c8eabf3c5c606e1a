"""`retina-run cleanup`: end and remove what a run, or any dead run of this user on this machine, has left."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from retina_runner.bundle import agent_bundle
from retina_runner.cli.pods import Reach, reach_from
from retina_runner.cli.resolve import Links
from retina_runner.cli.resume import open_run, refuse_running
from retina_runner.errors import Exit, UsageError
from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.kubernetes.api import Denied
from retina_runner.executors.kubernetes.reach import PodReach
from retina_runner.executors.local import default_work_directory
from retina_runner.history import is_runner
from retina_runner.report import RunReport
from retina_runner.rundir import RunDirectory
from retina_runner.targets import DEFAULT_FORKS
from retina_runner.units import parse_duration


def main(chosen: argparse.Namespace) -> int:
    if not chosen.runs and not chosen.all_here and not chosen.older_than:
        raise UsageError("cleanup: name run directories, or say --older-than AGE or --all-here")
    runs = [Path(r) for r in chosen.runs]
    places: list[_Place] = []
    reports: list[RunReport] = []
    for path in runs:
        directory, report = open_run(path)
        refuse_running(directory, report)
        reports.append(report)
    reports += [report for d, report in _old(Path(chosen.folder), chosen.older_than) if d.path not in runs]
    for report in reports:
        places += _left(report)
    if chosen.all_here:
        work = Path(chosen.work_dir or default_work_directory())
        places += [("this machine", str(p), None, True) for p in sorted(work.glob("*/plan.json")) for p in [p.parent]]
    places = list(dict.fromkeys(places))
    links = Links()
    try:
        with ThreadPoolExecutor(min(DEFAULT_FORKS, len(places) or 1)) as pool:
            done = list(pool.map(lambda place: _remove(links, *place), places))
        done += list(_jobs(links, reports))
    finally:
        links.close()
    for _, said in done:
        print(said)
    if not done:
        print("nothing to remove")
    return Exit.SOME_FAILED if any(failed for failed, _ in done) else Exit.OK


_Place = tuple[str, str, Reach | None, bool]
"""A plan's id, its directory, how its node is reached, and whether anything is known to have been begun there."""


def _left(report: RunReport) -> list[_Place]:
    return [
        (n.id, n.directory, reach_from(n.reach), n.started or not n.over or bool(n.remains))
        for n in report.nodes
        if n.directory and not n.removed
    ]


def _old(folder: Path, age: str | None) -> Iterator[tuple[RunDirectory, RunReport]]:
    """The runs that began longer ago than that and of which something may be left; a run that goes on isn't one."""
    if age is None:
        return
    try:
        limit = time.time() - parse_duration(age)
    except ValueError as error:
        raise UsageError(f"--older-than {age}: {error}") from None
    for path in sorted(folder.glob("*/events.jsonl")):
        directory, report = open_run(path.parent)
        begun = datetime.fromisoformat(report.started.replace("Z", "+00:00")).timestamp() if report.started else 0.0
        if begun < limit and not (report.exit_code is None and report.pid and is_runner(report.pid)):
            yield directory, report


def _jobs(links: Links, reports: Iterable[RunReport]) -> Iterator[tuple[bool, str]]:
    """What is left in clusters by the runs' labels: Jobs that no run's record tells of, such as a download's. As `_remove`."""
    tokens: dict[tuple[str, str, str], dict[str, PodReach]] = {}
    for reach in (reach_from(n.reach) for report in reports for n in report.nodes):
        if isinstance(reach, PodReach):
            tokens.setdefault((reach.kubeconfig, reach.context, reach.namespace), {})[reach.token] = reach
    for (_, _, namespace), known in tokens.items():
        try:
            session = links.session(next(iter(known.values())))
            for token, name in session.jobs(namespace):
                if token in known:
                    session.delete_job(namespace, name)
                    yield False, f"Job {namespace}/{name}: removed"
        except (Denied, LinkLost, UsageError) as error:
            yield True, f"Jobs of namespace {namespace}: {error}"


def _remove(links: Links, where: str, directory: str, reach: Reach | None, begun: bool) -> tuple[bool, str]:
    """Whether it failed, and what became of it."""
    place = f"{where}: {directory}"
    if reach is None and not Path(directory).exists():
        return False, f"{place}: nothing there"
    link = links.to(reach, str(Path(directory).parent))
    try:
        link.connect()
        link.install(agent_bundle())
        answer = link.call("remove", directory, limit_s=90.0)
    except (LinkRefused, LinkLost) as error:
        if begun:
            return True, f"{place}: {error}"
        # A node that couldn't be reached before anything began there has nothing to be removed, today as then.
        return False, f"{where}: nothing was begun there, and it isn't reached now: {error}"
    finally:
        link.close()
    if answer.get("removed"):
        return False, f"{place}: removed"
    return True, f"{place}: {answer.get('why')}"
