"""Paths that packets take through network namespaces of a benchmark's own, and the CPU time that each packet takes.

One thread does everything, and its own CPU time is all of it: a veth pair delivers in the sender's context, softirqs
included (without CONFIG_IRQ_TIME_ACCOUNTING). What ksoftirqd took over would be missing: such samples are left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from retina_runner.agent.metrics.namespaces import Namespace
from tests.lab import Lab, sh

BATCH = 64
FAR = "10.95.0.9"


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """struct mmsghdr, recvmmsg(2)."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vector", ctypes.POINTER(_Iovec)),
        ("vectors", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int64), ("sent", ctypes.c_uint64),
    ]  # fmt: skip


@contextmanager
def routed() -> Iterator[tuple[Lab, str]]:
    """(a and b, a third namespace behind b): what a sends to FAR goes through b, and a rule drops it where it arrives.

    So each packet is a drop as well: the worst case for a plugin that looks at those.
    """
    with Lab() as lab:
        far = f"{lab.b}-far"
        sh("ip", "netns", "add", far)
        try:
            sh("ip", "-n", lab.b, "link", "add", "eth2", "type", "veth", "peer", "name", "eth0", "netns", far)
            for node, link, address in ((lab.b, "eth2", "10.95.0.1/24"), (far, "eth0", f"{FAR}/24")):
                sh("ip", "-n", node, "addr", "add", address, "dev", link)
                sh("ip", "-n", node, "link", "set", link, "up")
            given = json.loads(sh("ip", "-n", far, "-j", "link", "show", "eth0"))[0]["address"]
            sh("ip", "-n", lab.b, "neigh", "replace", FAR, "lladdr", given, "dev", "eth2", "nud", "permanent")
            sh("ip", "-n", lab.a, "route", "add", "10.95.0.0/24", "via", "10.93.0.2")
            lab.inside(lab.b, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            lab.inside(far, "iptables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "DROP")
            yield lab, far
        finally:
            sh("ip", "netns", "del", far, check=False)


class Small:
    """UDP of `size` bytes from a namespace, many by each system call, so that little of the sender is in the time."""

    unit = "packet"

    def __init__(self, namespace: str, address: str, size: int = 22):
        self._door = _socket(namespace, socket.SOCK_DGRAM)
        self._door.connect((address, 7000))
        self._payload = ctypes.create_string_buffer(size)
        vector = _Iovec(ctypes.addressof(self._payload), size)
        self._messages = (_Message * BATCH)(*[_Message(None, 0, ctypes.pointer(vector), 1) for _ in range(BATCH)])
        self._libc = ctypes.CDLL(None, use_errno=True)

    def sample(self, batches: int = 16) -> float:
        """ns of CPU by packet."""
        sent, begun = 0, time.thread_time_ns()
        for _ in range(batches):
            number = self._libc.sendmmsg(self._door.fileno(), self._messages, BATCH, 0)
            if number < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += number
        took = time.thread_time_ns() - begun
        assert sent == batches * BATCH
        return took / sent

    def close(self) -> None:
        self._door.close()


class Bulk:
    """One TCP connection from a to b at memory speed, both ends in this thread."""

    unit = "MiB"

    def __init__(self, lab: Lab):
        listener = _socket(lab.b, socket.SOCK_STREAM)
        listener.bind(("10.93.0.2", 7100))
        listener.listen()
        self._sender = _socket(lab.a, socket.SOCK_STREAM)
        self._sender.connect(("10.93.0.2", 7100))
        self._receiver, _ = listener.accept()
        listener.close()
        for door in (self._sender, self._receiver):
            door.setblocking(False)
        self._block, self._room = bytes(1 << 18), bytearray(1 << 18)
        for _ in range(20):
            self.sample()  # until TCP's windows are as large as they get

    def sample(self, size: int = 4 << 20) -> float:
        """ns of CPU by MiB that arrived, both ends together. Waiting, when TCP has lost something, costs none."""
        arrived, begun = 0, time.thread_time_ns()
        while arrived < size:
            moved = 0
            try:
                moved = self._sender.send(self._block)
            except BlockingIOError:
                pass
            try:
                came = self._receiver.recv_into(self._room)
            except BlockingIOError:
                came = 0
            arrived += came
            if not moved and not came:
                select.select([self._receiver], [self._sender], [], 1)
        return (time.thread_time_ns() - begun) / arrived * (1 << 20)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


def least(path: Small | Bulk, samples: int) -> float:
    """The least of that many samples in which ksoftirqd did nothing; of all, where it always does."""
    quiet, any_ = [], []
    for _ in range(samples):
        before = _softirqd()
        found = path.sample()
        any_.append(found)
        if _softirqd() == before:
            quiet.append(found)
    return min(quiet or any_)


@contextmanager
def pinned() -> Iterator[None]:
    """This thread stays on one CPU: a flow of packets that moves between two has cold caches."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _softirqd() -> str:
    """How long ksoftirqd has run on this thread's CPU."""
    path = _task(f"ksoftirqd/{max(os.sched_getaffinity(0))}")
    return (path / "schedstat").read_text().split()[0] if path else ""


@lru_cache
def _task(name: str) -> Path | None:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                return path.parent
        except OSError:
            continue
    return None


def _socket(namespace: str, kind: socket.SocketKind) -> socket.socket:
    place = Namespace(namespace)
    try:
        return place.inside(lambda: socket.socket(socket.AF_INET, kind))
    finally:
        place.close()
