"""What a connection over SSH imports."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from retina_runner.executors.ssh_connect import Connector
assert "paramiko" not in sys.modules
Connector(1)
assert "paramiko" in sys.modules
assert "invoke" not in sys.modules, "paramiko's seldom used half"
import invoke
assert invoke.__name__ == "invoke"
"""


def test_paramiko_is_imported_without_what_costs_half_of_it_and_that_stays_importable() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
