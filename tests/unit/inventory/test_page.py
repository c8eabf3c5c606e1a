"""docs/inventory.md keeps what it promises: its runbook is valid, its commands parse, its examples are there."""

from __future__ import annotations

import re
import shlex

from retina_runner.cli.arguments import parser, with_verb
from retina_runner.runbook import InventoryNodes
from retina_runner.runbook_reading import parse_runbook
from tests.lab import REPOSITORY

PAGE = (REPOSITORY / "docs" / "inventory.md").read_text()


def blocks(kind: str) -> list[str]:
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S) if found == kind]


def test_its_runbook_is_valid() -> None:
    (text,) = blocks("yaml")
    found = parse_runbook(text.encode(), "page.yaml")
    for capture in found.captures:
        if isinstance(capture.nodes, InventoryNodes):
            for path in capture.nodes.inventories:
                assert (REPOSITORY / "inventories" / path.rpartition("/")[2]).is_file()


def test_its_commands_parse() -> None:
    lines = [line for text in blocks("") for line in text.splitlines() if line.startswith("retina-run ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        assert parser().parse_args(with_verb(words)).verb, line
