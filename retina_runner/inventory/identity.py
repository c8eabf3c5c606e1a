"""Who we are to a host and how it is known: what ssh_config(5) says of identities and trust, for hosts and bastions alike.

Each of these options is honoured, or refused with the place where it stands. None is passed over: a login by another key
than the one that was meant, or a host that is trusted in another way, is worse than none.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from retina_runner.inventory import ssh_config
from retina_runner.inventory.connection import KNOWN_HOSTS
from retina_runner.inventory.model import Setting

_TEXTS = {
    "hostkeyalias": "host_key_alias", "hostkeyalgorithms": "host_key_algorithms",
    "casignaturealgorithms": "ca_signature_algorithms", "pubkeyacceptedalgorithms": "pubkey_algorithms",
    "pubkeyacceptedkeytypes": "pubkey_algorithms", "ciphers": "ciphers", "macs": "macs", "kexalgorithms": "kex_algorithms",
    "identityagent": "identity_agent", "addressfamily": "address_family", "bindaddress": "bind_address",
    "revokedhostkeys": "revoked_host_keys", "requiredrsasize": "required_rsa_size",
}  # fmt: skip
_FLAGS = {"identitiesonly": "identities_only", "hashknownhosts": "hash_known_hosts"}
_FILES = {"identityfile": "key_files", "certificatefile": "certificate_files", "userknownhostsfile": "known_hosts"}
_REFUSED = {
    "knownhostscommand": ("none", "a program that says which keys are trusted isn't asked here", "put its keys into known_hosts"),
    "pkcs11provider": ("none", "keys of PKCS#11 are used by ssh-agent only", "ssh-add -s PROVIDER, and leave it out"),
    "canonicalizehostname": ("no", "hosts aren't renamed here before they are reached", "give whole names, or ansible_host"),
    "bindinterface": ("", "an interface can't be chosen here", "BindAddress chooses an address"),
}  # fmt: skip
"""An option to the value that means nothing, and why any other can't be honoured."""


def of_options(options: Mapping[str, list[Setting]], told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a Connection that these options say, and the place of each. `told` is what tokens stand for.

    `known_hosts` are the user's files, then the system's.
    """
    fields: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def expanded(text: str) -> str:
        return place(os.path.expanduser(ssh_config.replace_tokens(text, **told)))

    for key, field in (*_TEXTS.items(), *_FLAGS.items(), *_FILES.items()):
        if options.get(key) and field not in fields:
            origins[field] = options[key][0].origin
            value = str(options[key][0].value)
            if key in _FLAGS:
                fields[field] = value.lower() == "yes"
            elif key in _TEXTS:
                fields[field] = _text(field, expanded(value) if field in _PATHS and not _is_word(value) else value)
            elif key != "userknownhostsfile":
                paths = [expanded(str(s.value)) for s in options[key] if str(s.value).lower() != "none"]
                fields[field] = tuple(dict.fromkeys(paths))
    fields["known_hosts"] = (*_known(options, "userknownhostsfile", KNOWN_HOSTS[:2], told),
                             *_known(options, "globalknownhostsfile", KNOWN_HOSTS[2:], told))  # fmt: skip
    return fields, origins


_PATHS = ("identity_agent", "revoked_host_keys")


def _is_word(value: str) -> bool:
    """Words that stand where a path could: nothing, or a variable of the environment."""
    return value.lower() == "none" or value == "SSH_AUTH_SOCK" or value.startswith("$")


def place(path: str) -> str:
    """A path as a run's record keeps it: a relative one is relative to where the command is called, as ssh's and Ansible's
    are, and `retina-run resume` may be called elsewhere. `~` stays."""
    return path if not path or path[0] in "~/" else os.path.abspath(path)


def _text(field: str, value: str) -> Any:
    if field == "required_rsa_size":
        return int(value) if value.isdigit() else 0
    if field == "revoked_host_keys" and value.lower() == "none":
        return ""
    return value


def _known(
    options: Mapping[str, list[Setting]], key: str, default: tuple[str, ...], told: Mapping[str, Any]
) -> tuple[str, ...]:
    if not options.get(key):
        return default
    return files_of(str(options[key][0].value), told)


def files_of(text: str, told: Mapping[str, Any]) -> tuple[str, ...]:
    """Several files with blanks between, as UserKnownHostsFile has them; `none` is none."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    named = (os.path.expanduser(ssh_config.replace_tokens(w, **told)) for w in words)
    return tuple(w if w.lower() == "none" else place(w) for w in named)


def refused(options: Mapping[str, list[Setting]]) -> Iterator[tuple[Setting, str, str, str]]:
    """(setting, option, why, next step) for each option that says something which can't be honoured."""
    for key, (nothing, why, hint) in _REFUSED.items():
        if options.get(key) and str(options[key][0].value).lower() != nothing:
            yield options[key][0], key, why, hint
