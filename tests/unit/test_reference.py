"""The reference pages say what the code obeys, and every key is explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner import reference, schema

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_pages_are_as_new_as_their_sources(name: str) -> None:
    assert (DOCS / name).read_text() == reference.pages()[name], "run: python -m retina_runner.reference docs"


def properties(found: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("properties", "$defs") and isinstance(value, dict):
                for name, inner in value.items():
                    yield f"{path}.{name}", inner
            yield from properties(value, f"{path}.{key}") if key not in ("examples", "default", "enum", "const") else ()
    elif isinstance(found, list):
        for index, value in enumerate(found):
            yield from properties(value, f"{path}[{index}]")


@pytest.mark.parametrize("name", [n for n in schema.names() if n in ("runbook", "plan") or n.startswith("collectors/")])
def test_every_property_is_described_and_every_schema_is_one(name: str) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema.load(name))
    assert schema.load(name)["$id"] == f"{schema.BASE}{name}.json"
    for path, found in properties(schema.load(name), name):
        if "$ref" not in found:
            assert found.get("description"), path


@pytest.mark.parametrize("name", [n for n in schema.names() if n.startswith("collectors/")])
def test_examples_of_collectors_are_valid_and_have_every_default(name: str) -> None:
    found = schema.load(name)
    assert found["examples"]
    for example in found["examples"]:
        assert schema.violations(name, example) == []
        filled = schema.normalise(example, found)
        assert set(filled) >= {k for k, v in found["properties"].items() if "default" in v}
