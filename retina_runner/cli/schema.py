"""`retina-run schema [NAME]`: print a shipped schema; without a name, the names and the folder that holds them."""

from __future__ import annotations

import argparse
import json

from retina_runner import schema
from retina_runner.bundle import data_directory
from retina_runner.errors import Exit


def main(chosen: argparse.Namespace) -> int:
    if chosen.name:
        print(json.dumps(schema.load(chosen.name), indent=2))
        return Exit.OK
    print(f"in {data_directory('schemas')}:")
    for name in schema.names():
        print(f"  {name}")
    return Exit.OK
