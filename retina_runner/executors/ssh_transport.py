"""The handshake: a socket becomes an encrypted transport to a host whose key is trusted, or it is told what went wrong.

What the other side said before it hung up is kept: sshd says in plain text that there are too many logins at a time, and a
port that isn't sshd's says what it is.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused, ssh_certificate
from retina_runner.executors.ssh_certificate import SIGNATURES, SUFFIX
from retina_runner.executors.ssh_trust import Trust, Untrusted, fingerprint, remember, trust
from retina_runner.inventory.connection import ACCEPT_NEW, Connection

PATIENCE = 6
"""An sshd that has taken the connection gets this many times the limit for connecting, for its banner and for each step
of the login: a host that starts a hundred logins at once is slow, not dead."""
_OVERHEARD_BYTES = 512
RSA_BITS = 1024
_SLOW = ("-ctr", "-cbc")
"""paramiko computes these ciphers' MACs in Python: AES-GCM, several times faster, is asked for first."""
_MOST_WANTED_KEYS = SIGNATURES
"""Host keys in OpenSSH's order, and like OpenSSH without those of SHA-1 unless HostKeyAlgorithms adds them."""


class NotReached(LinkLost, LinkRefused):
    """Never was there: the first attempt failed. To a fleet that hasn't met the node it is final; later it isn't."""

    def __init__(self, what: str, why: str, hint: str):
        LinkRefused.__init__(self, what, why, hint)


class Dropped(LinkLost):
    """The other side let go before the login was done; another attempt may do better."""

    def __init__(self, what: str, why: str, hint: str):
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.hint = what, why, hint


def handshake(to: Connection, sock: Any, where: str) -> Any:
    """A paramiko.Transport over that socket; it has the socket now. Raises LinkRefused, LinkLost."""
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its tracebacks of lost links are no news to anybody
    known = trust(to.address, to.port, to.host_key_alias, to.known_hosts)
    heard = _Overheard(sock)
    session = _session_class()(heard)
    try:
        _choose_algorithms(session, to, known)
    except ValueError as error:
        session.close()
        raise LinkRefused(where, str(error), "leave it out, or name one of these in ssh_config") from None
    limit_s = to.connect_timeout_s * PATIENCE
    session.banner_timeout = session.handshake_timeout = session.auth_timeout = limit_s
    session.channel_timeout = 30
    begun = time.monotonic()
    try:
        session.start_client(timeout=limit_s)
        if not session.initial_kex_done:
            raise TimeoutError
        _trust(session, to, known, where)
    except (LinkRefused, LinkLost):
        session.close()
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        session.close()
        raise _told(where, error, heard, session.farewell, time.monotonic() - begun) from error
    heard.stop()
    return session


@functools.cache
def _session_class() -> Any:
    """paramiko's transport with three of its decisions taken here. Made when it is first needed, as paramiko is imported."""
    import paramiko

    class Session(paramiko.Transport):
        wanted_keys: tuple[str, ...] = ()
        farewell = ""

        @property
        def preferred_keys(self) -> tuple[str, ...]:
            # paramiko asks for certificates last; where an authority is known they come first.
            return self.wanted_keys

        def _parse_disconnect(self, m: Any) -> None:
            # paramiko only logs why the other side hangs up.
            m.get_int()
            self.farewell = m.get_text().strip()

    return Session


class _Overheard:
    """A socket that keeps the first bytes that come, until it is told to `stop`, and notes when the other side closes."""

    def __init__(self, sock: Any):
        self.sock, self.said, self.closed_there = sock, b"", False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def recv(self, size: int) -> bytes:
        try:
            found: bytes = self.sock.recv(size)
        except TimeoutError:
            raise
        except OSError:
            self.closed_there = True
            raise
        self.closed_there = not found
        self.said += found[: _OVERHEARD_BYTES - len(self.said)]
        return found

    def send(self, data: bytes) -> int:
        try:
            sent: int = self.sock.send(data)
        except TimeoutError:
            raise
        except OSError:
            self.closed_there = True
            raise
        return sent

    def stop(self) -> None:
        # From now on at full speed.
        self.recv, self.send = self.sock.recv, self.sock.send  # type: ignore[method-assign]


# -- algorithms -------------------------------------------------------------------------------------------------------


def _choose_algorithms(session: Any, to: Connection, known: Trust) -> None:
    """Raises ValueError where an option leaves nothing that can be done here."""
    options = session.get_security_options()
    possible = tuple(session._key_info)
    default = (*(k + SUFFIX for k in _MOST_WANTED_KEYS), *_MOST_WANTED_KEYS)
    wanted = chosen("HostKeyAlgorithms", to.host_key_algorithms, default, possible)
    session.wanted_keys = _in_order(wanted, known)
    ciphers = tuple(sorted(options.ciphers, key=lambda c: c.endswith(_SLOW)))
    options.ciphers = chosen("Ciphers", to.ciphers, ciphers, ciphers)
    options.digests = chosen("MACs", to.macs, options.digests, options.digests)
    options.kex = chosen("KexAlgorithms", to.kex_algorithms, options.kex, options.kex)
    # RSA keys sign with one of several algorithms; which keys are offered at all is the login's.
    rsa = tuple(p for p in session._preferred_pubkeys if p.startswith("rsa-sha2-"))
    try:
        left = chosen("PubkeyAcceptedAlgorithms", to.pubkey_algorithms, rsa, rsa)
    except ValueError:
        left = ()
    session.disabled_algorithms = {"pubkeys": [p for p in session._preferred_pubkeys if p not in left]}


def chosen(option: str, text: str, default: Sequence[str], possible: Sequence[str]) -> tuple[str, ...]:
    """What an option of ssh_config(5) leaves of what is possible: a list, or `+` `-` `^` and a change of the default.

    Raises ValueError where nothing is left.
    """
    if not text:
        return tuple(default)
    sign, patterns = (text[0], text[1:]) if text[0] in "+-^" else ("", text)
    words = [w.strip() for w in patterns.split(",") if w.strip()]
    meant = [p for w in words for p in possible if fnmatch.fnmatchcase(p, w)]
    if sign == "-":
        found = [d for d in default if d not in meant]
    elif sign == "+":
        found = [*default, *meant]
    elif sign == "^":
        found = [*meant, *default]
    else:
        found = meant
    if not found:
        raise ValueError(f"{option} {text} leaves nothing that can be done here: {', '.join(possible)}")
    return tuple(dict.fromkeys(found))


def _in_order(wanted: Sequence[str], known: Trust) -> tuple[str, ...]:
    """First what can be trusted: certificates where an authority is known, then the types of the host's own known keys."""
    certificates = [w for w in wanted if w.endswith(SUFFIX)] if known.has_authority else []
    plain = [w for w in wanted if not w.endswith(SUFFIX)]
    types = known.key_types
    first = [w for w in plain if w in types or ("rsa" in w and "ssh-rsa" in types)]
    return tuple(dict.fromkeys([*certificates, *first, *plain])) or tuple(wanted)


# -- trust ------------------------------------------------------------------------------------------------------------


def _trust(session: Any, to: Connection, known: Trust, where: str) -> None:
    """Raises LinkRefused."""
    key = session.get_remote_server_key()
    blob = key.public_blob.key_blob if session.host_key_type.endswith(SUFFIX) else None
    try:
        signatures = chosen("CASignatureAlgorithms", to.ca_signature_algorithms, SIGNATURES, SIGNATURES)
        if "rsa" in session.host_key_type and key.get_bits() < (to.required_rsa_size or RSA_BITS):
            raise Untrusted(f"its RSA key of {key.get_bits()} bits is too short (RequiredRSASize)")
        _not_revoked(key.asbytes(), to.revoked_host_keys)
        known.judge(key.asbytes(), blob, time.time(), signatures)
    except Untrusted as error:
        if error.new and to.host_keys == ACCEPT_NEW:
            _remember(known.known_as, key.asbytes(), to, where)
            return
        raise LinkRefused(f"host key of {where}", str(error), _hint(error, to, known)) from None
    except ValueError as error:
        raise LinkRefused(f"host key of {where}", str(error), "leave it out of ssh_config") from None


def _not_revoked(key: bytes, file: str) -> None:
    """RevokedHostKeys of ssh_config(5) in its form as text. Raises Untrusted, also where the file can't be read, as ssh."""
    if not file:
        return
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise Untrusted(f"RevokedHostKeys {file} can't be read: {error.strerror}") from None
    if content.startswith(b"SSHKRL\n\0"):
        raise Untrusted(
            f"RevokedHostKeys {file} is a key revocation list (KRL), which can't be read here; a list of public keys can"
        )
    for line in content.decode("utf-8", "replace").splitlines():
        try:
            if ssh_certificate.blob_of(line) == key:
                raise Untrusted(f"{fingerprint(key)} is in RevokedHostKeys {file}")
        except ValueError:
            continue


def _remember(known_as: str, key: bytes, to: Connection, where: str) -> None:
    file = to.known_hosts[0] if to.known_hosts else "none"
    try:
        if file.lower() == "none":
            raise OSError(0, "there is none")
        remember(known_as, key, file, to.hash_known_hosts)
    except OSError as error:
        raise LinkRefused(f"host key of {where}", f"it is new, and can't be written to known_hosts {file}: {error.strerror}",
                          "UserKnownHostsFile, or retina_known_hosts in the inventory, names another file") from None  # fmt: skip


def _hint(error: Untrusted, to: Connection, known: Trust) -> str:
    if error.changed:
        return f"if that is expected: ssh-keygen -R {known.known_as} -f {error.file}"
    if not error.new:
        return "see ssh_config(5) and sshd(8) for what is said there; the host may need a new key"
    file = to.known_hosts[0] if to.known_hosts else "known_hosts"
    if file.lower() in ("none", os.devnull):
        return (
            f"UserKnownHostsFile={file} leaves nowhere to know it from, and no host is trusted unknown: leave that out, "
            "or name a file by retina_known_hosts in the inventory"
        )
    renamed = f" | sed 's/^[^ ]*/{known.known_as}/'" if to.host_key_alias else ""
    return (
        f"compare, then: ssh-keyscan -p {to.port} {to.address}{renamed} >> {file}; "
        "or set retina_host_keys: accept-new in the inventory"
    )


# -- what went wrong ---------------------------------------------------------------------------------------------------


def _told(where: str, error: BaseException, heard: _Overheard, farewell: str, took_s: float) -> LinkLost | LinkRefused:
    """The handshake's end in words. What may go better the next time is a LinkLost."""
    first = heard.said.split(b"\n", 1)[0].decode("utf-8", "replace").strip()[:120]
    text = str(error)
    silent = "" if heard.closed_there else f" in {took_s:.0f} s"
    if "ncompatible ssh peer" in text or "no acceptable" in text.lower():
        return LinkRefused(where, text, "an algorithm that both sides know is missing; `sshd -T` there shows its own")
    if farewell:
        return Dropped(where, f"it hung up: {farewell}", "its sshd's log says more")
    if first.startswith(("SSH-2.0", "SSH-1.99")):
        if silent:
            return Dropped(where, f"its sshd fell silent in the handshake: nothing{silent}",
                           "is the host overloaded, or the link cut?")  # fmt: skip
        return Dropped(where, "the connection broke in the handshake: " + (text or "closed by the other side"),
                       "its sshd's log says more, if it was sshd that closed it")  # fmt: skip
    if "MaxStartups" in first:
        return Dropped(where, "its sshd has as many logins under way as it takes (MaxStartups)",
                       "lower --forks, or raise MaxStartups there")  # fmt: skip
    if "Not allowed at this time" in first:
        return Dropped(where, "its sshd takes nothing from this address for a while (PerSourcePenalties)",
                       "logins that failed before this one are the reason: wait")  # fmt: skip
    if first:
        return NotReached(where, f"no sshd answers there; it says: {first}", "is that sshd's port?")
    if silent:
        return Dropped(where, f"connected, and no word from sshd{silent}",
                       "is the host overloaded, or something else on that port?")  # fmt: skip
    return Dropped(where, "closed before its sshd said a word: beyond MaxStartups it does so, or a filter is in the way",
                   "lower --forks, or raise MaxStartups there; its sshd's log says which")  # fmt: skip
