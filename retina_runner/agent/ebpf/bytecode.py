"""Compiled units that travel: what BCC made on one node serves others of the same kernel, where there may be no BCC.

A unit is of use to the very programs that it was compiled from and to the very kernel whose offsets are baked into it, so
both are digests that it carries. It may come from another node by way of the runner: only what counts and reads is taken,
by the kernel functions that it calls, whatever its digests say.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from typing import Any, Dict, Mapping

from retina_runner.agent.ebpf import digests, syscalls

FORMAT = 2
MOST_BYTES = 4 << 20
"""Of an unpacked unit; those of all shipped plugins together take some 50 kB."""
BTF = "/sys/kernel/btf/vmlinux"
READ_BYTES = 1 << 16
CALL, CALLS_KERNEL = 0x85, 0
FUNCTIONS = {
    1: "map_lookup_elem", 2: "map_update_elem", 3: "map_delete_elem", 4: "probe_read", 5: "ktime_get_ns",
    7: "get_prandom_u32", 8: "get_smp_processor_id", 12: "tail_call", 14: "get_current_pid_tgid", 15: "get_current_uid_gid",
    16: "get_current_comm", 26: "skb_load_bytes", 35: "get_current_task", 45: "probe_read_str", 46: "get_socket_cookie",
    68: "skb_load_bytes_relative", 113: "probe_read_kernel", 115: "probe_read_kernel_str", 125: "ktime_get_boot_ns",
}  # fmt: skip
"""Kernel functions of include/uapi/linux/bpf.h that change nothing but the unit's own maps. A tail call is one to a program of
the same unit: its loader puts no other into a map of programs."""


class Unfit(ValueError):
    """A unit that isn't loaded, and why."""


def programs_digest(request: Mapping[str, Any], headers: Mapping[str, bytes]) -> str:
    """What is compiled: the request but for its paths, and the headers by name."""
    said = {key: value for key, value in request.items() if key not in ("include", "answer")}
    digest = digests.sha256(json.dumps([FORMAT, said], sort_keys=True).encode())
    for name, content in sorted(headers.items()):
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return str(digest.hexdigest())


def kernel_digest() -> str:
    """Which kernel runs here: release, build, machine, and the types that offsets are read from. Raises OSError."""
    name = os.uname()
    digest = digests.quick("\n".join((name.sysname, name.release, name.version, name.machine)).encode())
    with open(BTF, "rb", buffering=0) as file:
        while True:
            chunk = file.read(READ_BYTES)
            if not chunk:
                return str(digest.hexdigest())
            digest.update(chunk)


def pack(programs: str, kernel: str, unit: Mapping[str, Any]) -> Dict[str, Any]:
    """The unit as it travels: its two digests, one of its content, and the content."""
    content = json.dumps(unit, sort_keys=True).encode()
    return {
        "format": FORMAT, "programs": programs, "kernel": kernel, "sha256": digests.sha256(content).hexdigest(),
        "content": base64.b64encode(zlib.compress(content, 9)).decode(),
    }  # fmt: skip


def unpack(packed: Mapping[str, Any]) -> Dict[str, Any]:
    """The unit, intact and harmless. Raises Unfit; whose it is has to be compared by the caller."""
    try:
        if packed["format"] != FORMAT:
            raise Unfit(f"it is of format {packed['format']}, not {FORMAT}")
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed["content"], validate=True), MOST_BYTES)
        if not stream.eof or digests.sha256(content).hexdigest() != packed["sha256"]:
            raise Unfit("it is damaged")
        unit: Dict[str, Any] = json.loads(content)
        shapes = [syscalls.MapShape(**shape) for shape in unit["maps"]]
        programs = {name: base64.b64decode(code, validate=True) for name, code in unit["programs"].items()}
        if not all(isinstance(unit[key], dict) for key in ("tracepoints", "enumerations")):
            raise Unfit("it is damaged")
    except (KeyError, TypeError, AttributeError, binascii.Error, zlib.error, json.JSONDecodeError) as error:
        raise Unfit("it is damaged") from error
    for name, code in programs.items():
        _examine(name, code, len(shapes))
    return unit


def _examine(name: str, code: bytes, maps: int) -> None:
    """Raises Unfit for a program that does more than to count."""
    if not code or len(code) % syscalls.INSTRUCTION.size:
        raise Unfit(f"{name} is no program")
    second = False
    for operation, registers, _, immediate in syscalls.INSTRUCTION.iter_unpack(code):
        source = registers >> 4
        if second:
            second = False
        elif operation == syscalls.LOAD_IMMEDIATE_64:
            second = True
            if source not in (0, syscalls.PSEUDO_MAP) or (source and not 0 <= immediate < maps):
                raise Unfit(f"{name} names what isn't a map of its own")
        elif operation == CALL and (source != CALLS_KERNEL or immediate not in FUNCTIONS):
            raise Unfit(f"{name} calls the kernel's function {immediate}, which programs that only count don't need")
