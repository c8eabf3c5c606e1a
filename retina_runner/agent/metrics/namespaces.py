"""A function run in another network namespace, by a thread that goes there and is gone afterwards: setns(2).

Only the thread moves. So what is read there must be the thread's: `/proc/thread-self/net`, never `/proc/net`, which is
the process's; sockets that the thread opens belong to its namespace. /sys/class/net is the mount's, and doesn't move.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Callable, List, Optional, TypeVar

from retina_runner.agent.gaps import Gap

CLONE_NEWNET = 0x40000000
NET = "/proc/thread-self/net"
Result = TypeVar("Result")


def path_of(name: str) -> str:
    """Where the namespace `name` can be opened: ip-netns(8)'s file, or a process's for `pid:<number>`."""
    if name.startswith("pid:"):
        return f"/proc/{name[4:]}/ns/net"
    return f"/run/netns/{name}" if os.path.exists(f"/run/netns/{name}") else f"/var/run/netns/{name}"


def inode_of(name: str) -> int:
    """The number by which the kernel's own structures know a namespace (`""` is the agent's own). Raises Gap."""
    try:
        return os.stat(path_of(name) if name else "/proc/self/ns/net").st_ino
    except OSError as error:
        raise _gap(name, error) from error


def here() -> str:
    """Which network namespace the calling thread is in: a name that only serves to tell them apart."""
    return os.readlink("/proc/thread-self/ns/net")


def enter(descriptor: int, name: str) -> None:
    """Move the calling thread into the open network namespace, for good. Raises OSError when it may not go there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns to {name}: {os.strerror(number)}")


class Namespace:
    """A namespace that is held open, so that it can be read to the last even when its name is deleted meanwhile."""

    def __init__(self, name: str):
        """`""` is the agent's own. Raises Gap when there is none of that name."""
        self.name = name
        self._descriptor = -1
        if name:
            try:
                self._descriptor = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _gap(name, error) from error

    def inside(self, what: Callable[[], Result]) -> Result:
        """What `what` returns or raises, in there. Raises OSError when the thread may not go there."""
        if self._descriptor < 0:
            return what()
        results: List[Result] = []
        trouble: List[Optional[BaseException]] = [None]

        def visit() -> None:
            try:
                enter(self._descriptor, self.name)
                results.append(what())
            except BaseException as error:
                trouble[0] = error

        thread = threading.Thread(target=visit, name=f"netns {self.name}")
        thread.start()
        thread.join()
        if trouble[0] is not None:
            raise trouble[0]
        return results[0]

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.inside = self._closed  # type: ignore[method-assign]

    def _closed(self, what: Callable[[], Result]) -> Result:
        raise OSError(f"{self.name} is closed")


def _gap(name: str, error: OSError) -> Gap:
    return Gap(f"network namespace {name}", str(error.strerror), "ip netns list")
