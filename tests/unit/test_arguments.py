"""What can't be meant is told with the next step: words that are nearly verbs, options that hold no value, runs that are none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from retina_runner.cli import main
from retina_runner.cli.arguments import parser


@pytest.mark.parametrize(("word", "verb"), [("docter", "doctor"), ("chek", "check"), ("lst", "list")])
def test_a_misspelt_verb_is_told_from_a_runbook(word: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == f"retina-run: {word}: neither a verb nor a file; did you mean {verb}?\n"


@pytest.mark.parametrize("words", [["show"], ["show", "runs/x", "--quiet"]])
def test_a_word_that_is_near_no_verb_says_where_they_are(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What comes after it isn't what is wrong."""
    assert main(words) == 2
    assert (
        capsys.readouterr().err == "retina-run: show: neither a verb nor a file; `retina-run --help` lists the verbs\n"
    )


def test_a_file_that_is_called_nearly_like_a_verb_is_a_runbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chek").write_text("nothing: here\n")
    assert main(["chek"]) == 2
    assert "chek:1:1: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--check"], []])
@pytest.mark.parametrize(("option", "value"), [("--max-fail", "x"), ("--max-fail", "101%"), ("--fetch-rate", "x")])
def test_a_bound_that_is_none_is_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], option: str, value: str
) -> None:
    book = tmp_path / "book.yaml"
    book.write_text("name: book\nduration: 1s\ncaptures: [{collect: [network-state]}]\n")
    assert main(["run", str(book), *words, option, value, "--output", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith(f"retina-run: {option} {value}: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["x", "0", "20MB/m"])
def test_a_download_s_rate_that_is_none_is_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    words = ["download", "--from", str(tmp_path), "--fetch-rate", value, "--output", str(tmp_path / "back")]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("retina-run: --fetch-rate")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "words", [["report"], ["resume"], ["upload"], ["cleanup"], ["download"], ["retry", "--failed"]]
)
def test_a_run_that_is_none_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([*words, str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"retina-run: {tmp_path / 'nowhere'}: not a run directory")
    assert said.endswith("; `retina-run list` shows the runs below a folder\n")
    assert "Errno" not in said


def test_a_download_of_what_was_never_stored_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"id": "a", "node": "a", "capture": "", "executor": "local"}
    begin = {"event": "run-start", "run": "r", "runbook": "r", "time": "2026-11-23T03:17:00.000000Z", "nodes": [node]}
    (tmp_path / "events.jsonl").write_text(json.dumps(begin) + "\n")
    assert main(["download", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"retina-run: {tmp_path}: no archive was stored anywhere else; {tmp_path / 'archives'} has what came home, "
        f"retina-run upload {tmp_path} stores it\n"
    )


def test_another_process_with_a_dead_runner_s_number_is_no_runner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        begin = {
            "event": "run-start",
            "run": "r",
            "runbook": "r",
            "time": "2026-11-23T03:17:00.000000Z",
            "pid": other.pid,
            "nodes": [],
        }
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "events.jsonl").write_text(json.dumps(begin) + "\n")
        assert main(["list", "--json", str(tmp_path)]) == 0
    finally:
        other.kill()
        other.wait()
    assert json.loads(capsys.readouterr().out)["state"] == "dead"


def test_what_a_download_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--from", "ftp://x/y"]) == 2
    assert "--from ftp://x/y: neither a folder nor https://" in capsys.readouterr().err
    assert main(["download", "--from", str(tmp_path), "--node", "b"]) == 2
    assert f"--from {tmp_path}: there is no archive of node b below it; " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["run", "x.yaml", "-f", "0"], ["plan", "x.yaml", "--forks", "-3"], ["exporter", "x.yaml", "--most-series", "0"]],
)
def test_a_bound_of_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert "a whole number from 1 on" in capsys.readouterr().err
