"""The conformance suite over a chroot of this machine, and what keeps a chroot or a container from being entered."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.executors import LinkLost, LinkRefused
from retina_runner.executors.entered import EnteredLink
from retina_runner.inventory.connection import Connection
from retina_runner.verification import verify_archive
from tests.executors.conformance import Bench, Conformance, SharedFolder, open_link
from tests.lab import RETINA_RUN

pytestmark = pytest.mark.root


@pytest.fixture
def root(_unharmed: None, tmp_path: Path) -> Iterator[Path]:
    """This machine's own system once more, with a /var/tmp of its own."""
    root = tmp_path / "root"
    root.mkdir()
    made = []
    for argv, at in ((["--bind", "/"], ""), (["-t", "proc", "proc"], "proc"), (["--bind", "/dev"], "dev"),
                     (["-t", "tmpfs", "tmpfs"], "var/tmp")):  # fmt: skip
        subprocess.run(["mount", *argv, str(root / at)], check=True)
        made.append(root / at)
    yield root
    for at_ in reversed(made):
        subprocess.run(["umount", "-l", str(at_)], check=True)


def link_to(root: Path, work: str = "/var/tmp/work", **said: str) -> EnteredLink:
    return EnteredLink(Connection(host="box", address=f"@chroot/{root}", connector="chroot", **said), work)  # type: ignore[arg-type]


class TestChroot(Conformance, SharedFolder):
    @pytest.fixture
    def bench(self, root: Path) -> Bench:
        return Bench("chroot", "/var/tmp/work", lambda: link_to(root), lambda: link_to(root))


def test_a_run_by_its_words_in_an_inventory(root: Path, tmp_path: Path) -> None:
    """`@chroot/DIR` as a user says it: one archive, nothing left in there, and it can be cleaned up and listed."""
    book = tmp_path / "book.yaml"
    book.write_text(
        f"name: boxed\nduration: 1s\ncaptures: [{{nodes: {{inventory: '@chroot/{root},'}}, "
        "collect: [{command: {argv: [pwd], when: [before]}}, network-state]}]\n"
    )
    done = subprocess.run([*RETINA_RUN, str(book), "--output", str(tmp_path / "runs")], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    (archive,) = (tmp_path / "runs").glob("*/archives/*.tar.gz")
    assert verify_archive(archive).problems == ()
    assert list((root / "var/tmp").iterdir()) == []
    (record,) = (tmp_path / "runs").glob("*/run.json")
    assert [n["executor"] for n in json.loads(record.read_text())["nodes"]] == ["chroot"]
    cleaned = subprocess.run([*RETINA_RUN, "cleanup", str(record.parent)], capture_output=True, text=True)
    assert cleaned.returncode == 0, (cleaned.stdout, cleaned.stderr)


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("nothing is there", "no such directory"),
        ("no /proc", "it has no /proc"),
        ("no python", "python9: not installed"),
        ("no such user", "chroot: invalid user"),
    ],
)
def test_what_cannot_be_entered_says_why(root: Path, tmp_path: Path, lacking: str, why: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    link = {
        "nothing is there": lambda: link_to(tmp_path / "absent"),
        "no /proc": lambda: link_to(bare),
        "no python": lambda: link_to(root, python="python9"),
        "no such user": lambda: link_to(root, user="nobody-at-all"),
    }[lacking]()
    with pytest.raises(LinkRefused, match=why):
        open_link(lambda: link)


ENGINE = """#!/bin/sh
case "$*" in
"container inspect"*gone) echo 'Error: no such container gone' >&2; exit 1;;
"container inspect"*asleep) echo 'false false';;
"container inspect"*paused) echo 'true true';;
"container inspect"*) echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1;;
ps*) echo gonf; echo web;;
esac
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "no such container (running are gonf)"),
        ("asleep", "this container doesn't run (docker start asleep)"),
        ("paused", "this container is paused (docker unpause paused)"),
        ("any", "Cannot connect to the Docker daemon"),
    ],
)
def test_an_engine_s_answers_by_a_mocked_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    (tmp_path / "docker").write_text(ENGINE)
    (tmp_path / "docker").chmod(0o755)
    link = EnteredLink(Connection(host=name, address=f"@docker/{name}", connector="docker"), "/var/tmp/work")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(LinkRefused) as refused:
            link.connect()
    assert why in str(refused.value)


def test_an_engine_that_goes_away_later_is_a_lost_connection_by_a_mocked_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon may be restarted in the window, which containers outlive by `live-restore`: it is tried again."""
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\necho true false\n")
    engine.chmod(0o755)
    link = EnteredLink(Connection(host="web", address="web", connector="docker"), "/var/tmp/work")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        link.connect()
        engine.write_text(ENGINE)
        with pytest.raises(LinkLost, match="Cannot connect to the Docker daemon"):
            link.connect()


def test_no_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    link = EnteredLink(Connection(host="web", address="@podman/web", connector="podman"), "/var/tmp/work")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(LinkRefused, match="it can't be run here"):
            link.connect()
