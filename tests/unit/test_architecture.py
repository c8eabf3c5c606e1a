"""The rules of docs/architecture.md that a reader of the imports can check; by AST, so that nothing is executed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "retina_runner"
MODULES = sorted(PACKAGE.rglob("*.py"))
HOMES = {
    "yaml": {"documents.py"},
    "jsonschema": {"schema.py"},
    "referencing": {"schema.py"},
    "rich": {"views/console.py"},
    "argcomplete": {"cli/__init__.py", "cli/completion.py"},
    "paramiko": {
        "executors/ssh_connect.py",
        "executors/ssh_transport.py",
        "executors/ssh_login.py",
        "executors/ssh_certificate.py",
        "executors/ssh_channel.py",
    },
    "azure": {"uploads/azure_blob.py", "uploads/azure_container.py"},
    "boto3": {"uploads/s3_bucket.py"},
    "botocore": {"uploads/s3_bucket.py"},
    "pyinfra": {"inventory/pyinfra_connectors.py"},
    "backports": {"inflating.py"},
    "compression": {"inflating.py"},
    "gevent": {"inventory/pyinfra_connectors.py"},
}
"""Each third-party library has one home, so that replacing it is one module's work."""
OPTIONAL = {"isal": {"agent/framing.py"}, "bcc": {"agent/ebpf/worker.py"}}
"""What the agent uses where the node has it, and does without where it hasn't."""
FORBIDDEN_NAMES = ("manager", "helper", "handler", "util", "utils", "common", "base")
RUNNING = ("fleet.py", "account.py", "persistence.py", "homecoming.py", "moving.py", "targets.py")
"""What carries a run out."""
PURE = (
    "report.py",
    "folding.py",
    "filters.py",
    "endpoints.py",
    "naming.py",
    "units.py",
    "views/table.py",
    "views/junit.py",
    "agent/manifest.py",
    "agent/rules.py",
    "agent/counters.py",
)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for every import."""
    tree = ast.parse(path.read_text())
    top = set()
    for statement in tree.body:
        inner = statement.body if isinstance(statement, ast.Try) else [statement]
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            inner = []
        top |= {id(n) for n in inner}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, id(node) in top) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or "", id(node) in top


@pytest.mark.parametrize("path", [p for p in MODULES if "agent" in relative(p).split("/")], ids=relative)
def test_the_agent_imports_the_standard_library_and_itself_only(path: Path) -> None:
    for module, _ in imports(path):
        root = module.partition(".")[0]
        if root in OPTIONAL:
            assert relative(path) in OPTIONAL[root]
            continue
        own = module == "retina_runner.agent" or module.startswith("retina_runner.agent.")
        assert own or root in sys.stdlib_module_names, f"{relative(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_library_has_one_home_and_is_imported_where_it_is_used(path: Path) -> None:
    for module, at_import in imports(path):
        root = module.partition(".")[0]
        if root in sys.stdlib_module_names or root == "retina_runner" or root in OPTIONAL:
            continue
        assert root in HOMES, (
            f"{relative(path)} imports {module}: give the library a home in this test and a reason in its commit"
        )
        assert relative(path) in HOMES[root], f"{relative(path)} imports {module}, whose home is {HOMES[root]}"
        assert not at_import, (
            f"{relative(path)} imports {module} for everybody; import it in the function that needs it"
        )


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_arrows_point_inward(path: Path) -> None:
    """cli → fleet → executors → agent; views and uploads know no executor; pure modules know no world."""
    name = relative(path)
    forbidden: tuple[str, ...] = ()
    if not name.startswith("cli/") and name != "__main__.py":
        forbidden += ("retina_runner.cli",)
    if name.startswith(("views/", "uploads/")):
        forbidden += ("retina_runner.executors", "retina_runner.fleet", "retina_runner.planning")
    if name.startswith("executors/"):
        forbidden += ("retina_runner.fleet", "retina_runner.views", "retina_runner.runbook")
    if name in RUNNING:
        forbidden += (
            "retina_runner.views",
            "retina_runner.runbook",
            "retina_runner.executors.local",
            "retina_runner.executors.ssh",
        )
    if name in PURE:
        forbidden += ("subprocess", "socket", "os", "threading", "retina_runner.rundir", "retina_runner.executors")
    for module, _ in imports(path):
        assert not module.startswith(forbidden) or not forbidden, f"{name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_processes_are_started_through_one_door_on_each_side(path: Path) -> None:
    doors = {
        "agent/process.py",
        "agent/ebpf/worker.py",
        "executors/local.py",
        "executors/process_stream.py",
        "executors/ssh_proxy.py",
    }
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in ("os.system", "os.popen"), f"{relative(path)} uses a shell"
            if not called.startswith("subprocess."):
                continue
            assert relative(path) in doors, f"{relative(path)} starts a process by {called}; use agent.process"
            assert not any(k.arg == "shell" for k in node.keywords), f"{relative(path)} gives a string to a shell"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_named_for_what_they_do_and_say_their_idea(path: Path) -> None:
    for part in path.relative_to(PACKAGE).with_suffix("").parts:
        assert not any(part == n or part.endswith("_" + n) for n in FORBIDDEN_NAMES)
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{relative(path)} has no docstring"
    assert docstring.splitlines()[0].strip()


def test_start_up_imports_no_library() -> None:
    """`retina-run --help` is what completion and cron run; nothing heavy may be imported for it."""
    heavy = (*HOMES, "asyncio", "http", "xml", "sqlite3")
    script = (
        "import sys, retina_runner.cli.arguments as a; a.parser();"
        f" print(sorted(m for m in sys.modules if m.partition('.')[0] in {heavy!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout == "[]\n"
