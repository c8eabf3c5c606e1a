"""`retina-run version`."""

from __future__ import annotations

import argparse

from retina_runner import __version__
from retina_runner.bundle import agent_bundle
from retina_runner.errors import Exit


def main(chosen: argparse.Namespace) -> int:
    print(f"retina-run {__version__}")
    print(agent_bundle().name.removesuffix(".pyz"))
    return Exit.OK
