"""Collectors `command` and `files`: bounded, private, and honest about what they left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retina_runner import schema
from retina_runner.agent import collectors
from retina_runner.agent.context import Context, Gap, Record, Window
from tests.lab import REPOSITORY, Lab

CANARY = "canary-77aa01"


def context(name: str, options: dict[str, Any], tmp_path: Path) -> Context:
    for folder in ("out", "raw"):
        (tmp_path / folder).mkdir()
    normal = schema.normalise(options, schema.load(f"collectors/{name}"))
    return Context(name, normal, tmp_path / "out", tmp_path / "raw", Record(), lambda event, **fields: None)


def collected(made: Context) -> dict[str, bytes]:
    return {str(p.relative_to(made.out)): p.read_bytes() for p in made.out.rglob("*") if p.is_file()}


def verdicts(made: Context) -> dict[str, tuple[str, str]]:
    return {v.artefact: (v.verdict, " ".join(v.reasons)) for v in made.record.verdicts}


def copy(tmp_path: Path, **options: Any) -> Context:
    made = context("files", options, tmp_path)
    collector = collectors.load("files", made)
    collector.prepare()
    collector.finish()
    return made


def test_files_are_copied_by_glob_before_and_after(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "deep").mkdir(parents=True)
    (logs / "a.log").write_text("one")
    (logs / "deep" / "b.log").write_text("two")
    (logs / "c.txt").write_text("no")
    made = copy(tmp_path, paths=[f"{logs}/**/*.log", f"{logs}/a.log"], when=["before", "after"])
    assert collected(made) == {
        f"files/{when}{logs}/{name}": content
        for when in ("before", "after")
        for name, content in (("a.log", b"one"), ("deep/b.log", b"two"))
    }
    assert {v for v, _ in verdicts(made).values()} == {"complete"}


def test_a_large_file_is_left_out_or_cut_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old" * 1000 + b"new" * 100)
    made = copy(tmp_path, paths=[str(tmp_path / "log")], max_size="300B", tail=True)
    assert collected(made) == {f"files/after{tmp_path}/log": b"new" * 100}
    assert verdicts(made)["files/after"][0] == "partial"
    (tmp_path / "two").mkdir()
    made = copy(tmp_path / "two", paths=[str(tmp_path / "log")], max_size="300B")
    assert collected(made) == {}
    (gap,) = made.record.skipped
    assert ("max_size" in gap["why"], gap["hint"]) == (True, "tail: true keeps its end")


@pytest.mark.parametrize("kind", ["fifo", "device", "secret", "link to a secret", "directory", "nothing"])
def test_what_must_not_be_copied_is_not(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif "secret" in kind:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh" / "id_ed25519").write_text(CANARY)
        path = tmp_path / ".ssh" / "id_ed25519"
        if "link" in kind:
            (tmp_path / "odd").symlink_to(path)
            path = tmp_path / "odd"
    made = copy(tmp_path, paths=[str(path)])
    assert collected(made) == {}
    assert CANARY not in repr(made.record)
    if kind != "directory":
        assert made.record.skipped


def run_command(tmp_path: Path, **options: Any) -> Context:
    made = context("command", options, tmp_path)
    collector = collectors.load("command", made)
    collector.prepare()
    collector.begin()  # the rehearsal starts nothing
    # In it the thread that repeats a command has to begin, also on a busy machine.
    made.window = Window(time.time(), 3.0 if "during" in options.get("when", ()) else 0.1)
    collector.begin()
    time.sleep(max(0.0, made.window.end - time.time()))
    collector.end()
    collector.finish()
    return made


def test_a_command_runs_before_during_and_after(tmp_path: Path) -> None:
    made = run_command(
        tmp_path, argv=["sh", "-c", "echo out; echo err >&2"], when=["before", "during", "after"], every="1s"
    )
    found = collected(made)
    assert found["commands/command/before.stdout"] == b"out\n"
    assert found["commands/command/during-00000.stdout"] == b"out\n"
    assert found["commands/command/after.stderr"] == b"err\n"
    assert verdicts(made) == {"commands/command": ("complete", "")}
    assert {tuple(c["argv"]) for c in made.record.commands} == {("sh", "-c", "echo out; echo err >&2")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"argv": ["sh", "-c", "exit 3"]}, "exit status 3"),
        ({"argv": ["sleep", "60"], "limit": "1s"}, "no end within 1 s"),
        ({"argv": ["head", "-c", "9000", "/dev/zero"], "output_limit": "1kB"}, "output cut at 1000 B"),
    ],
)
def test_a_command_that_goes_wrong_costs_its_own_verdict(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    made = run_command(tmp_path, when=["before"], **options)
    verdict, reasons = verdicts(made)["commands/command"]
    assert verdict == "partial"
    assert said in reasons


def test_a_status_that_is_expected_is_no_trouble(tmp_path: Path) -> None:
    made = run_command(tmp_path, argv=["sh", "-c", "exit 3"], when=["before"], ok_exit=[0, 3])
    assert verdicts(made) == {"commands/command": ("complete", "")}


def test_a_program_that_is_not_there_is_a_gap(tmp_path: Path) -> None:
    with pytest.raises(Gap, match="not installed"):
        run_command(tmp_path, argv=["no-such-program"])


def test_a_command_that_cannot_be_started_at_all_leaves_nothing_that_claims_to_be_whole(tmp_path: Path) -> None:
    made = context("command", {"argv": ["echo", "a\0b"], "when": ["before"]}, tmp_path)
    with pytest.raises(ValueError, match="null byte"):
        collectors.load("command", made).prepare()
    assert verdicts(made)["commands/command"] == ("partial", "before: ValueError: embedded null byte")
    assert collected(made) == {}


def test_nor_does_one_that_breaks_off_during_the_window(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        run_command(tmp_path, argv=["echo", "a\0b"], when=["during"])


def test_output_and_files_go_to_the_disk_as_they_come(tmp_path: Path) -> None:
    """300 MB each, in a process that may have 64 MB more than Python itself has."""
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 300_000_000)
    script = """
import json, resource, sys, time
from pathlib import Path
from retina_runner.agent import collectors
from retina_runner.agent.context import Context, Record
folder, name, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
used = int([l for l in open("/proc/self/status") if l.startswith("VmData")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), -1))
record = Record()
collector = collectors.load(name, Context(name, options, folder / "out", folder / "raw", record, lambda event, **fields: None))
collector.prepare()
print(json.dumps([[v.verdict, v.reasons] for v in record.verdicts]))
"""
    for name, options in (
        (
            "command",
            {
                "argv": ["head", "-c", "300000000", "/dev/zero"],
                "output_limit": "1GB",
                "limit": "150s",
                "when": ["before"],
            },
        ),
        ("files", {"paths": [f"{tmp_path}/large"], "max_size": "1GB", "total_size": "1GB", "when": ["before"]}),
    ):
        normal = schema.normalise(options, schema.load(f"collectors/{name}"))
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), name, json.dumps(normal)],
            capture_output=True, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip
        assert (done.stderr, done.stdout) == ("", '[["complete", []]]\n')
    sizes = [p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sizes == [300_000_000, 300_000_000]


@pytest.mark.root
@pytest.mark.parametrize("name", ["iptables", "network-state"])
def test_what_is_cut_is_told_and_what_breaks_off_is_not_whole(lab: Lab, tmp_path: Path, name: str) -> None:
    for number in range(30):
        lab.inside(lab.a, "iptables-nft", "-A", "INPUT", "-s", f"10.9.0.{number}", "-j", "ACCEPT")
    options = {"netns": lab.a if name == "iptables" else [lab.a], "output_limit": "1kB"}
    path, found = f"state/delta/{name}.json", []
    for blocked in (False, True):
        (tmp_path / str(blocked)).mkdir()
        made = context(name, options, tmp_path / str(blocked))
        collector = collectors.load(name, made)
        collector.prepare()
        collector.begin()
        collector.end()
        if blocked:
            (made.out / "state").mkdir(exist_ok=True)
            (made.out / "state" / "delta").write_text("not a folder")
            with pytest.raises(OSError, match="exists"):
                collector.finish()
        else:
            collector.finish()
        found.append(verdicts(made)[path])
    assert [verdict for verdict, _ in found] == ["partial", "partial"]
    assert "cut at 1000 B" in found[0][1]
    assert "unfinished: " in found[1][1]
