"""The shipped plugins, as bpf/<plugin>.json describes them (schemas/plugin.json), wherever the agent was started from."""

from __future__ import annotations

import json
import pkgutil
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import retina_runner.agent as agent

BPF, PROC = "bpf", "proc"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Family(NamedTuple):
    """What all samples of one metric have in common. `unit` is a word (`packets`, `bytes`, `seconds`), or empty.

    `series` says whether it belongs into the time series, or only into the totals: it may have very many labels.
    """

    name: str
    kind: str
    unit: str
    help: str
    labels: Tuple[str, ...] = ()
    series: bool = True


class Plugin(NamedTuple):
    """One description. `document` is the whole of it; `kind` says whether BPF programs or only /proc and sysfs."""

    name: str
    kind: str
    summary: str
    default: bool
    rights: Tuple[str, ...]
    families: Tuple[Family, ...]
    document: Mapping[str, Any]


def parse(name: str, document: Mapping[str, Any]) -> Plugin:
    """A description that keeps to schemas/plugin.json. Raises KeyError for one that doesn't."""
    families = tuple(
        Family(
            m["name"], m["type"], m["unit"], m["help"],
            tuple(m.get("labels", {})), bool(m.get("series", True)),
        )
        for m in document["metrics"]
    )  # fmt: skip
    return Plugin(
        name, document["kind"], document["summary"], bool(document.get("default", False)),
        tuple(document["rights"]), families, document,
    )  # fmt: skip


def shipped(path: str) -> Optional[bytes]:
    """A file of bpf/ by its path in there (`dns.json`, `include/linux/types.h`), or None: out of the zipapp, out of an
    installed package, or from a source checkout."""
    try:
        found = pkgutil.get_data("retina_runner", f"_data/bpf/{path}")
    except OSError:
        found = None
    if found is None:
        try:
            found = (_checkout() / path).read_bytes()
        except OSError:
            return None
    return found


@lru_cache(maxsize=None)
def shipped_paths() -> Tuple[str, ...]:
    """Every file of bpf/, as paths in there, sorted."""
    loader = getattr(agent, "__loader__", None)
    archive = getattr(loader, "archive", None)  # zipimport(3): the file that the package was imported from
    if archive is not None:
        import zipfile

        top = "retina_runner/_data/bpf/"
        with zipfile.ZipFile(archive) as file:
            return tuple(sorted(n[len(top) :] for n in file.namelist() if n.startswith(top) and not n.endswith("/")))
    folder = Path(str(agent.__file__)).parents[1] / "_data" / "bpf"
    folder = folder if folder.is_dir() else _checkout()
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    return tuple(sorted(found))


@lru_cache(maxsize=None)
def _checkout() -> Path:
    return Path(str(agent.__file__)).resolve().parents[2] / "bpf"


@lru_cache(maxsize=None)
def names() -> Tuple[str, ...]:
    """The shipped plugins."""
    return tuple(p[: -len(".json")] for p in shipped_paths() if p.endswith(".json") and "/" not in p)


@lru_cache(maxsize=None)
def load(name: str) -> Plugin:
    """One shipped plugin. Raises KeyError for a name that isn't one."""
    content = shipped(f"{name}.json") if "/" not in name else None
    if content is None:
        raise KeyError(name)
    return parse(name, json.loads(content))


def families(plugins: List[Plugin]) -> Dict[str, Family]:
    """The families of several plugins by name; what two of them share is described by the first."""
    found: Dict[str, Family] = {}
    for plugin in plugins:
        for family in plugin.families:
            found.setdefault(family.name, family)
    return found
