"""`retina-run cleanup`: end and remove what a run, or any dead run of this user on this machine, has left."""

from __future__ import annotations

import argparse
from pathlib import Path

from retina_runner.bundle import agent_bundle
from retina_runner.errors import Exit, UsageError
from retina_runner.executors.local import LocalLink, default_work_directory
from retina_runner.report import fold
from retina_runner.rundir import RunDirectory


def main(chosen: argparse.Namespace) -> int:
    if not chosen.runs and not chosen.all_here:
        raise UsageError("cleanup: name run directories, or say --all-here")
    places: list[tuple[str, str]] = []
    for run in chosen.runs:
        report = fold(RunDirectory.open(Path(run)).read_events())
        if report.exit_code is None and report.pid and _is_runner(report.pid):
            raise UsageError(
                f"{run}: it is still running (process {report.pid}); end it with Ctrl-C or kill {report.pid}"
            )
        places += [(n.id, n.directory) for n in report.nodes if n.directory]
    if chosen.all_here:
        work = Path(chosen.work_dir or default_work_directory())
        places += [("this machine", str(p)) for p in sorted(work.glob("*/plan.json")) for p in [p.parent]]
    failed = 0
    for where, directory in dict.fromkeys(places):
        failed += _remove(where, directory)
    if not places:
        print("nothing to remove")
    return Exit.SOME_FAILED if failed else Exit.OK


def _remove(where: str, directory: str) -> int:
    if not Path(directory).exists():
        print(f"{where}: {directory}: nothing there")
        return 0
    link = LocalLink(str(Path(directory).parent))
    link.install(agent_bundle())
    answer = link.call("remove", directory, limit_s=90.0)
    print(f"{where}: {directory}: {'removed' if answer.get('removed') else answer.get('why')}")
    return 0 if answer.get("removed") else 1


def _is_runner(pid: int) -> bool:
    try:
        return b"retina" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
