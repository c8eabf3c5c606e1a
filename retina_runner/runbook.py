"""The runbook as a value: read, checked in full, its variables put in, its options normalised. Touches no node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retina_runner import condition_names, own_plugins, rings, schema, translate, variables
from retina_runner.agent import conditions
from retina_runner.documents import Document, Path_, nearest, parse_document
from retina_runner.documents import load_document as _load
from retina_runner.errors import DocumentError, Problem
from retina_runner.retention import Keep


@dataclass(frozen=True)
class LocalNodes:
    """This machine. `implied` when the runbook says nothing of nodes, so that `-i` may."""

    implied: bool = False


@dataclass(frozen=True)
class InventoryNodes:
    """Hosts of inventories; paths are absolute or relative to the current directory. None: those of the command line."""

    inventories: tuple[str, ...]
    hosts: str


@dataclass(frozen=True)
class KubernetesNodes:
    """Nodes of a cluster, as the runbook says."""

    selection: Mapping[str, Any]


Nodes = LocalNodes | InventoryNodes | KubernetesNodes


@dataclass(frozen=True)
class CollectorEntry:
    """One entry of `collect`. `id` is unique in its capture; `options` are normalised; `path` is its place."""

    id: str
    name: str
    options: Mapping[str, Any]
    path: Path_


@dataclass(frozen=True)
class Capture:
    """`name` is empty for the only capture of a runbook that doesn't name it."""

    name: str
    nodes: Nodes
    collect: tuple[CollectorEntry, ...]
    path: Path_


@dataclass(frozen=True)
class Limits:
    """See `limits` of schemas/runbook.json; seconds and bytes."""

    node_bytes: int
    disk_free_percent: int
    disk_free_bytes: int
    nice: int
    memory_bytes: int
    ready_timeout_s: float
    expiry_s: float
    reconnect_timeout_s: float = 600.0
    max_fail: int | str | None = None


@dataclass(frozen=True)
class Upload:
    """One target: `kind` is directory, host_path, azure_blob or s3; `options` as the runbook says, paths resolved.

    `retention` is what of this runbook's runs stays there; None for all.
    """

    kind: str
    options: Mapping[str, Any]
    path: Path_
    retention: Keep | None = None


@dataclass(frozen=True)
class When:
    """Which symptom a node must show before T0, measured over so many seconds, for anything to be collected there."""

    condition: str
    over_s: float


@dataclass(frozen=True)
class Trigger:
    """What makes a run a flight recorder: see `trigger` of schemas/runbook.json. Its fields are those of the plan."""

    condition: str
    every_s: float
    before_s: float
    after_s: float
    count: int
    cooldown_s: float
    patience_s: float


@dataclass(frozen=True)
class Runbook:
    """Everything that a runbook says. `sha256` is of the file as it was read, once."""

    name: str
    summary: str
    duration_s: float
    captures: tuple[Capture, ...]
    limits: Limits
    fail_on_loss: bool
    compression: str
    keep: str
    metrics: Mapping[str, str]
    uploads: tuple[Upload, ...]
    variables: Mapping[str, Any]
    sha256: str
    document: Document
    retention: Keep | None = None
    when: When | None = None
    trigger: Trigger | None = None
    expect: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a translated manifest says otherwise, or means nothing here; and what may be a mistake."""

    def problem(self, path: Iterable[str | int], message: str, hint: str = "") -> Problem:
        """A problem at that place of the runbook's file."""
        return self.document.problem(path, message, hint)


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
    for index, given in enumerate(_list(value, "captures")):
        if isinstance(given, dict):
            captures.append(_capture(document, given, ("captures", index), folder, problems))
    problems += _name_problems(document, captures)
    problems += _secret_problems(document, value, ())
    problems += _condition_problems(document, value)
    problems += _key_problems(document, value)
    problems += [p for capture in captures for p in _inside_problems(document, capture)]
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
        metrics=whole["metrics"],
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


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


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
        options = {**options, "path": str(folder / options["path"])}
    if kind == "host_path":
        options = {**options, "keep_s": options.get("keep_for")}
    if options.get("ca_file"):
        options = {**options, "ca_file": str(folder / Path(options["ca_file"]).expanduser())}
    retention = _retention(options.get("retention"))
    return Upload(kind, {k: v for k, v in options.items() if k != "retention"}, (*path, kind), retention)


def _name_problems(document: Document, captures: list[Capture]) -> list[Problem]:
    problems = []
    seen: set[str] = set()
    for capture in captures:
        if len(captures) > 1 and not capture.name:
            problems.append(
                document.problem(
                    capture.path, "a capture needs a name when there are several", "for example name: clients"
                )
            )
        elif capture.name in seen:
            problems.append(
                document.problem((*capture.path, "name"), f"another capture has the name {capture.name} already")
            )
        if capture.name:
            seen.add(capture.name)
    return problems


def _condition_problems(document: Document, value: Any) -> list[Problem]:
    """Conditions that are none, with the column inside the expression."""
    found: list[tuple[Path_, Any, bool]] = []
    if isinstance(value, dict):
        if isinstance(value.get("when"), dict):
            found.append((("when", "condition"), value["when"].get("condition"), False))
        if isinstance(value.get("trigger"), dict):
            found.append((("trigger", "condition"), value["trigger"].get("condition"), False))
        found += [(("expect", n), text, True) for n, text in enumerate(_list(value, "expect"))]
    problems = []
    for path, text, afterwards in found:
        if isinstance(text, str) and text:
            try:
                conditions.parse(text, afterwards)
            except conditions.ConditionError as error:
                problems.append(document.problem(path, f"at character {error.column}: {error}"))
    return problems


def _inside_problems(document: Document, capture: Capture) -> list[Problem]:
    """What doesn't go with `scope: pod-netns`: no pods, and namespaces of collectors' own."""
    nodes = capture.nodes
    if not isinstance(nodes, KubernetesNodes) or nodes.selection.get("scope") != "pod-netns":
        return []
    problems = []
    if not any(nodes.selection.get(key) for key in ("pods", "pod_names", "owner", "service")):
        path = (*capture.path, "nodes", "kubernetes", "scope")
        hint = "choose them with pods, pod_names, owner or service"
        problems.append(document.problem(path, "pod-netns looks inside pods, and no pods are chosen", hint))
    for entry in capture.collect:
        if entry.options.get("netns"):
            why = "the namespace is the pod's already, by scope: pod-netns"
            problems.append(document.problem((*entry.path, "netns"), why, "one capture for each"))
    return problems


def _key_problems(document: Document, value: Any) -> list[Problem]:
    """A target that forgets runs has a folder for each of them: its `run.json` is what tells one from another."""
    problems = []
    for index, target in enumerate(_list(value, "upload")):
        for kind, options in target.items() if isinstance(target, dict) else ():
            key = options.get("key", "{run}/") if isinstance(options, dict) and "retention" in options else "{run}/"
            if isinstance(key, str) and "{run}" not in key.rpartition("/")[0]:
                problems.append(document.problem(
                    ("upload", index, kind, "key"), "with retention each run needs a folder of its own",
                    "for example key: {prefix}/{run}/{archive}",
                ))  # fmt: skip
    return problems


def _secret_problems(document: Document, value: Any, path: Path_) -> list[Problem]:
    """A URL with a signature or a password in it: named by its key, never shown."""
    from retina_runner.documents import looks_secret

    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _secret_problems(document, v, (*path, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _secret_problems(document, v, (*path, i))]
    if isinstance(value, str) and looks_secret(value):
        return [document.problem(path, "holds a secret", "keep it out of runbooks: credential: env:NAME or file:PATH")]
    return []
