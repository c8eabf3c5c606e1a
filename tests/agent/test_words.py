"""The agent's words as its runner says them are read without argparse: to the same effect, and nothing else is."""

from __future__ import annotations

import pytest

from retina_runner.agent.__main__ import VERBS, _explained, _understood

GOOD = (
    ["check"],
    ["check", "--directory", "/var/tmp/x"],
    *([name, "/d"] for name in ("start", "release", "freeze", "alive", "bytecode", "stop", "remove", "events")),
    ["events", "/d", "--from", "7", "--follow", "2.5"],
    ["events", "--follow", "2.5", "/d"],
    *([name, "/d", "--name", "a.tar.gz"] for name in ("fetch", "upload", "keep", "drop")),
    ["fetch", "/d", "--name", "a.tar.gz", "--offset", "12"],
    ["upload", "/d", "--name", "a.tar.gz", "--deadline", "1.5"],
    ["clock"],
    ["reach"],
    ["serve"],
    ["hold", "/d", "--limit", "5"],
    ["hold", "/d", "--limit", "5", "--plan", "/p", "--shelf", "{}", "--shelf", '{"path": "/s"}'],
)
BAD: tuple[list[str], ...] = (
    [],
    ["nonsense"],
    ["--help"],
    ["events"],
    ["events", "/d", "/e"],
    ["events", "/d", "--from"],
    ["events", "/d", "--from", "many"],
    ["events", "/d", "--unknown", "1"],
    ["fetch", "/d"],
    ["hold", "/d"],
    ["clock", "/d"],
)


def test_every_verb_is_among_these() -> None:
    assert {words[0] for words in GOOD} == set(VERBS)


@pytest.mark.parametrize("words", GOOD, ids=" ".join)
def test_words_mean_what_argparse_makes_of_them(words: list[str]) -> None:
    understood = _understood(words)
    assert understood is not None
    assert vars(understood) == vars(_explained(words))


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_all_others_are_left_to_argparse_which_says_why(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _understood(words) is None
    with pytest.raises(SystemExit):
        _explained(words)
    assert "usage: agent" in "".join(capsys.readouterr())
