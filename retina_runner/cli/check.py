"""`retina-run check`: every problem of every runbook, and of the inventories that it names, at once; no node is touched."""

from __future__ import annotations

import argparse
import sys

from retina_runner import planning
from retina_runner.errors import DocumentError, Exit, Problem
from retina_runner.runbook import InventoryNodes, Runbook
from retina_runner.runbook_reading import load_runbook


def main(chosen: argparse.Namespace) -> int:
    problems: list[Problem] = []
    for path in chosen.runbooks:
        try:
            runbook = load_runbook(path, chosen.extra_vars)
            found = (*_hosts(runbook), *planning.compile_filters(runbook))
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


def _hosts(runbook: Runbook) -> tuple[Problem, ...]:
    """What is wrong with the inventories that captures name, and with which hosts of them they mean."""
    named = [(c, c.nodes) for c in runbook.captures if isinstance(c.nodes, InventoryNodes) and c.nodes.inventories]
    if not named:
        return ()
    from retina_runner.cli.hosts import Hosts

    hosts = Hosts(())
    problems: dict[Problem, None] = {}
    for capture, nodes in named:
        try:
            hosts.places(runbook, capture, nodes)
        except DocumentError as error:
            problems.update(dict.fromkeys(error.problems))
    return tuple(problems)
