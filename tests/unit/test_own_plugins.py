"""A user's own plugin is read with the runbook, and everything that is wrong with it is told there, with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retina_runner.errors import DocumentError
from retina_runner.runbook_reading import load_runbook
from tests.lab import REPOSITORY

EXAMPLE = REPOSITORY / "runbooks" / "plugins"
Change = Callable[[dict[str, Any]], object]


def runbook(folder: Path, *files: str) -> Path:
    path = folder / "runbook.yaml"
    listed = "".join(f"\n          - {f}" for f in files)
    path.write_text(f"name: own\nduration: 5s\ncaptures:\n  - collect:\n      - ebpf:\n         files:{listed}\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("connects.c", "connects.json"):
        (tmp_path / name).write_bytes((EXAMPLE / name).read_bytes())
    return tmp_path


def test_text_and_description_are_in_the_options_and_no_path_is(folder: Path) -> None:
    (capture,) = load_runbook(runbook(folder, "./connects.c")).captures
    ((own,),) = (e.options["files"] for e in capture.collect)
    assert own == {
        "name": "connects",
        "source": (EXAMPLE / "connects.c").read_text(),
        "description": json.loads((EXAMPLE / "connects.json").read_text()),
    }


def test_the_program_of_the_docs_is_the_one_that_is_shipped_and_has_about_30_lines() -> None:
    text = (REPOSITORY / "docs" / "own-plugins.md").read_text()
    program = (EXAMPLE / "connects.c").read_text()
    assert program in text
    assert (EXAMPLE / "connects.json").read_text() in text
    assert len(program.splitlines()) <= 30


def _set(*keys: Any) -> Change:
    def change(value: Any) -> None:
        *path, last, new = keys
        for key in path:
            value = value[key]
        value[last] = new

    return change


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        (_set("hooks", 0, "kind", "fexit"), "hooks[0].kind", "isn't loaded"),
        (_set("hooks", 0, "program", "on_nothing"), "hooks[0].program", "no function int on_nothing"),
        (lambda v: v["hooks"][0].pop("program"), "hooks[0]", "program is missing"),
        (_set("maps", 0, "name", "other"), "maps[0].name", "no map other"),
        (_set("maps", 0, "metric", "other_total"), "maps[0].metric", "isn't among the metrics"),
        (_set("maps", 0, "key", 1, "label", "gate"), "maps[0].key", "aren't the metric's"),
        (lambda v: v["maps"][0].pop("metric"), "metrics[0].name", "no map is said to become"),
        (_set("kind", "proc"), "kind", "is of kind bpf"),
        (_set("offsets", {"O_X": "tcp_sock"}), "offsets.O_X", "does not match"),
        (lambda v: v.pop("summary"), "", "summary"),
    ],
)
def test_a_wrong_description_is_told_with_its_place(folder: Path, change: Change, where: str, said: str) -> None:
    path = folder / "connects.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DocumentError) as caught:
        load_runbook(runbook(folder, "./connects.c"))
    found = [p for p in caught.value.problems if p.path == where]
    assert any(said in p.message for p in found), str(caught.value)
    assert {p.file for p in caught.value.problems} == {str(path)}
    assert all(p.line == 1 and p.column for p in caught.value.problems), "it is all in one line"


def test_a_wrong_description_is_told_with_line_and_column_also_where_it_is_indented_by_tabs(folder: Path) -> None:
    path = folder / "connects.json"
    value = json.loads(path.read_text())
    value["hooks"][0]["program"] = "on_nothing"
    for indent in (2, "\t"):
        text = json.dumps(value, indent=indent)
        path.write_text(text)
        with pytest.raises(DocumentError) as caught:
            load_runbook(runbook(folder, "./connects.c"))
        (problem,) = caught.value.problems
        line = text.splitlines()[problem.line - 1]
        assert line[problem.column - 1 :].startswith('"on_nothing"'), (problem.line, problem.column)
        assert problem.excerpt.strip() == line.strip()


def test_what_is_not_json_has_line_and_column(folder: Path) -> None:
    (folder / "connects.json").write_text('{\n  "summary": oops\n}\n')
    with pytest.raises(DocumentError) as caught:
        load_runbook(runbook(folder, "./connects.c"))
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, 14)
    assert "not JSON" in problem.message


def test_files_that_are_not_there_and_names_that_will_not_do_are_told_at_once(folder: Path) -> None:
    (folder / "dns.c").write_text("")
    (folder / "lonely.c").write_text("int x;\n")
    (folder / "Upper.c").write_text("")
    (folder / "binary.c").write_bytes(b"\xff\xfe")
    (folder / "binary.json").write_text("{}")
    (folder / "large.c").write_bytes(b" " * (1 << 17))
    (folder / "large.json").write_text("{}")
    (folder / "below").mkdir()
    names = (
        "./connects.c",
        "./none.c",
        "./dns.c",
        "./lonely.c",
        "./Upper.c",
        "./below/connects.c",
        "./binary.c",
        "./large.c",
    )
    with pytest.raises(DocumentError) as caught:
        load_runbook(runbook(folder, *names))
    told = [(p.line, p.message) for p in caught.value.problems]
    assert told == [
        (8, f"{folder}/none.c: No such file or directory"),
        (8, f"{folder}/none.json: No such file or directory"),
        (9, "there is a plugin dns already"),
        (10, f"{folder}/lonely.json: No such file or directory"),
        (11, "Upper can't be the name of a plugin"),
        (12, "there are two plugins connects"),
        (13, f"{folder}/binary.c: not UTF-8 text"),
        (14, f"{folder}/large.c: is larger than 65536 B"),
    ]
