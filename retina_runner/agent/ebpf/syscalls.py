"""bpf(2) by ctypes, as far as metric plugins need it; structures from include/uapi/linux/bpf.h. Raises OSError."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from typing import Iterator, List, NamedTuple, Optional, Tuple

NUMBERS = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
"""The system call's number, by machine."""
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROG_LOAD = 0, 1, 2, 3, 4, 5
OBJECT_INFO, RAW_TRACEPOINT_OPEN, ENABLE_STATS = 15, 17, 32
SOCKET_FILTER, KPROBE, RAW_TRACEPOINT = 1, 2, 17
HASH, ARRAY, PROGRAMS, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH = 1, 2, 3, 5, 6, 9, 10
PERCPU = (PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH)
ARRAYS = (ARRAY, PERCPU_ARRAY)
LICENSE = b"Dual MIT/GPL"
"""What the programs are licensed as: probe_read_kernel is for GPL-compatible programs only."""
LOG_BYTES = 1 << 18
INSTRUCTION = struct.Struct("=BBhi")
LOAD_IMMEDIATE_64, PSEUDO_MAP = 0x18, 1

libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes) -> int:
    """One bpf(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc.syscall(NUMBERS.get(os.uname().machine, -1), command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def charged(command: int, attributes: bytes) -> int:
    """One bpf(2) that makes what kernels before 5.11 charge to RLIMIT_MEMLOCK, 64 kB as a rule: refused for that, it is asked
    for again with this process's limit raised as far as may be. Raises OSError."""
    try:
        return call(command, attributes)
    except PermissionError as error:
        given = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        for wanted in (resource.RLIM_INFINITY, given[1]):
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (wanted, wanted))
                break
            except (OSError, ValueError):
                continue  # more than the hard limit takes CAP_SYS_RESOURCE
        allowed, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if allowed != given[0]:
            return charged(command, attributes)
        if allowed == resource.RLIM_INFINITY:
            raise
        why = f"{error.strerror}; RLIMIT_MEMLOCK may be too low: {allowed} B, and raising it takes CAP_SYS_RESOURCE"
        raise OSError(error.errno, why) from error


def possible_cpus() -> int:
    """How many values a per-CPU map has a key: every CPU that can ever be there, /sys/devices/system/cpu/possible."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().split(",")[-1]
    return int(last.rpartition("-")[2]) + 1


class MapShape(NamedTuple):
    """What a map is made of; sizes in bytes."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


class Map:
    """A BPF map that this process holds."""

    def __init__(self, shape: MapShape, cpus: int):
        self.shape = shape
        self.descriptor = charged(
            MAP_CREATE,
            struct.pack(
                "=IIIIIII16s", shape.type, shape.key_bytes, shape.value_bytes, shape.entries, shape.flags, 0, 0,
                shape.name.encode()[:15],
            ),
        )  # fmt: skip
        self._copies = cpus if shape.type in PERCPU else 1
        # The kernel pads each CPU's value to eight bytes.
        self._stride = (shape.value_bytes + 7) // 8 * 8 if shape.type in PERCPU else shape.value_bytes
        self._key = ctypes.create_string_buffer(shape.key_bytes)
        self._next = ctypes.create_string_buffer(shape.key_bytes)
        self._value = ctypes.create_string_buffer(self._stride * self._copies)

    def keys(self) -> Iterator[bytes]:
        """Every key; one that is added or deleted meanwhile may or may not be among them."""
        if self.shape.type in ARRAYS:
            yield from (struct.pack("=I", n) for n in range(self.shape.entries))
            return
        first, seen = True, 0
        # A key that is deleted under the walk makes the kernel begin anew: the number of entries bounds it.
        while seen <= 2 * self.shape.entries:
            start = 0 if first else ctypes.addressof(self._key)
            try:
                call(MAP_NEXT_KEY, struct.pack("=I4xQQ", self.descriptor, start, ctypes.addressof(self._next)))
            except FileNotFoundError:
                return
            key = self._next.raw
            yield key
            self._key.raw, first, seen = key, False, seen + 1

    def get(self, key: bytes) -> Optional[List[bytes]]:
        """The value of each CPU (or the one value), or None when the key is gone."""
        given = ctypes.create_string_buffer(key, len(key))
        try:
            call(
                MAP_LOOKUP,
                struct.pack("=I4xQQQ", self.descriptor, ctypes.addressof(given), ctypes.addressof(self._value), 0),
            )
        except FileNotFoundError:
            return None
        raw = self._value.raw
        return [raw[n * self._stride :][: self.shape.value_bytes] for n in range(self._copies)]

    def items(self) -> Iterator[Tuple[bytes, List[bytes]]]:
        """(key, values), each key once."""
        for key in dict.fromkeys(self.keys()):
            values = self.get(key)
            if values is not None:
                yield key, values

    def put(self, key: bytes, value: bytes) -> None:
        """Not for per-CPU maps."""
        given, wanted = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
        call(
            MAP_UPDATE,
            struct.pack("=I4xQQQ", self.descriptor, ctypes.addressof(given), ctypes.addressof(wanted), 0),
        )

    def clear(self) -> None:
        """Delete every entry of a hash."""
        for key in list(self.keys()):
            given = ctypes.create_string_buffer(key, len(key))
            try:
                call(MAP_DELETE, struct.pack("=I4xQ", self.descriptor, ctypes.addressof(given)))
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def load(kind: int, name: str, code: bytes, maps: List[Map]) -> int:
    """Put a program into the kernel; its descriptor. In `code`, a map is named by its number in `maps`.

    Raises OSError, with the verifier's last words in place of a bare "Permission denied".
    """
    relocated = bytearray(code)
    at = 0
    while at < len(relocated):
        operation, registers, offset, immediate = INSTRUCTION.unpack_from(relocated, at)
        if operation == LOAD_IMMEDIATE_64:
            if registers >> 4 == PSEUDO_MAP:
                INSTRUCTION.pack_into(relocated, at, operation, registers, offset, maps[immediate].descriptor)
            at += INSTRUCTION.size
        at += INSTRUCTION.size
    instructions = ctypes.create_string_buffer(bytes(relocated), len(relocated))
    license_ = ctypes.create_string_buffer(LICENSE)
    log = ctypes.create_string_buffer(LOG_BYTES)

    def attempt(level: int) -> int:
        return charged(
            PROG_LOAD,
            struct.pack(
                "=IIQQIIQII16s", kind, len(relocated) // INSTRUCTION.size, ctypes.addressof(instructions),
                ctypes.addressof(license_), level, LOG_BYTES if level else 0, ctypes.addressof(log) if level else 0,
                0, 0, name.encode()[:15],
            ),
        )  # fmt: skip

    try:
        return attempt(0)
    except OSError as error:
        try:
            return attempt(1)
        except OSError:
            words = [w for w in log.value.decode("utf-8", "replace").splitlines() if w and "processed" not in w]
            why = f"{error.strerror}: {words[-1][:200]}" if words else str(error.strerror)
            raise OSError(error.errno, why) from error


def open_raw_tracepoint(name: str, program: int) -> int:
    """Attach; what is returned is the attachment, which ends when it is closed."""
    given = ctypes.create_string_buffer(name.encode())
    return call(RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", ctypes.addressof(given), program))


def enable_run_times() -> int:
    """Have the kernel (5.8 and later) measure what programs cost, for as long as the descriptor is open."""
    return call(ENABLE_STATS, struct.pack("=I4x", 0))


def run_times(program: int) -> Tuple[int, int, int]:
    """(run_time_ns, run_cnt, recursion_misses) of bpf_prog_info; 0 where this kernel doesn't say."""
    information = ctypes.create_string_buffer(232)
    call(OBJECT_INFO, struct.pack("=IIQ", program, len(information), ctypes.addressof(information)))
    found = struct.unpack_from("=QQQ", information.raw, 192)
    return int(found[0]), int(found[1]), int(found[2])


def map_shape(descriptor: int, name: str) -> MapShape:
    """What bpf_map_info says of a map."""
    information = ctypes.create_string_buffer(80)
    call(OBJECT_INFO, struct.pack("=IIQ", descriptor, len(information), ctypes.addressof(information)))
    kind, _, key, value, entries, flags = struct.unpack_from("=IIIIII", information.raw)
    return MapShape(name, kind, key, value, entries, flags)
