"""`retina-run completion SHELL`: code for the shell to evaluate, e.g. `source <(retina-run completion bash)`."""

from __future__ import annotations

import argparse

from retina_runner.errors import Exit


def main(chosen: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["retina-run"], shell=chosen.shell))
    return Exit.OK
