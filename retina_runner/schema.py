"""The shipped JSON Schemas as rules: every violation becomes a problem with a place; every default comes from them.

Two formats are ours: `duration` and `size`, texts with a unit (`units`). `x-minimum` and `x-maximum` bound them, in the
same form; a duration is at least one second unless its schema says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from retina_runner.bundle import data_directory
from retina_runner.documents import Document, Path_, looks_secret, nearest
from retina_runner.errors import Problem, UsageError
from retina_runner.units import parse_duration, parse_size

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

BASE = "https://retina-run.example/schemas/"
_TYPE_NAMES = {
    "object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number",
    "number": "a number", "boolean": "true or false", "null": "nothing",
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Every shipped schema: `runbook`, `collectors/tcpdump`, …"""
    folder = data_directory("schemas")
    return tuple(sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.json")))


def collectors() -> tuple[str, ...]:
    """The collectors that have a schema."""
    return tuple(name.partition("/")[2] for name in names() if name.startswith("collectors/"))


@cache
def load(name: str) -> dict[str, Any]:
    """One shipped schema. Raises UsageError for a name that isn't one."""
    path = data_directory("schemas") / f"{name}.json"
    if name not in names():
        raise UsageError(f"no schema {name}; {nearest(name, names())}")
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker
    from referencing import Registry, Resource

    formats = FormatChecker(formats=())
    formats.checks("duration", raises=ValueError)(
        lambda value: not isinstance(value, str) or parse_duration(value) >= 0
    )
    formats.checks("size", raises=ValueError)(lambda value: not isinstance(value, str) or parse_size(value) >= 0)
    resources = [(BASE + n + ".json", Resource.from_contents(load(n))) for n in names()]
    registry: Any = Registry().with_resources(resources)
    return Draft202012Validator(load(name), registry=registry, format_checker=formats)


def violations(name: str, value: Any) -> list[str]:
    """What a plain value (not a document) violates, as `path: message`; for manifests, events and our own output."""
    return [
        f"{error.json_path.removeprefix('$').lstrip('.')}: {error.message[:300]}"
        for error in _validator(name).iter_errors(value)
    ]


def validate(document: Document, value: Any, name: str, at: Path_ = ()) -> list[Problem]:
    """Every violation in `value`, which stands at `at` in the document (with its variables put in)."""
    problems: list[Problem] = []
    for error in _leaves(_validator(name).iter_errors(value)):
        problems += [p for p in _problems(document, error, at) if p not in problems]
    problems += _bounds(document, value, load(name), at)
    return problems


def _leaves(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    """One error a cause: of several alternatives, those of the one that the value comes nearest to."""
    for error in errors:
        if error.validator in ("anyOf", "oneOf") and error.context:
            branches: dict[Any, list[ValidationError]] = {}
            for inner in error.context:
                branches.setdefault(inner.relative_schema_path[0], []).append(inner)

            def distance(found: list[ValidationError], depth: int = len(error.absolute_path)) -> tuple[int, int]:
                # A branch of the wrong type isn't what was meant, however short its list of complaints.
                wrong_type = any(e.validator in ("type", "const") and len(e.absolute_path) == depth for e in found)
                return (wrong_type, len(found))

            best = min(branches.values(), key=distance)
            if distance(best)[0]:
                yield error
            else:
                yield from _leaves(iter(best))
        elif error.validator == "allOf" and error.context:
            yield from _leaves(iter(error.context))
        else:
            yield error


def _problems(document: Document, error: ValidationError, at: Path_) -> list[Problem]:
    """What an error says; of keys it says the same for all that are unknown, and for each that is missing."""
    path: Path_ = (*at, *error.absolute_path)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    properties = schema.get("properties", {})
    value: Any = error.instance
    if error.validator == "additionalProperties":
        return [
            document.problem((*path, key), f"unknown key {key}", nearest(key, properties), key=True)
            for key in value
            if key not in properties
        ]
    if error.validator == "required":
        required: Any = error.validator_value
        return [
            document.problem(path, f"the key {key} is missing", _example(properties.get(key, {}), key), key=True)
            for key in required
            if key not in value
        ]
    return [_problem(document, error, at)]


def _problem(document: Document, error: ValidationError, at: Path_) -> Problem:
    path: Path_ = (*at, *error.absolute_path)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    value: Any = error.instance
    hint = _example(schema)
    expected: Any = error.validator_value
    if schema.get("x-secret"):
        # Whatever stands there may be the secret itself: neither the value nor its line is shown.
        problem = document.problem(path, "not a reference to a secret (the value isn't shown)", hint)
        return replace(problem, excerpt="")
    match error.validator:
        case "propertyNames":
            return document.problem((*path, value), f"{value!r} can't be a key here", hint, key=True)
        case "type":
            types = expected if isinstance(expected, list) else [expected]
            wanted = " or ".join(_TYPE_NAMES.get(t, str(t)) for t in types)
            return document.problem(path, f"expected {wanted}, found {_shown(value)}", hint)
        case "format":
            reason = str(error.cause) if error.cause else f"{value!r} is not a {error.validator_value}"
            return document.problem(path, reason)
        case "enum":
            return document.problem(path, f"{_shown(value)} is not one of the choices", nearest(str(value), expected))
        case "const":
            return document.problem(path, f"expected {error.validator_value!r}, found {_shown(value)}")
        case "pattern":
            return document.problem(path, f"{_shown(value)} doesn't have the form {error.validator_value}", hint)
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            bound = "at least" if "inimum" in error.validator else "at most"
            return document.problem(path, f"{value} is out of range: {bound} {error.validator_value}")
        case "minItems" | "minProperties":
            return document.problem(path, "is empty" if not value else f"needs at least {error.validator_value}", hint)
        case "maxProperties":
            found = ", ".join(map(str, value))
            return document.problem(
                path, f"at most {expected} is possible here, found {found}", "each is an item of its own"
            )
        case "maxItems" | "maxLength":
            return document.problem(path, f"is longer than {error.validator_value}")
        case "minLength":
            short = f"is shorter than {error.validator_value} characters"
            return document.problem(path, short if value else "is empty", hint)
        case "uniqueItems":
            return document.problem(path, "holds the same entry twice")
        case "anyOf" | "oneOf":
            return document.problem(path, f"{_shown(value)} fits none of the forms that are possible here", hint)
    return document.problem(path, error.message[:200], hint)


def _shown(value: Any) -> str:
    if isinstance(value, str) and looks_secret(value):
        return "a value that isn't shown, as it looks like a secret"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + '..."'


def _example(schema: Mapping[str, Any], key: str = "") -> str:
    examples = schema.get("examples")
    if not examples:
        return ""
    text = json.dumps(examples[0])
    return f"for example {key + ': ' if key else ''}{text}" if len(text) <= 80 else ""


def _parts(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]
) -> Iterator[tuple[str | int, Any, Mapping[str, Any]]]:
    """(key or index, value, schema) of what is inside a value, for keys that the schema knows."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in schema.get("properties", {}):
                yield key, inner, _local(schema["properties"][key], root)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, inner in enumerate(value):
            yield index, inner, _local(schema["items"], root)


def _local(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        found: Mapping[str, Any] = root["$defs"][reference.removeprefix("#/$defs/")]
        return found
    return schema


def _bounds(document: Document, value: Any, schema: Mapping[str, Any], at: Path_) -> list[Problem]:
    """x-minimum and x-maximum of durations and sizes, wherever the schema reaches by properties and items."""
    return list(_walk_bounds(document, value, schema, schema, at))


def _walk_bounds(
    document: Document, value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: Path_
) -> Iterator[Problem]:
    read = {"duration": parse_duration, "size": parse_size}.get(str(schema.get("format")))
    if read is not None and isinstance(value, str):
        least = schema.get("x-minimum", "1s" if schema["format"] == "duration" else None)
        most = schema.get("x-maximum")
        try:
            amount = read(value)
        except ValueError:
            return  # said already
        if least is not None and amount < read(least):
            yield document.problem(at, f"{value} is too small: at least {least}")
        if most is not None and amount > read(most):
            yield document.problem(at, f"{value} is too large: at most {most}")
    for key, inner, inner_schema in _parts(value, schema, root):
        yield from _walk_bounds(document, inner, inner_schema, root, (*at, key))


def normalise(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """The value as code wants it: durations in seconds, sizes in bytes, missing keys filled with the schema's defaults.

    The value must be valid.
    """
    root = schema if root is None else root
    if schema.get("format") == "duration" and isinstance(value, str):
        return parse_duration(value)
    if schema.get("format") == "size" and isinstance(value, str):
        return parse_size(value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        result = {k: normalise(v, _local(properties.get(k, {}), root), root) for k, v in value.items()}
        for key, inner in properties.items():
            inner = _local(inner, root)
            if key not in result and "default" in inner:
                result[key] = normalise(inner["default"], inner, root)
        return result
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [normalise(v, _local(schema["items"], root), root) for v in value]
    return value
