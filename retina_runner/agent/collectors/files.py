"""files: copies of regular files, bounded; never of devices, and never of secrets by accident.

A file is opened first and judged by what was opened (no-follow, non-blocking): a path that is swapped for a link, a fifo
or a device meanwhile can do no harm.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
from typing import BinaryIO, Iterator, List, Tuple

from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, PARTIAL, Context, Gap, Verdict

READ_BYTES = 64 << 10
MOST_FILES = 2000
SENSITIVE: Tuple[str, ...] = (
    "/etc/shadow*", "/etc/gshadow*", "*/.ssh/id_*", "/etc/ssh/ssh_host_*_key", "*.key", "*.pem", "*/private/*", "*/.aws/*",
    "*/.azure/*", "*/.kube/*", "*/.netrc", "*/.pgpass", "/etc/wireguard/*", "/etc/ipsec.secrets", "/etc/krb5.keytab",
    "/proc/*/environ", "/proc/kcore", "/proc/kmsg", "/proc/*/mem", "/var/run/secrets/*", "/run/secrets/*",
)  # fmt: skip


class Files(Collector):
    """See `Collector` for when each hook runs."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._options = context.options
        self._when = self._options["when"]
        self._lost: List[str] = []

    def prepare(self) -> None:
        if "before" in self._when:
            self._copy_all("before")

    def finish(self) -> None:
        if "after" in self._when:
            self._copy_all("after")
        if self._lost:
            raise RuntimeError(f"no space left on the node for {len(self._lost)} files: {', '.join(self._lost[:3])}")

    def _copy_all(self, when: str) -> None:
        verdict = self.context.verdict(Verdict(f"files/{when}", COMPLETE))
        with verdict.at_stake():
            left = self._options["total_size"]
            for path in self._matches():
                try:
                    left -= self._copy(path, f"files/{when}{path}", left, verdict)
                except Gap as gap:
                    self.context.skip(gap.what, gap.why, gap.hint)
                    verdict.lower(PARTIAL, f"{path}: {gap.why}")
                except OSError as error:
                    self._lost.append(path)
                    verdict.lower(PARTIAL, f"{path}: {error.strerror}")

    def _copy(self, path: str, to: str, left: int, verdict: Verdict) -> int:
        """Its bytes that were copied, `left` at most. Raises Gap for what isn't, OSError for what has no room here."""
        with self._open(path) as file:
            size = os.fstat(file.fileno()).st_size
            most = min(self._options["max_size"], left)
            cut = size > most
            if cut and (not self._options["tail"] or most <= 0):
                which = "total_size" if left < self._options["max_size"] else "max_size"
                raise Gap(path, f"has {size} B, more than {which} leaves", "tail: true keeps its end")
            if cut:
                file.seek(size - most)
            with self.context.stream(to) as artefact:
                for chunk in _chunks(path, file, most):
                    artefact.write(chunk)
        if cut:
            verdict.lower(PARTIAL, f"{path}: only its last {artefact.size_bytes} B")
        return artefact.size_bytes

    def _matches(self) -> List[str]:
        found: List[str] = []
        for pattern in self._options["paths"]:
            paths = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
            if not paths:
                self.context.skip(pattern, "no file matches")
            for path in paths:
                path = os.path.normpath(path)
                if path not in found and not os.path.isdir(path):
                    found.append(path)
        if len(found) > MOST_FILES:
            self.context.skip("files", f"{len(found)} files match; only the first {MOST_FILES} are copied")
        return found[:MOST_FILES]

    def _open(self, path: str) -> BinaryIO:
        """Raises Gap for what isn't copied."""
        real = os.path.realpath(path)
        if not self._options["allow_sensitive"] and any(
            fnmatch.fnmatchcase(p, s) for p in (path, real) for s in SENSITIVE
        ):
            raise Gap(path, "is known to hold secrets", "allow_sensitive: true copies it all the same")
        try:
            # The path as it resolved: a link to a file is followed once, knowingly; a link put there since isn't.
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            why = "is a link that appeared meanwhile" if error.errno == errno.ELOOP else error.strerror or str(error)
            raise Gap(path, why) from error
        file: BinaryIO = os.fdopen(descriptor, "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise Gap(path, "is not a regular file")
        return file


def _chunks(path: str, file: BinaryIO, most: int) -> Iterator[bytes]:
    """What there is from here on, so many bytes at most. Raises Gap when it can't be read."""
    while most > 0:
        try:
            chunk = file.read(min(READ_BYTES, most))
        except OSError as error:
            raise Gap(path, error.strerror or str(error)) from error
        if not chunk:
            return
        most -= len(chunk)
        yield chunk
