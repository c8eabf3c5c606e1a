"""The child that knows BCC: a unit's C text in, bytecode and maps out. LLVM may abort it, and its memory goes with it.

Runs as `python3 -c …` by whichever Python the node's BCC was made for; the request is JSON on stdin, the answer goes
into the file that it names (BCC prints on stdout and stderr by C++ streams). No kernel headers are used: a small tree of
our own satisfies BCC, offsets come from this kernel's BTF; those of another kernel would be wrong without a word.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from retina_runner.agent.ebpf import btf, syscalls

PLACES = ("", "/usr/lib/python3/dist-packages", "/usr/lib/python3/site-packages")
HINT = "apt-get install python3-bpfcc, or dnf install python3-bcc"


def main() -> int:
    request = json.load(sys.stdin)
    try:
        answer = compile_unit(request)
    except Exception as error:
        said = str(error) if isinstance(error, NoBcc) else f"{type(error).__name__}: {error}"
        answer = {"why": said, "hint": getattr(error, "hint", "")}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


class NoBcc(Exception):
    """BCC's Python module isn't here (or another one of that name is)."""

    hint = HINT


def compile_unit(request: Mapping[str, Any]) -> Dict[str, Any]:
    """`text`, `programs` [names], `tracepoints` [names], `enumerations` [names], `defines`, `offsets` {O_NAME:
    "structure.member"}, and the folder `include` in;
    `maps`, `programs` {name: code}, `tracepoints` {name: arguments or null}, `enumerations` out."""
    os.environ["BCC_KERNEL_SOURCE"] = request["include"]
    bcc = _import()
    types = btf.Types()
    tracepoints = {name: types.tracepoint_arguments(name) for name in request["tracepoints"]}
    enumerations: Dict[str, Dict[int, str]] = {}
    for name in request["enumerations"]:
        try:
            enumerations[name] = types.enumeration(name)
        except KeyError:
            enumerations[name] = {}
    flags = [f"-D{name}={value}" for name, value in request["defines"].items()]
    flags += [f"-DTP_ARGS_{name}={number}" for name, number in tracepoints.items() if number is not None]
    known = {name: place.split(".", 1) for name, place in request["offsets"].items()}
    flags += [*_offsets(types, {name: known[name] for name in _wanted(request["text"]) if name in known})]
    flags += ["-DRETINARUN_KERNEL=KERNEL_VERSION({},{},{})".format(*kernel_version()), "-Wno-unused-function"]
    del types

    class Unattached(bcc.BPF):  # type: ignore[misc,name-defined]
        def _trace_autoload(self) -> None:
            """BCC would attach what it thinks it knows by its name."""

    module = Unattached(text=request["text"], cflags=flags)
    library = bcc.libbcc.lib
    shapes, numbers = _maps(module, library)
    programs = {name: _portable(module.dump_func(name), numbers) for name in request["programs"]}
    return {
        "maps": [shape._asdict() for shape in shapes],
        "programs": {name: base64.b64encode(code).decode() for name, code in programs.items()},
        "tracepoints": tracepoints,
        "enumerations": enumerations,
    }


def _offsets(types: btf.Types, places: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A member that this kernel doesn't have gets no name: the text can ask by #ifdef."""
    for name, place in places.items():
        try:
            yield f"-D{name}={types.offset(*place)}"
        except KeyError:
            continue


def _wanted(text: str) -> List[str]:
    return sorted(set(re.findall(r"\bO_[A-Z0-9_]+\b", text)))


def _import() -> Any:
    for place in PLACES:
        if place and place not in sys.path:
            sys.path.append(place)
        try:
            import bcc
        except ImportError:
            continue
        if hasattr(bcc, "BPF"):  # the Python Package Index has another thing of that name
            return bcc
        sys.modules.pop("bcc", None)
    raise NoBcc("BCC's Python module isn't installed")


def kernel_version() -> Tuple[int, int, int]:
    """Of the running kernel, as far as its release says."""
    numbers = [int(n) for n in re.findall(r"\d+", os.uname().release.partition("-")[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def _maps(module: Any, library: Any) -> Tuple[List[syscalls.MapShape], Dict[int, int]]:
    """(every map's shape, descriptor in this process to its place in that list)."""
    import ctypes

    library.bpf_num_tables.argtypes, library.bpf_num_tables.restype = [ctypes.c_void_p], ctypes.c_size_t
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.restype = ctypes.c_char_p
    shapes, numbers = [], {}
    for number in range(library.bpf_num_tables(module.module)):
        name = library.bpf_table_name(module.module, number).decode()
        descriptor = module[name].map_fd
        numbers[descriptor] = number
        shapes.append(syscalls.map_shape(descriptor, name))
    return shapes, numbers


def _portable(code: bytes, numbers: Mapping[int, int]) -> bytes:
    """The program with each map's descriptor replaced by its place in the list."""
    portable = bytearray(code)
    at = 0
    while at < len(portable):
        operation, registers, offset, immediate = syscalls.INSTRUCTION.unpack_from(portable, at)
        if operation == syscalls.LOAD_IMMEDIATE_64:
            if registers >> 4 == syscalls.PSEUDO_MAP:
                syscalls.INSTRUCTION.pack_into(portable, at, operation, registers, offset, numbers[immediate])
            at += syscalls.INSTRUCTION.size
        at += syscalls.INSTRUCTION.size
    return bytes(portable)


if __name__ == "__main__":
    sys.exit(main())
