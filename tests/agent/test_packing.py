"""Packing on real disks of a few hundred kB: whatever fits, the archive is whole, and says exactly what isn't in it."""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.context import PARTIAL, Record, Short, Verdict
from retina_runner.agent.framing import GzipFraming, ZstdFraming
from retina_runner.agent.member import MemberInfo
from retina_runner.agent.packing import Packing
from tests.lab import sh

pytestmark = pytest.mark.root
TOP = "full-n1-20261123031700UTC"


@pytest.fixture
def disk(_unharmed: None, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    sh("umount", str(place))


def sized(place: Path, kib: int) -> Path:
    sh("mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "rrtest", str(place))
    return place


def read(path: Path) -> dict[str, bytes]:
    plain = path
    if path.name.endswith(".zst"):
        plain = path.with_name("plain.tar")
        sh("zstd", "-dq", str(path), "-o", str(plain))
    with tarfile.open(plain) as tar:
        return {m.name.removeprefix(TOP + "/"): tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


class Packed:
    """One archive on a disk, its contents lying on another one (so that giving them up makes no room)."""

    def __init__(self, disk: Path, elsewhere: Path, framing: str):
        made = ZstdFraming() if framing == "zstd" else GzipFraming()
        self.path = elsewhere / f"a{made.ending}"
        self.writer = ArchiveWriter(disk / f"a{made.ending}", TOP, 0, made)
        self.short: dict[str, Short] = {}
        self.infos: tuple[MemberInfo, ...] = ()
        self.packing = Packing(self.writer, lambda s: self.short.__setitem__(s.path, s))

    def finish(self, manifest: bytes = b"{}\n") -> dict[str, bytes]:
        def made(infos: tuple[MemberInfo, ...]) -> bytes:
            self.infos = infos
            return manifest

        info = self.packing.finish(made)
        self.path.write_bytes(info.path.read_bytes())
        found = read(self.path)
        assert found.pop("manifest.json") == manifest
        assert {i.path: i.size_bytes for i in self.infos} == {n: len(c) for n, c in found.items()}
        return found

    def agrees(self, wanted: dict[str, bytes], found: dict[str, bytes]) -> None:
        """What is in it is a beginning of what was wanted; what is short of that was told, and nothing else was."""
        for name, content in wanted.items():
            kept = found.get(name)
            assert (kept is None) == (name in self.short and self.short[name].kept_bytes == 0), name
            if kept is not None:
                assert content.startswith(kept)
                assert (len(kept) < len(content)) == (name in self.short)
                if name in self.short:
                    assert self.short[name].kept_bytes == len(kept)


@pytest.mark.parametrize("framing", ["gzip", "zstd"])
@pytest.mark.parametrize("kib", [64, 68, 100, 400, 1200, 2600, 3400, 9000])
def test_any_disk_that_holds_the_beginning_holds_an_archive(disk: Path, tmp_path: Path, kib: int, framing: str) -> None:
    """One member grows in place, one beside it; then files."""
    choose = random.Random(kib)
    wanted = {f"f{n}": choose.randbytes(choose.choice([0, 10, 3000, 90_000, 1_500_000])) for n in range(8)}
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in wanted.items():
        (folder / name).write_bytes(content)
    packed = Packed(sized(disk, kib), tmp_path, framing)
    for name in ("first.pcap", "second.pcap"):
        wanted[name] = choose.randbytes(1_300_000)
    members = {name: packed.writer.open_member(name) for name in ("first.pcap", "second.pcap")}
    for at in range(0, 1_300_000, 100_000):
        for name, member in members.items():
            try:
                member.write(wanted[name][at : at + 100_000], count=at // 100_000 + 1)
            except OSError:
                pass  # as collectors do: it is kept
    packed.packing.settle()
    packed.packing.add_folder(folder)
    packed.packing.add_held({"held": b"h" * 5000})
    found = packed.finish()
    packed.agrees({**wanted, "held": b"h" * 5000}, found)
    for short in packed.short.values():
        if short.path.endswith(".pcap"):
            assert short.count * 100_000 == short.kept_bytes
    if kib == 9000:
        assert not packed.short
    if kib == 64:
        assert not found


@pytest.mark.parametrize("framing", ["gzip", "zstd"])
def test_a_manifest_that_is_larger_than_its_room_needs_no_second_archive(
    disk: Path, tmp_path: Path, framing: str
) -> None:
    packed = Packed(sized(disk, 3000), tmp_path, framing)
    content = random.Random(1).randbytes(2_500_000)
    packed.packing.add("f", content)
    found = packed.finish(random.Random(2).randbytes(200_000).hex().encode())
    assert found == {"f": content}
    assert not packed.short


def test_files_on_the_same_disk_are_moved(disk: Path, tmp_path: Path) -> None:
    folder = sized(disk, 5000) / "out"
    folder.mkdir()
    wanted = {f"f{n}": os.urandom(1_200_000) for n in range(3)}
    for name, content in wanted.items():
        (folder / name).write_bytes(content)
    packed = Packed(disk, tmp_path, "gzip")
    packed.packing.add_folder(folder)
    assert packed.finish() == wanted
    assert not packed.short


def test_a_short_artefact_is_a_gap_and_lowers_the_verdict_of_what_it_belongs_to() -> None:
    record = Record(owners={"commands/c/after.stdout": "c", "x-1.pcap": "tcpdump"}, packets={"x-1.pcap": 9})
    record.verdicts = [
        Verdict("commands/c", "complete"),
        Verdict("x-*.pcap", "complete"),
        Verdict("files/a", "complete"),
    ]
    record.short(Short("commands/c/after.stdout", 3, 9, 0, "full"))
    record.short(Short("x-1.pcap", 3, 9, 4, "full"))
    record.short(Short("state/y", 0, 9, 0, "full"))
    assert record.packets == {"x-1.pcap": 4}
    assert [(s["collector"], s["what"]) for s in record.skipped] == [
        ("c", "commands/c/after.stdout"), ("tcpdump", "x-1.pcap"), ("agent", "state/y"),
    ]  # fmt: skip
    assert {v.artefact: v.verdict for v in record.verdicts} == {
        "commands/c": PARTIAL, "x-*.pcap": PARTIAL, "files/a": "complete", "state/y": PARTIAL,
    }  # fmt: skip
