"""`retina-run merge RUN…`: one run directory of several, the shards of a fleet for instance; its exit status is the whole's."""

from __future__ import annotations

import argparse
from pathlib import Path

from retina_runner import merging
from retina_runner.errors import Exit


def main(chosen: argparse.Namespace) -> int:
    parts = merging.read([Path(run) for run in chosen.runs])
    directory, report = merging.merge(parts, Path(chosen.output))
    if chosen.quiet:
        print(directory.path)
    else:
        from retina_runner.views.table import table

        print(table(report))
        print(f"merged {len(parts)} runs into {directory.path}")
    return Exit(report.exit_code if report.exit_code is not None else Exit.BUG)
