"""`retina-run cleanup`: end and remove what a run, or any dead run of this user on this machine, has left."""

from __future__ import annotations

import argparse
from pathlib import Path

from retina_runner.bundle import agent_bundle
from retina_runner.cli.resolve import Links
from retina_runner.errors import Exit, UsageError
from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.local import default_work_directory
from retina_runner.inventory.connection import Connection, connection_of
from retina_runner.report import fold
from retina_runner.rundir import RunDirectory


def main(chosen: argparse.Namespace) -> int:
    if not chosen.runs and not chosen.all_here:
        raise UsageError("cleanup: name run directories, or say --all-here")
    places: list[tuple[str, str, Connection | None]] = []
    for run in chosen.runs:
        report = fold(RunDirectory.open(Path(run)).read_events())
        if report.exit_code is None and report.pid and _is_runner(report.pid):
            raise UsageError(
                f"{run}: it is still running (process {report.pid}); end it with Ctrl-C or kill {report.pid}"
            )
        places += [(n.id, n.directory, connection_of(n.reach)) for n in report.nodes if n.directory]
    if chosen.all_here:
        work = Path(chosen.work_dir or default_work_directory())
        places += [("this machine", str(p), None) for p in sorted(work.glob("*/plan.json")) for p in [p.parent]]
    failed = 0
    links = Links()
    for where, directory, reach in dict.fromkeys(places):
        failed += _remove(links, where, directory, reach)
    links.close()
    if not places:
        print("nothing to remove")
    return Exit.SOME_FAILED if failed else Exit.OK


def _remove(links: Links, where: str, directory: str, reach: Connection | None) -> int:
    if reach is None and not Path(directory).exists():
        print(f"{where}: {directory}: nothing there")
        return 0
    link = links.to(reach, str(Path(directory).parent))
    try:
        link.connect()
        link.install(agent_bundle())
        answer = link.call("remove", directory, limit_s=90.0)
    except (LinkRefused, LinkLost) as error:
        print(f"{where}: {directory}: {error}")
        return 1
    finally:
        link.close()
    print(f"{where}: {directory}: {'removed' if answer.get('removed') else answer.get('why')}")
    return 0 if answer.get("removed") else 1


def _is_runner(pid: int) -> bool:
    try:
        return b"retina" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
