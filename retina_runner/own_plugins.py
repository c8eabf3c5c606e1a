"""A user's own metric plugins: `files: [./my.c]` becomes the program's text and its description, checked, in the plan.

Read once, where the runbook is: nodes get texts, no paths. What can be known without a compiler is told at once, with its
place: in the runbook, or in the description beside the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retina_runner import schema
from retina_runner.agent.metrics import plugins
from retina_runner.documents import Document, Path_, parse_document
from retina_runner.errors import DocumentError, Problem

MOST_BYTES = 64 << 10
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
KINDS = ("raw_tracepoint", "socket_filter")
"""What vanishes with the process that attached it."""


def read(
    document: Document, files: Sequence[str], path: Path_, folder: Path
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """([{name, source, description}], what is wrong). `path` is the place of `files` in the runbook, in `folder`."""
    found: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for index, given in enumerate(files):
        at, name = (*path, index), Path(given).stem
        if not NAME.match(name):
            hint = "lower-case letters, digits and underscores, for example connects.c"
            problems.append(document.problem(at, f"{name} can't be the name of a plugin", hint))
        elif name in plugins.names():
            problems.append(document.problem(at, f"there is a plugin {name} already", "give the file another name"))
        elif name in [f["name"] for f in found]:
            problems.append(document.problem(at, f"there are two plugins {name}", "give one file another name"))
        else:
            program = folder / given
            source = _text(document, at, program, "a BPF program in C", problems)
            beside = program.with_suffix(".json")
            text = _text(document, at, beside, "the program's description, see docs/own-plugins.md", problems)
            if source is not None and text is not None:
                description, wrong = _description(beside, text, source)
                problems += wrong
                if not wrong:
                    found.append({"name": name, "source": source, "description": description})
    return found, problems


def _text(document: Document, at: Path_, path: Path, what: str, problems: list[Problem]) -> str | None:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES} B")
        return content.decode()
    except UnicodeDecodeError:
        problems.append(document.problem(at, f"{path}: not UTF-8 text"))
    except ValueError as error:
        problems.append(document.problem(at, f"{path}: {error}"))
    except OSError as error:
        problems.append(document.problem(at, f"{path}: {error.strerror or error}", f"put {what} there"))
    return None


def _places(path: Path, text: str) -> Document | None:
    """Where everything stands in JSON, which is YAML, too, but for its tabs; None for what YAML can't place."""
    try:
        return parse_document(text.replace("\t", " ").encode(), str(path))
    except DocumentError:
        return None


def _description(path: Path, text: str, source: str) -> tuple[Mapping[str, Any], list[Problem]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        line, column = getattr(error, "lineno", 0), getattr(error, "colno", 0)
        excerpt = text.splitlines()[line - 1] if 0 < line <= len(text.splitlines()) else ""
        return {}, [Problem(str(path), line, column, "", f"not JSON: {getattr(error, 'msg', error)}", "", excerpt)]
    places = _places(path, text)

    def problem(message: str, where: str = "", hint: str = "") -> Problem:
        if places is None:
            return Problem(str(path), 0, 0, where, message, hint)
        steps = [int(number) if number else name for name, number in _STEP.findall(where)]
        return replace(places.problem(steps, message, hint), path=where)

    wrong = []
    for violation in schema.violations("plugin", value):
        where, _, message = violation.partition(": ")
        wrong.append(problem(message, where, "retina-run schema plugin prints what may stand here"))
    if wrong:
        return value, wrong
    if value["kind"] != plugins.BPF:
        wrong.append(problem("a plugin of your own is of kind bpf", "kind"))
    for number, hook in enumerate(value["hooks"]):
        where = f"hooks[{number}]"
        if hook["kind"] not in KINDS:
            hint = f"{' or '.join(KINDS)}: these are gone with the process, whatever ends it"
            wrong.append(problem(f"a hook of kind {hook['kind']} isn't loaded", f"{where}.kind", hint))
        program = hook.get("program")
        if program is None:
            wrong.append(problem("the key program is missing", where, "the function that is attached there"))
        elif not re.search(rf"\bint\s+{program}\s*\(", source):
            wrong.append(problem(f"the program has no function int {program}(…)", f"{where}.program"))
    described = {m["name"]: set(m.get("labels", {})) for m in value["metrics"]}
    for number, entry in enumerate(value["maps"]):
        where = f"maps[{number}]"
        if not re.search(rf"\b{entry['name']}\b", source):
            wrong.append(problem(f"the program has no map {entry['name']}", f"{where}.name"))
        if "metric" not in entry:
            continue
        labels = {field["label"] for field in entry.get("key", ())} - {""}
        if entry["metric"] not in described:
            wrong.append(problem(f"{entry['metric']} isn't among the metrics", f"{where}.metric"))
        elif labels != described[entry["metric"]]:
            named, known = ", ".join(sorted(labels)), ", ".join(sorted(described[entry["metric"]]))
            wrong.append(problem(f"the key's labels ({named}) aren't the metric's ({known})", f"{where}.key"))
    fed = {entry.get("metric") for entry in value["maps"]}
    wrong += [
        problem(f"no map is said to become {metric['name']}", f"metrics[{number}].name")
        for number, metric in enumerate(value["metrics"])
        if metric["name"] not in fed
    ]
    return value, wrong
