"""The command line: `retina-run RUNBOOK`, and verbs around it. Parses, calls, turns the end into an exit status.

Start-up is kept short (libraries are imported by the verb that needs them): completion and cron run it often.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from retina_runner.errors import Exit, RetinaRunError

GARBAGE_FROM = 20_000
"""Objects more than there were, before the collector looks at the youngest of them; 700 as Python has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `retina-run`; returns the exit status."""
    from retina_runner.cli.arguments import parser, with_verb

    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(commands)
    try:
        chosen = commands.parse_args(with_verb(words))
        if not getattr(chosen, "module", None):
            commands.print_help()
            return Exit.UNTOUCHED
        module = _imported(f"retina_runner.cli.{chosen.module}")
        status: int = module.main(chosen)
        sys.stdout.flush()
        gc.freeze()  # at its end the interpreter would look through everything once more
        return status
    except RetinaRunError as error:
        print(f"retina-run: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("retina-run: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # `retina-run list | head`: whoever read us has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


def _imported(name: str) -> Any:
    """That module. The garbage collector rests meanwhile, and passes over what came: modules aren't garbage. It comes less
    often from then on, since the libraries that a verb imports later aren't either: that took a run 50 ms of CPU."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE_FROM)
        gc.enable()
