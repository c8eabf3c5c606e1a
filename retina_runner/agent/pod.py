"""The network namespace of a pod on this node: found by the pod's UID among the processes, entered by the agent itself.

The whole agent goes there rather than each of its collectors: what it and its commands then see of the network is the
pod's own, so that interfaces, rules, counters, conditions and files have the same names as on a node. It takes the
node's processes (`hostPID`), SYS_PTRACE to open another's /proc/PID/ns/net, and SYS_ADMIN for setns(2). The agent holds
the namespace for as long as it lives, and nothing else does: no name below /run/netns, no helper process.

The kubelet puts all processes of a pod below a cgroup that is named for its UID, in each of these forms:

    cgroupfs, v1 or v2   /kubepods/burstable/pod2f1c…-…/3ab…
    systemd, v1 or v2    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f1c…_….slice/cri-containerd-3ab….scope
    v2, as a container   /../../kubepods-burstable-pod2f1c…_….slice/cri-containerd-3ab….scope
      sees its siblings
"""

from __future__ import annotations

import os
import re
from typing import Any, Iterator, List, Mapping, Optional, Tuple

from retina_runner.agent.context import Gap
from retina_runner.agent.metrics.namespaces import enter, here
from retina_runner.agent.process import start_ticks
from retina_runner.agent.records import dataclass


@dataclass(frozen=True)
class Pod:
    """`pod` of a plan. `cgroup` is the UID that the kubelet names its cgroup by: of a static pod it isn't the API's."""

    namespace: str
    name: str
    uid: str
    cgroup: str

    @staticmethod
    def of(document: Mapping[str, Any]) -> "Optional[Pod]":
        """The plan's pod, None for a plan of the node itself."""
        given = document.get("pod")
        if not given:
            return None
        return Pod(given["namespace"], given["name"], given["uid"], given.get("cgroup") or given["uid"])

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


class Inside:
    """The calling thread, in the pod's network namespace; so are threads and processes that it starts from now on.

    Raises Gap when the pod has no process here, has the node's network, or may not be looked into. `proc` is proc(5).
    """

    def __init__(self, pod: Pod, proc: str = "/proc"):
        self.pod, self._proc = pod, proc
        descriptor, self._witness = self._open()
        try:
            if _same(descriptor, os.stat("/proc/thread-self/ns/net")):
                raise Gap(
                    str(pod), "it has the network of its node", "leave `scope: pod-netns` out, and filter by its ports"
                )
            enter(descriptor, str(pod))
        except OSError as error:
            raise Gap(str(pod), f"its network namespace can't be entered: {error.strerror or error}", _HINT) from error
        finally:
            os.close(descriptor)
        self.namespace = here()

    def _open(self) -> Tuple[int, int]:
        """(its network namespace, the process by which it was found). The sandbox's own process is a pod's oldest."""
        refused: Optional[OSError] = None
        for process in processes(self.pod.cgroup, self._proc):
            try:
                descriptor = os.open(f"{self._proc}/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # it has ended meanwhile
            except OSError as error:
                refused = error
                continue
            if belongs(self.pod.cgroup, process, self._proc):
                return descriptor, process
            os.close(descriptor)  # its number was given to another process
        if refused is not None:
            why = f"the network namespace of its processes can't be opened: {refused.strerror}"
            raise Gap(str(self.pod), why, _HINT) from refused
        raise Gap(str(self.pod), GONE, "kubectl get pods -o wide shows where it is now; run the runbook again")

    def present(self) -> bool:
        """Whether the pod still has a process here. Reads one file as long as the one that was known last lives."""
        if not belongs(self.pod.cgroup, self._witness, self._proc):
            self._witness = next(iter(processes(self.pod.cgroup, self._proc)), 0)
        return bool(self._witness)


GONE = "no process on this node belongs to it: it has ended or moved since it was chosen, or has not begun"
_HINT = "the Job needs hostPID, SYS_ADMIN and SYS_PTRACE, and a security module that doesn't forbid them"


def processes(uid: str, proc: str = "/proc") -> List[int]:
    """All processes of the pod, oldest first."""
    found = [number for number in _numbers(proc) if belongs(uid, number, proc)]
    return sorted(found, key=lambda number: (start_ticks(number, proc) or 0, number))


def belongs(uid: str, process: int, proc: str = "/proc") -> bool:
    """Whether the process is in the cgroup of the pod of that UID, in any hierarchy; not if there is no such process."""
    try:
        with open(f"{proc}/{process}/cgroup", encoding="ascii", errors="replace") as file:
            return _named(uid).search(file.read()) is not None
    except OSError:
        return False


def _named(uid: str) -> "re.Pattern[str]":
    # systemd's slices have `_` where the UID has `-`, which there means a level.
    spelled = "[-_]".join(re.escape(part) for part in uid.split("-"))
    return re.compile(rf"[/-]pod{spelled}(?:\.slice)?(?:/|$)", re.MULTILINE)


def _numbers(proc: str) -> Iterator[int]:
    return (int(name) for name in os.listdir(proc) if name.isdigit())


def _same(descriptor: int, other: os.stat_result) -> bool:
    this = os.fstat(descriptor)
    return (this.st_dev, this.st_ino) == (other.st_dev, other.st_ino)
