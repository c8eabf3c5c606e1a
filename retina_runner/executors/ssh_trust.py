"""Which host keys are trusted: known_hosts read and judged as OpenSSH does (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

Patterns, hashed names, `[host]:port`, `@cert-authority` and `@revoked` mean what they mean to ssh(1), but nobody is ever
asked. A host of which other keys are known isn't new, whatever their type.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import functools
import hashlib
import hmac
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retina_runner.executors import ssh_certificate
from retina_runner.executors.ssh_certificate import SIGNATURES, Certificate, NoCertificate

KEY, AUTHORITY, REVOKED = "", "@cert-authority", "@revoked"
_appending = threading.Lock()


class Untrusted(Exception):
    """A host key that isn't trusted. `changed` where other keys of the host are known; `file` is where."""

    def __init__(self, why: str, *, new: bool = False, changed: bool = False, file: str = ""):
        super().__init__(why)
        self.new, self.changed, self.file = new, changed, file


@dataclass(frozen=True)
class Entry:
    """One line that is about a host."""

    marker: str
    key: bytes
    file: str
    number: int

    @property
    def type(self) -> str:
        return ssh_certificate.type_of(self.key)


@dataclass(frozen=True)
class Trust:
    """What the files say of one host. `name` is what a certificate must be for: without a port.

    `entries` are of the name under which the host is looked up, `without_port` of the same one without its port: as ssh
    does, a key that is known there is trusted too.
    """

    name: str
    known_as: str
    entries: tuple[Entry, ...]
    without_port: tuple[Entry, ...] = ()

    @property
    def has_authority(self) -> bool:
        return any(e.marker == AUTHORITY for e in (*self.entries, *self.without_port))

    @property
    def key_types(self) -> tuple[str, ...]:
        """Types of the keys that are known."""
        return tuple(dict.fromkeys(e.type for e in (*self.entries, *self.without_port) if e.marker == KEY))

    def judge(
        self, key: bytes, certificate: bytes | None, now: float, signatures: tuple[str, ...] = SIGNATURES
    ) -> None:
        """Return where the host may be trusted. `key` is its plain key. Raises Untrusted."""
        read: Certificate | None = None
        about = ""
        if certificate is not None:
            try:
                read = ssh_certificate.read(certificate)
            except NoCertificate as error:
                about = f"; its certificate can't be read: {error}"
        if read is not None and read.key != key:  # what was proved is possession of `key`
            raise Untrusted("its certificate is another key's")
        for entries in (self.entries, self.without_port):
            self._revoked(entries, key, read)
        kind = ssh_certificate.type_of(key)
        for entries in (self.entries, self.without_port):
            if read is not None and any(e.marker == AUTHORITY and e.key == read.authority for e in entries):
                why = read.unfit_for_host(self.name, now, signatures)
                if not why:
                    return
                about = f"; its certificate {read.key_id!r} doesn't help: {why}"
            elif read is not None and not about:
                about = f"; its certificate {read.key_id!r} is of an authority that isn't known, {fingerprint(read.authority)}"
            keys = [e for e in entries if e.marker == KEY]
            if any(e.key == key for e in keys):
                return
            if keys:
                break  # it has changed at this port: what is known of another one is no matter
        offered = f"{kind} {fingerprint(key)}"
        others = [e for e in self.entries if e.marker == KEY]
        others = [e for e in others if e.type == kind] or others
        if others:
            raise Untrusted(
                f"it has changed: known_hosts has {others[0].type} {fingerprint(others[0].key)} "
                f"({others[0].file}:{others[0].number}), the host says {offered}{about}", changed=True, file=others[0].file,
            )  # fmt: skip
        raise Untrusted(f"it isn't known ({offered}{about})", new=True)

    @staticmethod
    def _revoked(entries: Sequence[Entry], key: bytes, certificate: Certificate | None) -> None:
        for entry in entries:
            if entry.marker != REVOKED:
                continue
            if entry.key == key:
                raise Untrusted(f"{fingerprint(key)} is marked @revoked ({entry.file}:{entry.number})")
            if certificate is not None and entry.key == certificate.authority:
                raise Untrusted(
                    f"the authority of its certificate, {fingerprint(entry.key)}, is marked @revoked "
                    f"({entry.file}:{entry.number})"
                )


def trust(address: str, port: int, alias: str, files: Sequence[str]) -> Trust:
    """What these files say of a host. A file that isn't there says nothing; `none` is no file, as in ssh_config(5)."""
    name = (alias or address).lower()
    known_as = name if alias or port == 22 else f"[{name}]:{port}"
    read = [found for file in files if (found := _load(file)) is not None]
    entries = tuple(entry for file in read for entry in file.about(known_as))
    without_port = tuple(entry for file in read for entry in file.about(name)) if known_as != name else ()
    return Trust(name, known_as, entries, without_port)


def remember(known_as: str, key: bytes, file: str, hashed: bool) -> None:
    """Write a host's key down at the end of the file, which is made if it isn't there. Raises OSError."""
    path = Path(file).expanduser()
    line = f"{hash_name(known_as, os.urandom(20)) if hashed else known_as} {ssh_certificate.line_of(key)}\n".encode()
    with _appending:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as written:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            written.write(line)


def hash_name(name: str, salt: bytes) -> str:
    """A name as HashKnownHosts writes it: `|1|SALT|HMAC-SHA1`."""
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class _Line:
    marker: str
    names: str
    key: str
    number: int


@dataclass(frozen=True)
class _File:
    """One known_hosts file. A fleet asks it hundreds of times: names without wildcards are looked up, not compared."""

    path: str
    plain: Mapping[str, tuple[_Line, ...]]
    others: tuple[_Line, ...]

    def about(self, name: str) -> Iterator[Entry]:
        """The lines about that name, in their order."""
        found = [*self.plain.get(name, ()), *(line for line in self.others if _names(line.names, name))]
        for line in sorted(found, key=lambda line: line.number):
            with contextlib.suppress(ValueError):  # a line that is none is passed over, as ssh does
                yield Entry(line.marker, ssh_certificate.blob_of(line.key), self.path, line.number)


def _load(file: str) -> _File | None:
    if file.lower() == "none":
        return None
    try:
        found = os.stat(os.path.expanduser(file))
        return _parsed(file, found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError:
        return None


@functools.lru_cache(maxsize=32)
def _parsed(file: str, *_version: int) -> _File:
    plain: dict[str, tuple[_Line, ...]] = {}
    others: list[_Line] = []
    with open(os.path.expanduser(file), encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, 1):
            words = text.split(None, 2)
            marker = KEY
            if words and words[0].startswith("@"):
                marker, words = words[0], text.split(None, 3)[1:]
            if len(words) < 3 or words[0].startswith("#") or marker not in (KEY, AUTHORITY, REVOKED):
                continue
            names = words[0]
            line = _Line(marker, names, f"{words[1]} {words[2]}", number)
            if names.startswith("|") or any(c in names for c in "*?!"):
                others.append(line)
                continue
            for name in names.lower().split(","):
                plain[name] = (*plain.get(name, ()), line)
    return _File(file, plain, tuple(others))


def _names(patterns: str, name: str) -> bool:
    """PATTERNS of ssh_config(5), or one hashed name: whether they mean this name."""
    if patterns.startswith("|"):
        try:
            _, version, salt, _digest = patterns.split("|")
            return version == "1" and hmac.compare_digest(hash_name(name, base64.b64decode(salt)), patterns)
        except ValueError:
            return False
    means = False
    for pattern in patterns.lower().split(","):
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            means = True
    return means
