"""The little of Ansible's templates that inventories need: `{{ variable }}`, and a secret by `{{ lookup('env', 'NAME') }}`.

Everything else (filters, conditions, other look-ups) only Ansible itself can evaluate; it is refused where such a value
is needed, never guessed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retina_runner.inventory.model import Host

MOST_DEPTH = 10
_BRACES = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_LOOKUP = re.compile(r"""(?:lookup|query)\(\s*['"](?:ansible\.builtin\.)?(env|file)['"]\s*,\s*['"]([^'"]+)['"]\s*\)""")
_NAME = re.compile(r"[A-Za-z_]\w*")


class CannotRender(ValueError):
    """A template that only Ansible can evaluate; the text says what of it."""


def is_template(value: Any) -> bool:
    """Whether a value is text that Ansible would evaluate."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def reference(value: str) -> str | None:
    """`env:NAME` or `file:PATH` for a value that is one such look-up, and nothing else."""
    braces = _BRACES.fullmatch(value.strip())
    found = _LOOKUP.fullmatch(braces[1]) if braces else None
    return f"{found[1]}:{found[2]}" if found else None


def magic(host: Host) -> Mapping[str, Any]:
    """The variables that Ansible sets itself and that inventories use."""
    return {
        "inventory_hostname": host.name,
        "inventory_hostname_short": host.name.partition(".")[0],
        "group_names": sorted(g for g in host.groups if g != "all"),
    }


def render(value: Any, host: Host, depth: int = 0) -> Any:
    """The value with the host's variables put in. Raises CannotRender."""
    if not is_template(value):
        return value
    if depth > MOST_DEPTH:
        raise CannotRender("variables that stand for each other")
    known = {**{n: s.value for n, s in host.settings.items()}, **magic(host)}

    def one(name: str) -> Any:
        if not _NAME.fullmatch(name):
            raise CannotRender("an expression that only Ansible can evaluate")
        if name not in known:
            raise CannotRender(f"there is no variable {name} for this host")
        return render(known[name], host, depth + 1)

    whole = _BRACES.fullmatch(value.strip())
    if whole and "{{" not in whole[1]:
        return one(whole[1])
    text = _BRACES.sub(lambda found: str(one(found[1])), value)
    if is_template(text):
        raise CannotRender("an expression that only Ansible can evaluate")
    return text
