"""The first word of a command: a verb, a runbook, or a slip."""

from __future__ import annotations

from pathlib import Path

import pytest

from retina_runner.cli import main


@pytest.mark.parametrize(("word", "verb"), [("docter", "doctor"), ("chek", "check"), ("lst", "list")])
def test_a_misspelt_verb_is_told_from_a_runbook(word: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == f"retina-run: {word}: neither a verb nor a file; did you mean {verb}?\n"


def test_a_file_that_is_called_nearly_like_a_verb_is_a_runbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chek").write_text("nothing: here\n")
    assert main(["chek"]) == 2
    assert "chek:1:1: " in capsys.readouterr().err
