"""The login: keys, certificates and agents in OpenSSH's sense of ssh_config(5), then the password; or why nobody gets in.

Order: certificates and keys that the inventory or ssh_config names, the agent's other ones, the user's own in ~/.ssh.
With IdentitiesOnly the agent only lends what is named. sshd ends a login after a few wrong ones (MaxAuthTries), so what is
named comes first. What can't be used here is passed over as ssh does, and told when nobody gets in.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import getpass
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retina_runner.executors import LinkLost, LinkRefused, ssh_certificate
from retina_runner.executors.ssh_transport import Dropped, chosen
from retina_runner.executors.ssh_trust import fingerprint
from retina_runner.inventory.connection import Connection
from retina_runner.secrets import SecretError, read_secret

DEFAULT_KEYS = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
"""ssh's own, without those of security keys, which only an agent can use here."""
PUBLIC_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
               "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True)
class Identity:
    """Something to log in with. `key` is paramiko's, with the certificate in it where there is one."""

    key: Any
    told: str


@dataclass
class Identities:
    """What there is to log in with, in order, and what was passed over and why."""

    found: list[Identity] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    _offered: set[bytes] = field(default_factory=set)

    def add(self, key: Any, told: str) -> None:
        blob = key.public_blob.key_blob if key.public_blob else key.asbytes()
        if blob not in self._offered:
            self._offered.add(blob)
            self.found.append(Identity(key, told))


def identities(to: Connection, passphrase: str | None, with_defaults: bool) -> Identities:
    """Everything that may be offered, in order. Raises LinkRefused where an agent is named that isn't there."""
    found = Identities()
    lent = (
        {key.blob: _lent(key) for key in _agent_keys(to)}
        if with_defaults or to.key_files or to.certificate_files
        else {}
    )
    named = [os.path.expanduser(f) for f in to.key_files]
    _files(found, named, [os.path.expanduser(f) for f in to.certificate_files], lent, passphrase, said=True)
    if with_defaults:
        if not to.identities_only:
            for blob, key in lent.items():
                found.add(key, f"the agent's {key.comment or fingerprint(blob)}")
        if not named:
            _files(found, [os.path.expanduser(f) for f in DEFAULT_KEYS], [], lent, passphrase, said=False)
    return found


def _files(
    into: Identities, keys: Sequence[str], certificates: Sequence[str], lent: dict[bytes, Any], passphrase: str | None,
    *, said: bool,
) -> None:  # fmt: skip
    """Keys of files, or of the agent where it has the same, each after its certificates."""
    usable: dict[bytes, tuple[Any, str]] = {}
    for path in keys:
        public = _public_of(path)
        try:
            key = _private(path, passphrase)
            usable.setdefault(key.asbytes(), (key, path))
        except (OSError, ValueError) as error:
            if public in lent:
                usable.setdefault(public, (lent[public], f"{path}, by the agent"))
            elif said or not isinstance(error, FileNotFoundError):
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                into.passed_over.append(f"{path}: {why}")
    for path in (*certificates, *(f"{k}-cert.pub" for k in keys)):
        named = path in certificates
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                blob = ssh_certificate.blob_of(file.read())
            certificate = ssh_certificate.read(blob)
        except (OSError, ValueError) as error:
            if named or not isinstance(error, OSError):
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                into.passed_over.append(f"certificate {path}: {why}")
            continue
        key = usable[certificate.key][0] if certificate.key in usable else lent.get(certificate.key)
        if key is None:
            into.passed_over.append(f"certificate {path}: no key that it is for")
            continue
        late = certificate.out_of_time(time.time())
        into.add(_with_certificate(key, blob), f"certificate {path}" + (f" ({late})" if late else ""))
    for key, path in usable.values():
        into.add(key, path)


def _private(path: str, passphrase: str | None) -> Any:
    """Raises OSError, ValueError with what is wrong."""
    import paramiko

    with open(path, "rb"):
        pass
    public = _public_of(path)
    kind = ssh_certificate.type_of(public) if public else ""
    if kind.startswith("sk-"):
        raise ValueError(f"{kind} is on a security key, which only an agent can use here: ssh-add {path}")
    why = "no private key that can be read here"
    for of_type in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return of_type.from_private_key_file(path, passphrase)
        except paramiko.PasswordRequiredException:
            raise ValueError(
                "encrypted, and no passphrase given (retina_key_passphrase: env:NAME or file:PATH)"
            ) from None
        except (paramiko.SSHException, ValueError, IndexError) as error:
            if "decrypt" in str(error) or "passphrase" in str(error).lower() or "checkint" in str(error).lower():
                raise ValueError("the passphrase is wrong (retina_key_passphrase)") from None
            if kind and of_type.__name__.startswith(_CLASSES.get(kind.split("-nistp")[0], "?")):
                why = str(error) or type(error).__name__
    raise ValueError(why)


_CLASSES = {"ssh-ed25519": "Ed25519", "ecdsa-sha2": "ECDSA", "ssh-rsa": "RSA"}


def _public_of(path: str) -> bytes:
    """The public half of a key file, without its passphrase: from an OpenSSH private key, or beside it; empty if unknown."""
    for file in (path, f"{path}.pub"):
        with contextlib.suppress(OSError, ValueError):
            with open(file, encoding="ascii", errors="replace") as opened:
                text = opened.read(1 << 16)
            if not text.startswith("-----"):
                return ssh_certificate.blob_of(text)
            if text.startswith(_OPENSSH):
                raw = base64.b64decode("".join(text.split("\n")[1:]).partition("-")[0])
                # cipher, kdf, its options, the number of keys, the public one (PROTOCOL.key)
                rest = raw.removeprefix(_MAGIC)
                for _ in range(3):
                    rest = ssh_certificate.string(rest)[1]
                return ssh_certificate.string(rest[4:])[0]
    return b""


def _with_certificate(key: Any, blob: bytes) -> Any:
    """The same key, offered as its certificate."""
    import paramiko

    lent = isinstance(key, paramiko.AgentKey)
    certified: Any = paramiko.AgentKey(key.agent, key.blob, key.comment) if lent else copy.copy(key)
    certified.public_blob = paramiko.pkey.PublicBlob(ssh_certificate.type_of(blob), blob)
    return certified


# -- the agent --------------------------------------------------------------------------------------------------------


def _agent_keys(to: Connection) -> Iterator[Any]:
    """The keys of the agent that IdentityAgent or SSH_AUTH_SOCK names. Raises LinkRefused for one that is named and away."""
    import paramiko

    named = to.identity_agent
    if named.lower() == "none":
        return
    path = os.environ.get("SSH_AUTH_SOCK", "") if named in ("", "SSH_AUTH_SOCK") else named
    if path.startswith("$"):
        path = os.environ.get(path.lstrip("${").rstrip("}"), "")
    if not path:
        return
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(to.connect_timeout_s)
        connection.connect(os.path.expanduser(path))
        agent: Any = paramiko.agent.AgentSSH()
        agent._connect(connection)
    except (OSError, paramiko.SSHException) as error:
        if named:
            raise LinkRefused(f"agent {path}", str(error), "IdentityAgent in ssh_config names it") from None
        return
    yield from agent.get_keys()


def _lent(key: Any) -> Any:
    """A key of the agent, also one whose type only the agent knows (security keys)."""
    if key.inner_key is not None:
        return key
    certified = key.get_name().endswith(ssh_certificate.SUFFIX)
    if certified:
        return _with_certificate(key, key.blob)
    key.public_blob = None
    return key


# -- logging in -------------------------------------------------------------------------------------------------------


def login(session: Any, to: Connection, where: str) -> None:
    """Authenticate over that transport. Raises LinkRefused with everything that was tried, LinkLost."""
    import paramiko

    try:
        password = read_secret(to.password).reveal() if to.password else None
        passphrase = read_secret(to.key_passphrase).reveal() if to.key_passphrase else None
    except SecretError as error:
        raise LinkRefused("credentials", str(error), "it is named in the inventory") from None
    offer = identities(to, passphrase or password, with_defaults=not password)
    offer = _accepted(offer, to)
    if not offer.found and not password:
        raise _nothing_to_offer(offer)
    user = to.user or getpass.getuser()
    tried: list[str] = []
    allowed: set[str] = set()
    try:
        for identity in offer.found:
            try:
                left = session.auth_publickey(user, identity.key)
            except paramiko.BadAuthenticationType as error:
                allowed = set(error.allowed_types)
                break
            except paramiko.AuthenticationException as error:
                _still_there(session, error, where, user, tried)
                tried.append(identity.told)
                continue
            if not left:
                return
            tried.append(f"{identity.told} (accepted)")
            allowed = set(left)
            if "publickey" not in left:
                break
        if password:
            left = session.auth_password(user, password)
            if not left:
                return
            allowed = set(left)
            tried.append("password (accepted)")
    except paramiko.BadAuthenticationType as error:
        allowed = set(error.allowed_types)
    except paramiko.AuthenticationException as error:
        _still_there(session, error, where, user, tried)
        tried.append("password")
    except (paramiko.SSHException, EOFError, OSError) as error:
        why = str(error) or type(error).__name__
        raise Dropped(where, f"the connection broke in the login: {why}", "its sshd's log may say more") from error
    raise _refused(where, user, tried, offer, allowed, bool(password))


def _accepted(offer: Identities, to: Connection) -> Identities:
    """Without those whose algorithm PubkeyAcceptedAlgorithms leaves out. Raises LinkRefused where none can be left."""
    if not to.pubkey_algorithms:
        return offer
    every = (*PUBLIC_KEYS, *(k + ssh_certificate.SUFFIX for k in PUBLIC_KEYS))
    try:
        accepted = chosen("PubkeyAcceptedAlgorithms", to.pubkey_algorithms, every, every)
    except ValueError as error:
        raise LinkRefused("credentials", str(error), "leave it out, or name one of these in ssh_config") from None
    left = Identities(passed_over=list(offer.passed_over))
    for identity in offer.found:
        kind = identity.key.public_blob.key_type if identity.key.public_blob else identity.key.get_name()
        signed_by = [kind.replace("ssh-rsa", f"rsa-sha2-{bits}") for bits in (512, 256)]  # the same for others
        if set(signed_by) & set(accepted):
            left.found.append(identity)
        else:
            left.passed_over.append(f"{identity.told}: PubkeyAcceptedAlgorithms leaves {kind} out")
    return left


def _still_there(session: Any, error: BaseException, where: str, user: str, tried: Sequence[str]) -> None:
    """Raises what ended the login, where that wasn't a wrong key."""
    if "timeout" in str(error).lower():
        raise Dropped(where, f"its sshd fell silent in the login of {user}", "is the host overloaded?")
    if session.is_active():
        return
    if "Too many authentication failures" in session.farewell:
        raise LinkRefused(
            f"authentication at {where}", f"refused for user {user}: too many keys that are none of its (MaxAuthTries)",
            f"name the right one (ansible_ssh_private_key_file, IdentityFile), or IdentitiesOnly yes; tried {', '.join(tried)}",
        )  # fmt: skip
    if session.farewell:
        why = f"refused for user {user}: {session.farewell}"
        raise LinkRefused(f"authentication at {where}", why, "its sshd's log says more")
    raise Dropped(
        where, f"closed in the login of {user}", "LoginGraceTime, or a link that was cut; its sshd's log says which"
    )


def _nothing_to_offer(offer: Identities) -> LinkLost | LinkRefused:
    if offer.passed_over:
        what, _, why = offer.passed_over[0].partition(": ")
        what = what if what.startswith("certificate ") else f"key {what}"
        more = "".join(f"; {p}" for p in offer.passed_over[1:])
        return LinkRefused(what, why + more, "ansible_ssh_private_key_file or IdentityFile names it")
    return LinkRefused(
        "credentials", "no key, no agent and no password to log in with",
        "ansible_ssh_private_key_file, ssh-agent(1), or retina_password: env:NAME",
    )  # fmt: skip


def _refused(
    where: str, user: str, tried: Sequence[str], offer: Identities, allowed: set[str], had_password: bool
) -> LinkRefused:
    why = f"refused for user {user}"
    done = [t for t in tried if t.endswith("(accepted)")]
    if done:
        why += f": {', '.join(done)}, and it wants {' or '.join(sorted(allowed))} besides"
    elif tried:
        why += f": tried {', '.join(tried)}"
    elif allowed:
        why += f": it takes {', '.join(sorted(allowed))} only"
    if offer.passed_over:
        why += f"; passed over {'; '.join(offer.passed_over)}"
    if allowed and not had_password and allowed <= {"password", "keyboard-interactive"}:
        return LinkRefused(f"authentication at {where}", why, "retina_password: env:NAME in the inventory")
    return LinkRefused(
        f"authentication at {where}", why, f"is the key in {user}'s authorized_keys there, and the user the right one?"
    )
