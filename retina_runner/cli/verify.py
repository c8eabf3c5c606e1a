"""`retina-run verify ARCHIVE…`: which archives are intact, and what is wrong with the others."""

from __future__ import annotations

import argparse
import json

from retina_runner.errors import Exit
from retina_runner.verification import verify_archive


def main(chosen: argparse.Namespace) -> int:
    damaged = 0
    for path in chosen.archives:
        found = verify_archive(path)
        damaged += 0 if found.ok else 1
        if chosen.json:
            print(json.dumps({"path": str(path), "ok": found.ok, "problems": found.problems, "packets": found.packets}))
            continue
        if found.ok and found.manifest is not None:
            print(
                f"{path}: ok, {len(found.manifest['files'])} files, {found.packets} packets, verdict {found.manifest['verdict']}"
            )
        for problem in found.problems:
            print(f"{path}: {problem}")
    # Status 1 is this verb's own: see errors.EXIT_CODES.
    return Exit.BUG if damaged else Exit.OK
