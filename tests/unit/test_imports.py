"""What a connection over SSH imports, and what loading BPF programs does on a node."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from retina_runner import schema
from retina_runner.agent.ebpf import bytecode, compiling
from retina_runner.executors.bootstrap import FLAGS
from tests.lab import REPOSITORY

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


AT_ONCE = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from retina_runner.cli.resolve import Links
from retina_runner.inventory import Connection
sys.setswitchinterval(1e-5)
links, together = Links(), threading.Barrier(20)
def ask(number):
    together.wait()
    return links.to(Connection(f"web{number}", "192.0.2.1"), "/var/tmp/x")._connector
with ThreadPoolExecutor(20) as pool:
    print(len({id(c) for c in list(pool.map(ask, range(20)))}))
"""


def test_threads_that_ask_for_links_at_once_share_one_connector() -> None:
    """As `--check` and `cleanup` do. With several, a bastion would be knocked at by each."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


RUNS = """
import sys
import retina_runner.cli.run
print(sorted(m for m in sys.modules if m.startswith("retina_runner.executors.kubernetes.")))
"""


def test_a_run_elsewhere_imports_nothing_that_asks_a_cluster() -> None:
    done = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, check=True)
    names = ("objects", "reach")
    assert done.stdout == f"{[f'retina_runner.executors.kubernetes.{name}' for name in names]}\n"


SERVES = """
import importlib
from retina_runner.agent import serve
for name in serve.PRELOADED:
    importlib.import_module("retina_runner.agent." + name)
late = {"_hashlib", "dataclasses", "inspect", "subprocess", "tarfile", "tempfile", "logging", "argparse", "site"}
print(sorted(late & set(sys.modules)))
from retina_runner.agent import framing
import pytest
"""


def test_an_agent_serves_without_what_comes_after_t0_and_finds_what_is_installed_then() -> None:
    """`pytest` stands for what makes archives smaller where a node has it: that lies beside the standard library, too."""
    begin = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})"
    done = subprocess.run([sys.executable, *FLAGS, "-c", begin + SERVES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


LOADS = """
import json, sys
from pathlib import Path
from retina_runner.agent.ebpf import bytecode, compiling
bytecode.BTF = sys.argv[1]
from retina_runner.agent.ebpf.source import BpfSource
from retina_runner.agent.metrics.model import Scope
options = json.load(sys.stdin)
source = BpfSource(options["plugins"], Scope(), options, Path())
(group,) = compiling.groups(compiling.chosen(options["plugins"], options), options)
assert compiling.Compiler(options, Path())._find(compiling.digest_of(group, options))[0]
print(sorted({"_hashlib", "dataclasses", "inspect", "subprocess", "logging", "argparse"} & set(sys.modules)))
"""


def test_programs_from_bytecode_are_loaded_without_what_only_compiling_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the kernel, by an interpreter of its own: OpenSSL alone is 3.5 MB, `dataclasses` 8 ms with what it imports."""
    types = tmp_path / "vmlinux"
    types.write_bytes(b"a kernel's types")
    monkeypatch.setattr(bytecode, "BTF", str(types))
    options = schema.normalise({}, schema.load("collectors/ebpf"))
    (group,) = compiling.groups(compiling.chosen(options["plugins"], options), options)
    unit = {"maps": [], "programs": {"p": base64.b64encode(bytes([0x95, *bytes(7)])).decode()}, "tracepoints": {},
            "enumerations": {}}  # fmt: skip
    packed = bytecode.pack(compiling.digest_of(group, options), bytecode.kernel_digest(), unit)
    done = subprocess.run([sys.executable, "-c", LOADS, str(types)], capture_output=True, text=True, check=False,
                          input=json.dumps({**options, "bytecode": [packed]}))  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
