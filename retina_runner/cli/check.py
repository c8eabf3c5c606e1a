"""`retina-run check`: every problem of every runbook at once; no node is touched."""

from __future__ import annotations

import argparse
import sys

from retina_runner import planning
from retina_runner.errors import DocumentError, Exit, Problem
from retina_runner.runbook_reading import load_runbook


def main(chosen: argparse.Namespace) -> int:
    problems: list[Problem] = []
    for path in chosen.runbooks:
        try:
            runbook = load_runbook(path, chosen.extra_vars)
            found = planning.compile_filters(runbook)
        except DocumentError as error:
            found = error.problems
        problems += found
        if not found:
            print(f"{path}: ok", flush=True)
            for note in runbook.notes:
                print(f"retina-run: {path}: {note}", file=sys.stderr)
    if problems:
        raise DocumentError(problems)
    return Exit.OK
