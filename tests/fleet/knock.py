"""Who gets in: real ssh(1) and retina-run's own connection, by the same ssh_config, side by side.

`python -m tests.fleet.knock` reads a JSON list of cases from stdin and prints a list of answers. It runs in the fleet's
network namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LIMIT_S = 120


def of_openssh(case: dict[str, Any]) -> dict[str, Any]:
    """Whether ssh gets in by that configuration, and what it says."""
    done = subprocess.run(
        ["ssh", "-F", case["config"], "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", case["host"], "true"],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": case.get("home", "/nonexistent"), "SSH_AUTH_SOCK": case.get("agent", "")},
    )  # fmt: skip
    return {"in": done.returncode == 0, "said": done.stderr.strip()}


def of_ours(case: dict[str, Any]) -> dict[str, Any]:
    """Whether retina-run gets in by the same, and what it says."""
    from retina_runner import inventory
    from retina_runner.errors import DocumentError
    from retina_runner.executors import LinkLost, LinkRefused
    from retina_runner.executors.ssh_connect import open_transport
    from retina_runner.inventory import Setting

    found = inventory.Inventory()
    said = {"retina_ssh_config": Setting(case["config"], "the test"), **{
        k: Setting(v, "the test") for k, v in case.get("variables", {}).items()}}  # fmt: skip
    found.add_host(case["host"], "all", said)
    try:
        (to,) = inventory.connections(inventory.select(found))
        transport = open_transport(to)
    except (LinkRefused, LinkLost, DocumentError) as error:
        return {"in": False, "said": str(error), "kind": type(error).__name__, "hint": getattr(error, "hint", "")}
    transport.close()
    return {"in": True, "said": ""}


def main() -> None:
    cases: list[dict[str, Any]] = json.load(sys.stdin)
    with ThreadPoolExecutor(4) as pool:
        openssh = list(pool.map(lambda c: of_openssh(c) if c.get("openssh", True) else None, cases))
    ours = []
    for case in cases:
        # One at a time: what agents and environments say is the process's own.
        os.environ.update(
            HOME=case.get("home", "/nonexistent"), SSH_AUTH_SOCK=case.get("agent", ""), **case.get("env", {})
        )
        ours.append(of_ours(case))
    print(json.dumps([{"openssh": a, "ours": b} for a, b in zip(openssh, ours, strict=True)]))


if __name__ == "__main__":
    main()
