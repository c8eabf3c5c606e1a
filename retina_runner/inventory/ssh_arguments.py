"""The words of ansible_ssh_common_args and ansible_ssh_extra_args as ssh_config(5) options. Pure.

What changes how a host is reached is honoured; what only tunes OpenSSH's own client (multiplexing, keep-alive) is
passed over; anything else is refused, since leaving it out would reach another place or in another way.
"""

from __future__ import annotations

import shlex

HONOURED = frozenset(
    ["hostname", "port", "user", "proxyjump", "proxycommand", "stricthostkeychecking", "connecttimeout",
     "identityfile", "certificatefile", "identitiesonly", "identityagent", "userknownhostsfile", "globalknownhostsfile",
     "hostkeyalias", "hashknownhosts", "revokedhostkeys", "requiredrsasize", "addressfamily", "bindaddress",
     "ciphers", "kexalgorithms", "macs", "hostkeyalgorithms", "casignaturealgorithms", "pubkeyacceptedalgorithms",
     "pubkeyacceptedkeytypes"]
)  # fmt: skip
TUNING = frozenset(
    ["controlmaster", "controlpersist", "controlpath", "serveraliveinterval", "serveralivecountmax", "compression",
     "tcpkeepalive", "loglevel", "batchmode", "preferredauthentications", "forwardagent", "forwardx11", "requesttty",
     "connectionattempts", "updatehostkeys", "checkhostip", "visualhostkey", "addkeystoagent", "ipqos", "sendenv",
     "passwordauthentication", "pubkeyauthentication", "kbdinteractiveauthentication", "gssapiauthentication",
     "gssapidelegatecredentials", "exitonforwardfailure", "numberofpasswordprompts"]
)  # fmt: skip
_VALUED = {"J": "proxyjump", "p": "port", "l": "user", "i": "identityfile", "F": "configfile"}
_LISTS = ("userknownhostsfile", "globalknownhostsfile", "host", "match", "include")
_FLAGS = frozenset("CqTtvxXYaA46nNkK")


def options(text: str) -> list[tuple[str, str]]:
    """(option in lower case, value) in the order of the words; `-F` is `configfile`. Raises ValueError with the word."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError("a quotation mark without its other one") from None
    found: list[tuple[str, str]] = []
    while words:
        word = words.pop(0)
        letter, rest = word[1:2], word[2:]
        if word.startswith("-") and letter and letter in _FLAGS and set(word[1:]) <= _FLAGS:
            continue
        if not word.startswith("-") or (letter != "o" and letter not in _VALUED):
            raise ValueError(f"ssh's {word} can't be honoured here")
        if not rest:
            if not words:
                raise ValueError(f"{word} needs a value")
            rest = words.pop(0)
        if letter != "o":
            found.append((_VALUED[letter], rest))
            continue
        key, value = split_option(rest)
        if key in HONOURED:
            found.append((key, value))
        elif key not in TUNING:
            raise ValueError(f"ssh's option {rest.replace('=', ' ').split()[0]} can't be honoured here")
    return found


def split_option(text: str) -> tuple[str, str]:
    """`Key=value` or `Key value` as ssh_config(5) has it; the key in lower case, one pair of quotes taken off the value.

    Not off a list, each word of which may have its own.
    """
    key, separator, value = text.strip().partition("=")
    if not separator or " " in key.strip() or "\t" in key.strip():
        pieces = text.strip().split(None, 1)
        key, value = pieces[0], pieces[1].lstrip("= ") if len(pieces) > 1 else ""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"' and key.strip().lower() not in _LISTS:
        value = value[1:-1]
    return key.strip().lower(), value
