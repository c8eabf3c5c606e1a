"""Where a store keeps what: the key of each archive, made from the target's template, and of the small files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retina_runner.naming import without_ending
from retina_runner.uploads import NotStored, Parcel

DEFAULT_KEY = "{prefix}/{run}/{archive}"
_FIELD = re.compile(r"\{(\w*)\}")


class Keyed:
    """The part of `uploads.Target` that asks nobody, of targets with `prefix` and `key` among their options."""

    def __init__(self, options: Mapping[str, Any]):
        self._below, self._template = str(options.get("prefix") or ""), str(options.get("key") or DEFAULT_KEY)

    @property
    def prefix(self) -> str:
        return fixed_part(self._template, self._below)

    def key_for(self, parcel: Parcel, name: str = "") -> str:
        key = key_of(self._template, self._below, parcel)
        return beside(key, name) if name else key


def key_of(template: str, prefix: str, parcel: Parcel) -> str:
    """The archive's key. Raises NotStored for a field that isn't one."""
    fields = {"prefix": prefix.strip("/"), "run": parcel.run, "archive": parcel.path.name, "node": parcel.node}

    def put(found: re.Match[str]) -> str:
        if found[1] not in fields:
            raise NotStored(f"the key template has no field {found[1]!r}; there are {', '.join(fields)}")
        return fields[found[1]]

    return re.sub("/{2,}", "/", _FIELD.sub(put, template)).lstrip("/")


def fixed_part(template: str, prefix: str) -> str:
    """What every key of a template begins with, as far as that is known beforehand; whole folders."""
    known = template.replace("{prefix}", prefix.strip("/")).partition("{")[0]
    return re.sub("/{2,}", "/", known).lstrip("/").rpartition("/")[0]


def beside(key: str, name: str) -> str:
    """The key of a small file beside an archive: its own name with another ending, or `run.json` in its folder."""
    return (
        f"{without_ending(key)}.{name}" if name == "manifest.json" else f"{key.rpartition('/')[0]}/{name}".lstrip("/")
    )
