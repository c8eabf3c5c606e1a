"""`${name}` in a runbook's values: typed, checked, and never in keys.

A value that is nothing but `${name}` becomes the variable with its type; inside longer text its plain form is put in.
`$${` stands for a literal `${`. A variable's own value may use the variables declared before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_runner.documents import Document, Path_, load_document, nearest, parse_document
from retina_runner.errors import Problem, UsageError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")


def parse_extra(words: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """`-e` arguments to {name: (value, where it came from)}; later ones win. Raises UsageError, DocumentError.

    `key=value` (the value is read as a YAML scalar), `{"a": 1}` (a YAML mapping), `@file.yaml`.
    """
    found: dict[str, tuple[Any, str]] = {}
    for word in words:
        if word.startswith("@"):
            document = load_document(Path(word[1:]))
            pairs = _mapping(document.value, word)
        elif word.lstrip().startswith("{"):
            pairs = _mapping(parse_document(word.encode(), f"-e {word}").value, word)
        else:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise UsageError(f"-e {word}: write key=value, @file.yaml or a mapping in braces")
            pairs = {key: parse_document(value.encode(), f"-e {key}").value if value.strip() else ""}
        for key, value in pairs.items():
            if not NAME.match(key):
                raise UsageError(f"-e {word}: {key!r} is not a variable's name; letters, digits and _ make one")
            found[key] = (value, f"-e {word}")
    return found


def _mapping(value: Any, word: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"-e {word}: expected a mapping of variables")
    return value


def resolve(document: Document, extra: Mapping[str, tuple[Any, str]]) -> tuple[Any, dict[str, Any], list[Problem]]:
    """(the document's value with its variables put in, the variables, problems)."""
    problems: list[Problem] = []
    value = document.value
    declared = value.get("vars") if isinstance(value, dict) else None
    declared = declared if isinstance(declared, dict) else {}
    variables: dict[str, Any] = {}
    for name, given in declared.items():
        place: Path_ = ("vars", name)
        if not NAME.match(name):
            problems.append(
                document.problem(
                    place, f"{name!r} is not a variable's name", "letters, digits and _ make one", key=True
                )
            )
            continue
        if name in extra:
            variables[name] = extra[name][0]
        else:
            variables[name] = _put_in(document, given, place, variables, problems)
    for name, (_, origin) in extra.items():
        if name not in declared:
            raise_hint = nearest(name, declared)
            problems.append(
                Problem(document.name, 0, 0, "", f"{origin}: the runbook has no variable {name}", raise_hint)
            )
    if isinstance(value, dict):
        value = {
            k: variables if k == "vars" else _put_in(document, v, (k,), variables, problems) for k, v in value.items()
        }
    return value, variables, problems


def _put_in(document: Document, value: Any, path: Path_, variables: Mapping[str, Any], problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {k: _put_in(document, v, (*path, k), variables, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_in(document, v, (*path, i), variables, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    alone = re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value)
    if alone and alone[1] in variables:
        return variables[alone[1]]

    def one(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        name = found[1]
        if name is None or not NAME.match(name):
            problems.append(
                document.problem(path, "a ${ that isn't a variable", "write ${name}, or $${ for a literal ${")
            )
            return ""
        if name not in variables:
            hint = nearest(name, variables) or "declare it under vars, or give it with -e"
            problems.append(document.problem(path, f"the variable {name} isn't set", hint))
            return ""
        inserted = variables[name]
        if isinstance(inserted, (dict, list)) or inserted is None:
            problems.append(
                document.problem(path, f"the variable {name} isn't a single value, so it can't stand inside text")
            )
            return ""
        return str(inserted).lower() if isinstance(inserted, bool) else str(inserted)

    return _REFERENCE.sub(one, value)
