"""Functions of the kernel as hooks, by perf_event_open(2): each probe is a descriptor of ours, and vanishes with it.

Probes by way of tracefs (kprobe_events) would outlive a SIGKILL, so there is no falling back to those.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from retina_runner.agent.ebpf import syscalls

SOURCE = "/sys/bus/event_source/devices/kprobe"
NUMBERS = {"x86_64": 298}
"""perf_event_open, by machine: those whose registers bpf/retinarun.h knows."""
CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC
SET_PROGRAM, ENABLE = 0x40042408, 0x2400  # PERF_EVENT_IOC_SET_BPF, PERF_EVENT_IOC_ENABLE
DOES_NOTHING = syscalls.INSTRUCTION.pack(0xB7, 0, 0, 0) + syscalls.INSTRUCTION.pack(0x95, 0, 0, 0)
"""r0 = 0; exit."""
ATTRIBUTES_BYTES = 72  # PERF_ATTR_SIZE_VER1, the first that has config2


def lacking(source: str = SOURCE) -> str:
    """Why this kernel takes no probes at all; else an empty text."""
    if os.uname().machine not in NUMBERS:
        return f"where {os.uname().machine} passes a function's arguments isn't known here"
    return "" if os.path.exists(f"{source}/type") else f"this kernel has no kprobes ({source})"


def refusal(function: str, returns: bool, source: str = SOURCE) -> str:
    """Why the function can't be probed here, by trying it with a program that does nothing; else an empty text. Nothing stays."""
    why = lacking(source)
    if why:
        return why
    try:
        program = syscalls.load(syscalls.KPROBE, "trial", DOES_NOTHING, [])
        try:
            os.close(open_probe(function, returns, program, source))
        finally:
            os.close(program)
    except OSError as error:
        return str(error.strerror or error)
    return ""


def open_probe(function: str, returns: bool, program: int, source: str = SOURCE) -> int:
    """Attach a program to where a function begins, or `returns`; the probe ends when the descriptor is closed. OSError."""
    with open(f"{source}/type", encoding="ascii") as file:
        kind = int(file.read())
    with open(f"{source}/format/retprobe", encoding="ascii") as file:  # "config:0"
        bit = int(file.read().partition(":")[2])
    name = ctypes.create_string_buffer(function.encode())
    attributes = struct.pack(
        "=IIQQQQQIIQQ", kind, ATTRIBUTES_BYTES, int(returns) << bit, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0
    )
    given = ctypes.create_string_buffer(attributes, len(attributes))
    # Any process, on CPU 0: the event is only the handle of a probe that fires everywhere.
    probe = int(syscalls.libc.syscall(NUMBERS[os.uname().machine], given, -1, 0, -1, CLOSE_ON_EXEC))
    if probe < 0:
        number = ctypes.get_errno()
        if number == 2:  # ENOENT
            raise OSError(number, f"the kernel has no function {function} (or the module that has it isn't loaded)")
        raise OSError(number, os.strerror(number))
    try:
        fcntl.ioctl(probe, SET_PROGRAM, program)
        fcntl.ioctl(probe, ENABLE, 0)
    except OSError:
        os.close(probe)
        raise
    return probe
