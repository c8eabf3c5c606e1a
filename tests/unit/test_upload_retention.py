"""What an upload target forgets: only finished runs of this runbook, whole, and never a key that isn't provably theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner.cli import main
from retina_runner.errors import DocumentError
from retina_runner.report import NodeReport, RunReport, UploadReport, to_json
from retina_runner.retention import Keep, doomed
from retina_runner.runbook_reading import parse_runbook
from retina_runner.uploads import Grant, Item, NotStored, Parcel, alien
from retina_runner.uploads.directory import DirectoryTarget
from retina_runner.uploads.keys import DEFAULT_KEY, beside, fixed_part, key_of
from retina_runner.uploads.pruning import forget, parcels_of, runs_at

NOW = 1_800_000_000.0


@dataclass
class InMemoryTarget:
    """A store that is a dict: key to (content, metadata). Real ones are in tests/storage."""

    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    refuse_after: int = 10**9
    via: str = "runner"
    prefix: str = "p"

    def describe(self) -> str:
        return "memory"

    def preflight(self, needed_s: float) -> None: ...

    def place(self) -> dict[str, Any] | None:
        return None

    def key_for(self, parcel: Parcel, name: str = "") -> str:
        key = key_of(DEFAULT_KEY, "p", parcel)
        return beside(key, name) if name else key

    def store(self, parcel: Parcel) -> str:
        self.objects[self.key_for(parcel)] = (b"x" * parcel.size_bytes, parcel.metadata)
        return self.key_for(parcel)

    def note(self, parcel: Parcel, name: str, content: bytes) -> None:
        self.objects[self.key_for(parcel, name)] = (content, parcel.metadata)

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        return None

    def confirm(self, parcel: Parcel, answer: Mapping[str, Any]) -> str:
        return ""

    def listing(self, below: str) -> Iterator[tuple[str, int]]:
        yield from ((k, len(c)) for k, (c, _) in self.objects.items() if k.startswith(below))

    def read(self, key: str) -> Iterator[bytes]:
        yield self.objects[key][0]

    def find(self, parcel: Parcel, name: str = "") -> Item | None:
        key = self.key_for(parcel, name)
        if key not in self.objects:
            return None
        content, metadata = self.objects[key]
        return Item(key, len(content), alien(parcel, metadata, bool(name)))

    def remove(self, item: Item) -> None:
        if len(self.removed) >= self.refuse_after:
            raise NotStored("refused (403)")
        del self.objects[item.key]
        self.removed.append(item.key)


def report_of(
    number: int, runbook: str = "nightly", *, nodes: int = 2, ended: bool = True, stored: bool = True
) -> RunReport:
    """A run of day `number` whose nodes' archives are stored at the one target."""
    run = f"{runbook}-{number}"
    uploads = (UploadReport("memory", "stored" if stored else "failed", "x"),)
    return RunReport(
        run=run, runbook=runbook, started=f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T00:00:00Z", exit_code=0 if ended else None,
        terms={"uploads": [{"kind": "s3", "options": {}}]},
        nodes=tuple(
            NodeReport(f"n{i}", f"n{i}", "", "ssh", state="collected", archive=f"/runs/{run}/archives/{run}-n{i}.tar.gz",
                       verified=True, sha256=f"{number:032x}{i:032x}", size_bytes=100, uploads=uploads)
            for i in range(nodes)
        ),
    )  # fmt: skip


def put(target: InMemoryTarget | DirectoryTarget, report: RunReport) -> None:
    """As a run leaves it."""
    for parcel in parcels_of(report):
        if isinstance(target, InMemoryTarget):
            target.store(parcel)
            target.note(parcel, "manifest.json", b"{}")
    target.note(next(parcels_of(report)), "run.json", json.dumps(to_json(report)).encode())


@st.composite
def stores(draw: st.DrawFn) -> tuple[InMemoryTarget, dict[str, RunReport]]:
    """A store with runs of two runbooks, some not over or not stored everywhere, and with keys of anybody's beside them."""
    target, reports = InMemoryTarget(), {}
    for number in draw(st.lists(st.integers(0, 200), unique=True, max_size=10)):
        report = report_of(
            number, draw(st.sampled_from(["nightly", "nightly", "nightly", "other"])),
            nodes=draw(st.integers(1, 3)), ended=draw(st.booleans() | st.just(True)), stored=draw(st.booleans() | st.just(True)),
        )  # fmt: skip
        reports[report.run] = report
        put(target, report)
    for key in draw(st.lists(st.sampled_from(sorted(target.objects) or ["p/x"]), max_size=6)):
        how = draw(st.sampled_from(["foreign", "stripped", "beside", "gone"]))
        if how == "foreign":
            target.objects[key] = (b"theirs", {"run": "somebody", "node": "n0", "sha256": "0"})
        elif how == "stripped":
            target.objects[key] = (target.objects[key][0], {}) if key in target.objects else (b"", {})
        elif how == "beside":
            target.objects[key + ".notes"] = (b"theirs", {"run": key.split("/")[1] if "/" in key else ""})
        else:
            target.objects.pop(key, None)
    return target, reports


KEEPS = st.builds(
    Keep, runs=st.none() | st.integers(1, 4), days=st.none() | st.integers(1, 200), size_bytes=st.none() | st.integers(1, 3000),
    pin=st.sampled_from([(), ("nightly-1*",), ("*",)]),
)  # fmt: skip


@given(stores(), KEEPS)
def test_only_what_is_ours_of_runs_that_may_go_goes(
    made: tuple[InMemoryTarget, dict[str, RunReport]], keep: Keep
) -> None:
    target, reports = made
    before = dict(target.objects)
    runs = runs_at(target, "nightly", {})
    going = {d.past.name for d in doomed((r.past for r in runs), keep, NOW)}
    for run in runs:
        if run.past.name in going:
            forget(target, run)
    newest = max((r.past for r in runs), key=lambda p: (p.began, p.name), default=None)
    for key in before.keys() - target.objects.keys():
        run_name = key.split("/")[1]
        report, (content, metadata) = reports[run_name], before[key]
        assert metadata["run"] == run_name, "another's"
        assert content != b"theirs"
        assert report.runbook == "nightly"
        assert report.exit_code == 0, "not over"
        assert all(u.state == "stored" for n in report.nodes for u in n.uploads)
        assert newest is not None
        assert run_name != newest.name
        assert not keep.pin or (keep.pin == ("nightly-1*",) and not run_name.startswith("nightly-1"))
    for key in target.objects:
        assert target.objects[key] == before[key]


@given(st.integers(0, 12))
def test_what_was_cut_short_goes_on(steps: int) -> None:
    """A deletion that is refused after so many keys leaves the run's run.json, by which the next one finds the rest."""
    target = InMemoryTarget()
    for number in (1, 2):
        put(target, report_of(number))
    target.refuse_after = steps
    (old,) = (r for r in runs_at(target, "nightly", {}) if r.past.name == "nightly-1")
    if steps < 5:
        with pytest.raises(NotStored, match="to list, to read and to delete"):
            forget(target, old)
        assert "p/nightly-1/run.json" in target.objects
    target.refuse_after = 10**9
    for run in runs_at(target, "nightly", {}):
        if run.past.name == "nightly-1":
            assert forget(target, run) == ()
    assert sorted(target.objects) == sorted(k for k in target.objects if k.startswith("p/nightly-2/"))
    assert len(target.objects) == 5


def test_a_key_that_is_somebody_elses_stays_and_so_does_the_run_that_names_it() -> None:
    target = InMemoryTarget()
    put(target, report_of(1))
    key = "p/nightly-1/nightly-1-n0.tar.gz"
    target.objects[key] = (b"theirs", {"run": "nightly-1", "node": "n0", "sha256": "other"})
    (run,) = runs_at(target, "nightly", {})
    assert forget(target, run) == (f"{key} stays: its metadata say sha256 = other",)
    assert sorted(target.objects) == [key, "p/nightly-1/run.json"]


def test_a_run_json_that_lies_elsewhere_or_is_none_is_no_run() -> None:
    target = InMemoryTarget()
    put(target, report_of(1))
    text = target.objects["p/nightly-1/run.json"]
    target.objects |= {
        "p/copies/run.json": text,
        "p/x/run.json": (b"{", {}),
        "p/y/run.json": (b"[1]", {}),
        "p/z/run.json": (b"\xff", {}),
    }
    assert [r.past.name for r in runs_at(target, "nightly", {})] == ["nightly-1"]
    assert runs_at(target, "other", {}) == ()


@pytest.mark.parametrize(
    ("key", "prefix", "fixed"),
    [
        (DEFAULT_KEY, "", ""),
        (DEFAULT_KEY, "a/b", "a/b"),
        ("{prefix}/x-{run}/{archive}", "a", "a"),
        ("all/{run}/{archive}", "a", "all"),
        ("{node}/{run}/{archive}", "", ""),
    ],
)
def test_what_every_key_begins_with(key: str, prefix: str, fixed: str) -> None:
    assert fixed_part(key, prefix) == fixed
    assert key_of(key, prefix, Parcel("r", "n", Path("a.tar.gz"), "")).startswith(fixed)


BOOK = "{name: nightly, captures: [{collect: [iptables]}], upload: [{%s}]}"


def test_the_runbook_says_it_for_each_target() -> None:
    book = parse_runbook((BOOK % "directory: {path: here, retention: {runs: 3, bytes: 1MB}}").encode(), "r.yaml")
    (upload,) = book.uploads
    assert upload.retention == Keep(runs=3, size_bytes=1_000_000)
    assert upload.options == {"path": str(Path.cwd() / "here")}
    assert parse_runbook((BOOK % "directory: here").encode(), "r.yaml").uploads[0].retention is None
    with pytest.raises(
        DocumentError, match=r"r\.yaml:1:\d+: upload\[0\]\.s3\.key: with retention each run needs a folder"
    ):
        parse_runbook((BOOK % "s3: {bucket: bbb, key: '{node}/{archive}', retention: {runs: 3}}").encode(), "r.yaml")
    with pytest.raises(DocumentError, match="unknown key retention"):
        parse_runbook((BOOK % "host_path: {path: here, retention: {runs: 3}}").encode(), "r.yaml")


def test_prune_forgets_in_a_folder_and_check_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "mine.txt").write_text("theirs")
    from retina_runner.agent.archive import digest_of

    for number in (1, 2, 3):
        report = report_of(number, nodes=1)
        path = folder / f"nightly-{number}-n0.tar.gz"
        path.write_bytes(b"archive" * number)
        report = replace(report, nodes=(replace(report.nodes[0], sha256=digest_of(path)[1]),))
        put(DirectoryTarget(str(folder)), report)
        (folder / f"nightly-{number}-n0.manifest.json").write_text(json.dumps({"base": f"nightly-{number}-n0"}))
    (folder / "nightly-2-n0.tar.gz").write_bytes(b"written anew by somebody")
    runbook = tmp_path / "r.yaml"
    runbook.write_text(BOOK % "directory: {path: shelf, retention: {runs: 1}}")
    before = sorted(p.name for p in folder.iterdir())
    # The newest is kept besides the one that `runs` keeps.
    put(DirectoryTarget(str(folder)), report_of(4, nodes=1))
    assert main(["prune", str(runbook), "--runs", str(tmp_path / "none"), "--check"]) == 0
    told = capsys.readouterr().out
    assert f"{folder}: nightly-1: would go: more than 1 runs" in told
    assert f"{folder}: nightly-4: stays" in told
    assert sorted(p.name for p in folder.iterdir()) == sorted([*before, "nightly-4.run.json"])
    assert main(["prune", str(runbook), "--runs", str(tmp_path / "none")]) == 0
    told = capsys.readouterr().out
    assert "nightly-2-n0.tar.gz stays: it has another sha256 than the archive" in told
    left = {p.name for p in folder.iterdir()}
    assert not {n for n in left if n.startswith("nightly-1")}
    assert {"mine.txt", "nightly-2-n0.tar.gz", "nightly-2.run.json", "nightly-4.run.json"} <= left
