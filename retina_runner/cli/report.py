"""`retina-run report RUN_DIR`: make a run's views again, from its events alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from retina_runner.errors import Exit
from retina_runner.folding import Fold, fold
from retina_runner.report import to_json
from retina_runner.rundir import RunDirectory


def main(chosen: argparse.Namespace) -> int:
    directory = RunDirectory.open(Path(chosen.run))
    if chosen.format == "lines":
        from retina_runner.views.lines import Lines

        view, folding = Lines(verbose=True), Fold()
        for event in directory.read_events():
            folding.add(event)
            view.event(event, folding.report())
        view.close(folding.report())
        return Exit.OK
    report = fold(directory.read_events())
    if chosen.format == "json":
        print(json.dumps(to_json(report), indent=1))
    elif chosen.format == "junit":
        from retina_runner.views.junit import junit

        print(junit(report), end="")
    else:
        from retina_runner.views.table import table

        print(table(report))
    return Exit.OK
