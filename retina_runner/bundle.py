"""The agent as one file that travels: a zipapp, named by its content, the same bytes wherever it is built.

Only `retina_runner/agent/` and `bpf/` go in. Deterministic (sorted members, fixed times), so that a node that has
`agent-<sha12>.pyz` already needs no second copy. Beside what every plan needs lies what this interpreter compiles it to:
a node with the same minor version of Python starts the agent in half the time; any other takes the source.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import itertools
import json
import marshal
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from retina_runner import __version__
from retina_runner.bundle_cache import kept

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that zip can say
_MAIN = b"import sys\nfrom retina_runner.agent.__main__ import main\nsys.exit(main())\n"
# The real retina_runner/__init__.py is the runner's; the agent needs a package of that name and nothing of it.
_SELDOM = (
    "ebpf/",
    "metrics/",
    "collectors/ebpf",
    "collectors/files",
    "upload",
    "web",
    "hold",
    "solo",
    "shelf",
    "rescue",
)
"""Below `agent/`, what only some plans need: it travels as source only."""
_LEVEL = 6
"""Level 9 makes it 0.6 % smaller for half as much CPU again (105 and 160 ms): `python benchmarks/startup.py --levels`."""
_PACKAGE = f'__version__ = "{__version__}"\n'.encode()


@dataclass(frozen=True)
class AgentBundle:
    """`name` is `agent-<first 12 hex digits of sha256>.pyz`; `content` its bytes."""

    name: str
    sha256: str
    content: bytes


@lru_cache
def agent_bundle(compiled: bool = True) -> AgentBundle:
    """The agent of this installation, built where none is kept of the same sources (`bundle_cache`).

    Without what it compiles to, and then without comments and docstrings too, it has less than half the bytes: it travels
    in a Kubernetes object then, whose size has a limit.
    """
    content = kept(_made_of(compiled), lambda: build(compiled))
    digest = hashlib.sha256(content).hexdigest()
    return AgentBundle(f"agent-{digest[:12]}.pyz", digest, content)


def build(compiled: bool, level: int = _LEVEL) -> bytes:
    """The agent's bytes, made anew."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(
            [("__main__.py", _MAIN), ("retina_runner/__init__.py", _PACKAGE), *_members(compiled)]
        ):
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, compresslevel=level)
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def data_directory(name: str) -> Path:
    """`schemas`, `bpf` or `runbooks` as shipped: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parent / name


def _made_of(compiled: bool) -> str:
    """A digest of everything that an agent's bytes come from: sources, how they are built here, and what compiles them."""
    package, bpf = Path(__file__).resolve().parent, data_directory("bpf")
    of = hashlib.sha256(repr((compiled, __version__, sys.version, importlib.util.MAGIC_NUMBER)).encode())
    for path in (Path(__file__), *sorted((package / "agent").rglob("*.py")), *_programs(bpf)):
        of.update(repr((str(path), path.read_bytes())).encode())
    return of.hexdigest()


def _programs(bpf: Path) -> list[Path]:
    return sorted(p for p in bpf.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _members(compiled: bool) -> Iterator[tuple[str, bytes]]:
    package = Path(__file__).resolve().parent
    for number in range(256):
        sys.intern(chr(number))  # each is one object in a process, and marshalled otherwise once anybody has done that
    for path in sorted((package / "agent").rglob("*.py")):
        name = f"retina_runner/{path.relative_to(package).as_posix()}"
        yield name, path.read_bytes() if compiled else bare(path.read_bytes())
        if compiled and not path.relative_to(package / "agent").as_posix().startswith(_SELDOM):
            yield f"{name}c", _compiled(name, path)
    bpf = data_directory("bpf")
    for path in _programs(bpf):
        content = _description(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        yield f"retina_runner/_data/bpf/{path.relative_to(bpf).as_posix()}", content


def bare(source: bytes) -> bytes:
    """Python source without comments and docstrings (of attributes, too); every line keeps its number."""
    lines = source.decode().splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source.decode()).readline))
    dropped: list[tuple[tokenize.TokenInfo, str]] = []
    begins = True  # whether a statement may begin here
    for token, following in itertools.pairwise(tokens):
        if token.type == tokenize.COMMENT:
            dropped.append((token, ""))
        elif token.type == tokenize.STRING and begins and following.type in (tokenize.NEWLINE, tokenize.COMMENT):
            dropped.append((token, '""' + "\n" * token.string.count("\n")))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    for token, instead in reversed(dropped):
        (row, column), (end_row, end_column) = token.start, token.end
        rest = lines[end_row - 1][end_column:]
        text = lines[row - 1][:column] + instead + (rest if not instead.endswith("\n") else rest.lstrip(" "))
        lines[row - 1 : end_row] = [line.rstrip() + "\n" for line in text.splitlines()]
    return "".join(lines).encode()


def _description(text: bytes) -> bytes:
    """A plugin's description without what only its page in the documentation tells."""
    told = {key: value for key, value in json.loads(text).items() if key not in ("limits", "cost")}
    return json.dumps(told, separators=(",", ":")).encode()


def _compiled(name: str, path: Path) -> bytes:
    """A .pyc by hash that is never checked (PEP 552); zipimport passes over one with another version's magic number.

    Marshalled in version 2, which knows no references: those depend on what else the process holds at that moment.
    """
    code = SourceFileLoader(name, str(path)).get_code(name)  # which __pycache__ holds already, as a rule
    assert code is not None
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(path.read_bytes())
    return head + marshal.dumps(_of_file(code, name), 2)


def _of_file(code: CodeType, name: str) -> CodeType:
    """The same code, as if its file were called so: where it was compiled is nobody's business."""
    constants = tuple(_of_file(c, name) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_filename=name, co_consts=constants)
