"""What is wrong with a runbook that its schema can't say: names that are taken, conditions that are none, secrets in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retina_runner.agent import conditions
from retina_runner.documents import Document, Path_, looks_secret
from retina_runner.errors import Problem
from retina_runner.runbook import Capture, KubernetesNodes


def problems_of(document: Document, value: Any, captures: Sequence[Capture]) -> list[Problem]:
    """All of them: of a runbook whose variables are put in, and which may be anything else than its schema says; and of those
    of its captures that could be read."""
    found = _name_problems(document, captures)
    found += _secret_problems(document, value, ())
    found += _condition_problems(document, value)
    found += _key_problems(document, value)
    return [*found, *(p for capture in captures for p in _inside_problems(document, capture))]


def items(value: Any, key: str) -> list[Any]:
    """Those of the list that stands under the key; none for anything else."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _name_problems(document: Document, captures: Sequence[Capture]) -> list[Problem]:
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
        found += [(("expect", n), text, True) for n, text in enumerate(items(value, "expect"))]
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
    for index, target in enumerate(items(value, "upload")):
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
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _secret_problems(document, v, (*path, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _secret_problems(document, v, (*path, i))]
    if isinstance(value, str) and looks_secret(value):
        return [document.problem(path, "holds a secret", "keep it out of runbooks: credential: env:NAME or file:PATH")]
    return []
