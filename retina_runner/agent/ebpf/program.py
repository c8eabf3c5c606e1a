"""A compiled unit in the kernel: its maps, its programs, where they are attached; all of it ends with this process.

Raw tracepoints, packet sockets and the kernel's functions only: what they attach is a descriptor of ours. Programs at tc and
XDP hooks would outlive a SIGKILL.
"""

from __future__ import annotations

import base64
import ctypes
import os
import socket
import struct
from typing import Any, Dict, List, Mapping

from retina_runner.agent.ebpf import kprobes, syscalls
from retina_runner.agent.metrics.namespaces import Namespace

ATTACH_BPF = 50  # SO_ATTACH_BPF
EVERY_PROTOCOL = 3  # ETH_P_ALL
PACKET_FAMILY = 17  # AF_PACKET


class Unit:
    """The maps exist at once; programs come by `attach_*`. Raises OSError."""

    def __init__(self, compiled: Mapping[str, Any]):
        self._compiled = compiled
        self._sockets: List[socket.socket] = []
        self._descriptors: List[int] = []
        self.programs: Dict[str, int] = {}
        self.maps: Dict[str, syscalls.Map] = {}
        cpus = syscalls.possible_cpus()
        self._maps: List[syscalls.Map] = []
        try:
            for shape in compiled["maps"]:
                self._maps.append(syscalls.Map(syscalls.MapShape(**shape), cpus))
                self.maps[shape["name"]] = self._maps[-1]
        except OSError:
            self.close()
            raise

    def _load(self, kind: int, program: str) -> int:
        if program not in self.programs:
            code = base64.b64decode(self._compiled["programs"][program])
            self.programs[program] = syscalls.load(kind, program, code, self._maps)
        return self.programs[program]

    def attach_raw_tracepoint(self, tracepoint: str, program: str) -> None:
        descriptor = self._load(syscalls.RAW_TRACEPOINT, program)
        self._descriptors.append(syscalls.open_raw_tracepoint(tracepoint, descriptor))

    def attach_function(self, function: str, returns: bool, program: str) -> None:
        """Where a function of the kernel begins, or returns."""
        descriptor = self._load(syscalls.KPROBE, program)
        self._descriptors.append(kprobes.open_probe(function, returns, descriptor))

    def attach_socket(self, namespace: Namespace, program: str) -> None:
        """To every packet of every interface of the namespace, present and to come."""
        descriptor = self._load(syscalls.SOCKET_FILTER, program)
        self._sockets.append(namespace.inside(lambda: _packet_socket(descriptor)))

    def attach_tail(self, table: str, program: str) -> None:
        """As the one program of this kind that others of the unit go on with: `table` is a map of programs."""
        descriptor = self._load(syscalls.SOCKET_FILTER, program)
        self.maps[table].put(struct.pack("=I", 0), struct.pack("=I", descriptor))

    def only(self, namespaces: List[int]) -> None:
        """Count for these namespaces, by inode, and for no others; none for everything."""
        for inode in namespaces:
            self.maps["scope"].put(struct.pack("=I", inode), struct.pack("=I", 1))
        self.maps["settings"].put(struct.pack("=I", 0), struct.pack("=I", 1 if namespaces else 0))

    def close(self) -> None:
        """Detach and let go of everything. Idempotent."""
        for door in self._sockets:
            door.close()
        for descriptor in [*self._descriptors, *self.programs.values()]:
            os.close(descriptor)
        for table in self._maps:
            table.close()
        self._sockets, self._descriptors, self.programs, self._maps, self.maps = [], [], {}, [], {}


def _packet_socket(program: int) -> socket.socket:
    # Protocol 0 receives nothing: no packet comes before the program is there.
    door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        door.setsockopt(socket.SOL_SOCKET, ATTACH_BPF, program)
        # packet(7): interface 0 is every interface. Python's own bind() wants an interface's name.
        address = struct.pack("=HHiHBB8s", PACKET_FAMILY, socket.htons(EVERY_PROTOCOL), 0, 0, 0, 0, b"")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(door.fileno(), address, len(address)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    except OSError:
        door.close()
        raise
    return door
