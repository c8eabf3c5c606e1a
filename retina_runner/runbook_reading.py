"""From a runbook's file to the runbook: read, checked in full, its variables put in, its options normalised. Touches no node."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retina_runner import condition_names, own_plugins, rings, schema, translate, variables
from retina_runner.agent import conditions
from retina_runner.documents import Document, Path_, nearest, parse_document
from retina_runner.documents import load_document as _load
from retina_runner.errors import DocumentError, Problem
from retina_runner.retention import Keep
from retina_runner.runbook import (
    Capture,
    CollectorEntry,
    InventoryNodes,
    KubernetesNodes,
    Limits,
    LocalNodes,
    Nodes,
    Runbook,
    Trigger,
    Upload,
    When,
)
from retina_runner.runbook_checks import items, problems_of


def load_runbook(path: str | Path, extra_vars: Sequence[str] = (), *, on_hosts: bool = False) -> Runbook:
    """Read and check a runbook. Raises DocumentError with everything that is wrong in it, UsageError for bad `-e`.

    The file may be a manifest of Retina, which is translated; for hosts of inventories when `on_hosts`.
    """
    extra = variables.parse_extra(extra_vars)
    document = _load(path, with_problems=True)
    if translate.is_manifest(document):
        document = translate.translate(document, extra, on_hosts=on_hosts)
    return _build(document, Path(path).parent, extra)


def parse_runbook(content: bytes, name: str, extra_vars: Sequence[str] = ()) -> Runbook:
    """As `load_runbook`, for text that is here already; relative paths are relative to the current directory."""
    return _build(parse_document(content, name, with_problems=True), Path(), variables.parse_extra(extra_vars))


def _build(document: Document, folder: Path, extra: Mapping[str, tuple[Any, str]]) -> Runbook:
    value, known, problems = variables.resolve(document, extra)
    problems = [*document.problems, *problems]
    # A value that can't be read, or whose variable isn't set: to complain of what became of it would be the same cause twice.
    spoiled = {(p.line, p.column) for p in problems if p.line}
    problems += [p for p in schema.validate(document, value, "runbook") if (p.line, p.column) not in spoiled]
    captures: list[Capture] = []
    for index, given in enumerate(items(value, "captures")):
        if isinstance(given, dict):
            captures.append(_capture(document, given, ("captures", index), folder, problems))
    problems += problems_of(document, value, captures)
    if problems:
        unread = {(p.line, p.column) for p in document.problems}
        rest = [p for p in problems[len(document.problems) :] if (p.line, p.column) not in unread]
        raise DocumentError(list(dict.fromkeys((*document.problems, *rest))))
    made = _made(document, schema.normalise(value, schema.load("runbook")), tuple(captures), folder, known)
    places = _conditions(made)
    rest = [*condition_names.problems(made, places), *rings.problems(made)]
    if rest:
        raise DocumentError(rest)
    return replace(made, notes=(*made.notes, *condition_names.notes(places)))


def _conditions(runbook: Runbook) -> tuple[condition_names.Place, ...]:
    """All of them. What a trigger asks for, one node of the run has to have; the others ask every node."""
    found: list[tuple[Path_, str, bool]] = []
    if runbook.when:
        found.append((("when", "condition"), runbook.when.condition, True))
    if runbook.trigger:
        found.append((("trigger", "condition"), runbook.trigger.condition, False))
    found += [(("expect", n), text, True) for n, text in enumerate(runbook.expect)]
    return tuple(condition_names.Place(path, conditions.parse(text, True), all_) for path, text, all_ in found)


def _made(
    document: Document, whole: Mapping[str, Any], captures: tuple[Capture, ...], folder: Path, known: Mapping[str, Any]
) -> Runbook:
    """The runbook of a valid document."""
    limits = whole["limits"]
    return Runbook(
        name=whole["name"],
        summary=whole.get("summary", ""),
        duration_s=whole["duration"],
        captures=captures,
        limits=Limits(
            node_bytes=limits["node_bytes"],
            disk_free_percent=limits["disk_free_percent"],
            disk_free_bytes=limits["disk_free_bytes"],
            nice=limits["nice"],
            memory_bytes=limits["memory"],
            ready_timeout_s=limits["ready_timeout"],
            expiry_s=limits["expiry"],
            reconnect_timeout_s=limits["reconnect_timeout"],
            max_fail=limits["max_fail"],
        ),
        fail_on_loss=whole["fail_on_loss"],
        compression=whole["compression"],
        keep=whole["keep"],
        metrics={k: os.path.abspath(folder / v) if k == "textfile" else v for k, v in whole["metrics"].items()},
        uploads=tuple(_upload(u, ("upload", i), folder) for i, u in enumerate(whole["upload"])),
        variables=known,
        sha256=hashlib.sha256(document.text.encode()).hexdigest(),
        document=document,
        retention=_retention(whole.get("retention")),
        when=When(whole["when"]["condition"], whole["when"]["over"]) if "when" in whole else None,
        trigger=_trigger(whole.get("trigger")),
        expect=tuple(whole.get("expect", ())),
        notes=document.notes if isinstance(document, translate.Translated) else (),
    )


def _retention(given: Mapping[str, Any] | None) -> Keep | None:
    if given is None:
        return None
    return Keep(given.get("runs"), given.get("days"), given.get("bytes"), tuple(given.get("pin", ())))


def _trigger(given: Mapping[str, Any] | None) -> Trigger | None:
    if given is None:
        return None
    return Trigger(
        given["condition"], given["every"], given["before"], given["after"], given["count"], given["cooldown"],
        given["patience"],
    )  # fmt: skip


def _capture(
    document: Document, given: Mapping[str, Any], path: Path_, folder: Path, problems: list[Problem]
) -> Capture:
    entries: list[CollectorEntry] = []
    collect = given.get("collect", schema.load("runbook")["$defs"]["capture"]["properties"]["collect"]["default"])
    for index, item in enumerate(collect if isinstance(collect, list) else []):
        entry = _entry(document, item, (*path, "collect", index), folder, problems, [e.name for e in entries])
        if entry is not None:
            entries.append(entry)
    nodes = _nodes(given["nodes"], folder) if "nodes" in given else LocalNodes(implied=True)
    return Capture(str(given.get("name") or ""), nodes, tuple(entries), path)


def _entry(
    document: Document, item: Any, path: Path_, folder: Path, problems: list[Problem], before: list[str]
) -> CollectorEntry | None:
    """One item of `collect`; None, with a problem noted, when it isn't one."""
    if isinstance(item, dict) and len(item) != 1:
        problems.append(
            document.problem(
                path,
                f"expected one collector's name, found {len(item)} keys",
                "each collector is an item of its own: - name",
            )
        )
        return None
    if not isinstance(item, (str, dict)):
        return None  # the schema says so
    name = item if isinstance(item, str) else next(iter(item))
    options = {} if isinstance(item, str) else item[name]
    if name not in schema.collectors():
        where = path if isinstance(item, str) else (*path, name)
        problems.append(
            document.problem(where, f"there is no collector {name}", nearest(name, schema.collectors()), key=True)
        )
        return None
    inside = path if isinstance(item, str) else (*path, name)
    options = {} if options is None else options
    found = schema.validate(document, options, f"collectors/{name}", inside)
    problems += found
    if found:
        return None
    number = before.count(name) + 1
    identifier = name if number == 1 else f"{name}-{number}"
    whole = schema.normalise(options, schema.load(f"collectors/{name}"))
    if name == "ebpf":
        whole["files"], wrong = own_plugins.read(document, whole["files"], (*inside, "files"), folder)
        problems += wrong
    return CollectorEntry(identifier, name, whole, inside)


def _nodes(nodes: Any, folder: Path) -> Nodes:
    if isinstance(nodes, dict) and ("inventory" in nodes or "hosts" in nodes):
        named = nodes.get("inventory", [])
        given = named if isinstance(named, list) else [named]
        return InventoryNodes(tuple(_relative(str(i), folder) for i in given), str(nodes.get("hosts", "all")))
    if isinstance(nodes, dict) and isinstance(nodes.get("kubernetes"), dict):
        return KubernetesNodes(nodes["kubernetes"])
    return LocalNodes()


def _relative(path: str, folder: Path) -> str:
    """Paths in a runbook are relative to it. `host1,host2`, `@connector` and `~` are no such paths."""
    return path if "," in path or path.startswith(("@", "~")) else str(folder / path)


def _upload(given: Mapping[str, Any], path: Path_, folder: Path) -> Upload:
    ((kind, options),) = given.items()
    if kind == "directory":
        options = {"path": options} if isinstance(options, str) else options
        # Absolute, as the run's record keeps it: `retina-run upload` may be called from anywhere.
        options = {**options, "path": os.path.abspath(folder / options["path"])}
    if kind == "host_path":
        options = {**options, "keep_s": options.get("keep_for")}
    if options.get("ca_file"):
        options = {**options, "ca_file": os.path.abspath(folder / Path(options["ca_file"]).expanduser())}
    for name in ("credential", "proxy"):
        kind_of, _, rest = str(options.get(name) or "").partition(":")
        if kind_of == "file" and rest:
            options = {**options, name: f"file:{os.path.abspath(folder / Path(rest).expanduser())}"}
    retention = _retention(options.get("retention"))
    return Upload(kind, {k: v for k, v in options.items() if k != "retention"}, (*path, kind), retention)
