"""OpenSSH certificates (PROTOCOL.certkeys): what one says, whether it says so truly, and whether it does for a host.

The rules are those of OpenSSH's sshkey_cert_check_authority; paramiko verifies who signed.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

SUFFIX = "-cert-v01@openssh.com"
SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""With which an authority may have signed: OpenSSH's CASignatureAlgorithms without those of security keys. No SHA-1."""
_USER, _HOST = 1, 2
_FIELDS = {"ssh-rsa": 2, "ssh-dss": 4, "ssh-ed25519": 1, "sk-ssh-ed25519@openssh.com": 2,
           "sk-ecdsa-sha2-nistp256@openssh.com": 3}  # fmt: skip
"""How many strings a public key of that type is, after its type; the others, ecdsa-sha2-*, are two."""


class NoCertificate(ValueError):
    """These bytes are no certificate that can be read."""


@dataclass(frozen=True)
class Certificate:
    """One certificate. `key` and `authority` are public keys as on the wire; times are Unix seconds."""

    kind: int
    key: bytes
    authority: bytes
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: tuple[str, ...]
    signed: bytes
    signature: bytes

    @property
    def signed_with(self) -> str:
        return type_of(self.signature)

    def out_of_time(self, now: float) -> str:
        """Why it isn't valid at that Unix time; empty where it is."""
        if now < self.valid_after:
            return f"it isn't valid before {_time(self.valid_after)}"
        if now >= self.valid_before:
            return f"it expired at {_time(self.valid_before)}"
        return ""

    def unfit_for_host(self, name: str, now: float, signatures: tuple[str, ...] = SIGNATURES) -> str:
        """Why it doesn't vouch for a host of that name; empty where it does. One without principals is for every host."""
        if self.kind != _HOST:
            return "it is a user's certificate, not a host's"
        why = self._wrong(signatures) or self.out_of_time(now)
        if why:
            return why
        if self.critical:
            return f"it has critical options that aren't known for hosts: {', '.join(self.critical)}"
        if self.principals and name not in self.principals:
            return f"it is for {', '.join(self.principals)}, not for {name}"
        return ""

    def _wrong(self, signatures: tuple[str, ...]) -> str:
        import paramiko

        if self.signed_with not in signatures:
            return f"it is signed with {self.signed_with}, which isn't accepted"
        try:
            authority = paramiko.PKey.from_type_string(type_of(self.authority), self.authority)
            holds = authority.verify_ssh_sig(self.signed, paramiko.Message(self.signature))
        except Exception as error:  # a key that is none, a signature that is none: each raises what it likes
            return f"its authority's {type_of(self.authority)} signature can't be verified: {error}"
        return "" if holds else "its signature isn't its authority's"


def read(blob: bytes) -> Certificate:
    """The certificate in these bytes, as they stand on the wire and in a file's base64. Raises NoCertificate."""
    try:
        return _read(blob)
    except (ValueError, struct.error) as error:
        raise NoCertificate(str(error)) from None


def _read(blob: bytes) -> Certificate:
    kind_of_key = type_of(blob)
    if not kind_of_key.endswith(SUFFIX):
        raise ValueError(f"{kind_of_key} is no certificate")
    plain = kind_of_key.removesuffix(SUFFIX)
    _, rest = string(blob)
    _, rest = string(rest)  # the nonce
    key = _packed(plain.encode())
    for _ in range(_FIELDS.get(plain, 2)):
        field, rest = string(rest)
        key += _packed(field)
    _serial, kind = struct.unpack_from(">QI", rest)
    key_id, rest = string(rest[12:])
    principals, rest = string(rest)
    after, before = struct.unpack_from(">QQ", rest)
    critical, rest = string(rest[16:])
    _, rest = string(rest)  # extensions
    _, rest = string(rest)  # reserved
    authority, rest = string(rest)
    signed = blob[: len(blob) - len(rest)]
    signature, rest = string(rest)
    if rest:
        raise ValueError("something follows its signature")
    options = list(_strings(critical))
    return Certificate(
        kind, key, authority, key_id.decode("utf-8", "replace"), tuple(p.decode("utf-8", "replace") for p in _strings(principals)),
        after, before, tuple(o.decode("utf-8", "replace") for o in options[::2]), signed, signature,
    )  # fmt: skip


def type_of(blob: bytes) -> str:
    """The type that a public key, a certificate or a signature begins with. Raises ValueError."""
    return string(blob)[0].decode("ascii")


def line_of(blob: bytes) -> str:
    """`TYPE BASE64`, as public keys and certificates stand in files."""
    return f"{type_of(blob)} {base64.b64encode(blob).decode()}"


def blob_of(text: str) -> bytes:
    """The bytes of a line `TYPE BASE64 …`. Raises ValueError."""
    words = text.split(None, 2)
    if len(words) < 2:
        raise ValueError("it is no public key")
    blob = base64.b64decode(words[1], validate=True)
    if type_of(blob) != words[0]:
        raise ValueError(f"it says {words[0]} and holds {type_of(blob)}")
    return blob


def string(blob: bytes) -> tuple[bytes, bytes]:
    """The string (RFC 4251) that these bytes begin with, and the rest. Raises ValueError."""
    size = int.from_bytes(blob[:4], "big")
    if len(blob) < 4 + size:
        raise ValueError("it is cut off")
    return blob[4 : 4 + size], blob[4 + size :]


def _strings(blob: bytes) -> Iterator[bytes]:
    while blob:
        found, blob = string(blob)
        yield found


def _packed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _time(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"Unix time {unix_s}"
