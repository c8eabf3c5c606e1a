"""What the documentation shows is what the program reads: every runbook in it is one, every command's words are known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from retina_runner.cli.arguments import VERBS, parser, with_verb
from retina_runner.runbook_reading import parse_runbook

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def blocks(kind: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.M | re.S)):
            found.append((f"{page.name}-{number}", text))
    return found


RUNBOOKS = [(name, text) for name, text in blocks("yaml") if re.search(r"^captures:", text, re.M) and "name:" in text]


@pytest.mark.parametrize("text", [t for _, t in RUNBOOKS], ids=[n for n, _ in RUNBOOKS])
def test_a_runbook_that_is_shown_is_one(text: str) -> None:
    parse_runbook(text.encode(), "shown.yaml")


COMMANDS = [
    (name, line)
    for name, text in blocks("sh")
    for line in text.splitlines()
    if line.startswith("retina-run ") and not line.endswith("\\")
]


@pytest.mark.parametrize("line", [c for _, c in COMMANDS], ids=[f"{n}: {c[:50]}" for n, c in COMMANDS])
def test_a_command_that_is_shown_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    chosen = parser().parse_args(with_verb([w for w in words if w not in ("|", ">")]))
    assert chosen.verb in VERBS


def test_the_readme_has_runbooks_and_commands() -> None:
    assert any(n.startswith("README") for n, _ in RUNBOOKS)
    assert sum(n.startswith("README") for n, _ in COMMANDS) > 5
