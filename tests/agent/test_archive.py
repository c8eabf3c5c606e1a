"""The archive is plain tar and plain gzip to every reader, whatever grew inside it, and damage anywhere is found and named."""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_runner.agent.archive import ArchiveInfo, ArchiveWriter
from retina_runner.agent.framing import COUNTED_MOST_BYTES, Framing, GzipFraming, crc32_combine
from retina_runner.agent.member import MemberInfo
from retina_runner.errors import ArchiveError
from retina_runner.verification import unpack, verify_archive
from tests.lab import REPOSITORY, RETINA_RUN, Run

TOP = "quick-n1-20261123031700UTC"


def write(
    path: Path,
    members: dict[str, list[bytes]],
    manifest: bytes = b"{}\n",
    reserve_bytes: int = 65536,
    framing: Framing | None = None,
    fast: int = -1,
) -> ArchiveInfo:
    """Members grow in turn, a piece each, as several collectors' do at once; the pieces of number `fast` in a hurry."""
    writer = ArchiveWriter(path, TOP, 1_000_000_000, framing, reserve_bytes)
    opened = {name: writer.open_member(name) for name in members}
    for number in range(max((len(p) for p in members.values()), default=0)):
        for name, pieces in members.items():
            if number < len(pieces):
                opened[name].write(pieces[number], fast=number == fast)
    for member in opened.values():
        member.close()
    return writer.finish(lambda infos: manifest)


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:gz") as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.removeprefix(TOP + "/")] = file.read()
        return found


names = st.lists(
    st.text("abcxyz-_.0", min_size=1, max_size=12).filter(lambda n: n.strip(".") == n), min_size=1, max_size=3
)
DENSE = random.Random(7).randbytes(70_000)
"""Nothing makes it smaller."""
LARGE = [DENSE[:10] * (length // 10) for length in (COUNTED_MOST_BYTES - 2, COUNTED_MOST_BYTES + 8)]
"""On either side of what checksums are combined by in two ways."""
pieces = st.lists(st.one_of(st.binary(max_size=600), st.just(b"A" * 70_000), st.just(DENSE)), max_size=6)


@given(
    st.dictionaries(names.map("/".join), pieces, max_size=5),
    st.integers(min_value=0, max_value=3),
    st.integers(min_value=-1, max_value=2),
    st.integers(min_value=0, max_value=1),
)
@settings(max_examples=60)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, list[bytes]], pad: int, fast: int, level: int
) -> None:
    """Also with a manifest larger than the room at the front."""
    members = {n: p for n, p in members.items() if not any(o.startswith(n + "/") for o in members)}
    path = tmp_path_factory.mktemp("archive") / "a.tar.gz"
    manifest = json.dumps({"pad": [f"{n:08x}" for n in range(pad * 5000)]}).encode()
    made = write(path, members, manifest, 4096, GzipFraming(level), fast)
    found = read(path)
    assert next(iter(found)) == "manifest.json"
    assert found.pop("manifest.json") == manifest
    assert found == {n: b"".join(p) for n, p in members.items()}
    assert made.size_bytes == path.stat().st_size


@pytest.mark.parametrize(
    "reader",
    [
        ["tar", "tzf"],
        ["tar", "--warning=no-alone-zero-block", "-tzf"],
        ["bsdtar", "tzf"],
        ["busybox", "tar", "tzf"],
        ["sh", "-c", 'gzip -t "$0" && gzip -dc "$0" | tar tf -'],
        ["sh", "-c", 'pigz -dc "$0" | tar tf -'],
        ["python3", "-c", "import sys, tarfile\nfor m in tarfile.open(sys.argv[1], 'r|gz'): print(m.name)"],
    ],
    ids=lambda r: " ".join(r)[:24],
)
def test_every_reader_lists_it_without_a_word_of_complaint(tmp_path: Path, reader: list[str]) -> None:
    path = tmp_path / "a.tar.gz"
    long_name = "state/before/" + "n" * 120 + ".txt"
    write(path, {"a.pcap": [b"\0" * 100_000, b"x" * 5000], long_name: [b"hello\n"], "empty": []})
    done = subprocess.run([*reader, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"{TOP}/{n}" for n in ("manifest.json", "a.pcap", long_name, "empty")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "", ".", "a/.", "a\0b"])
def test_a_path_that_could_leave_the_archive_is_refused(tmp_path: Path, path: str) -> None:
    writer = ArchiveWriter(tmp_path / "a.tar.gz", TOP, 0)
    with pytest.raises(ValueError, match=r"\S"):
        writer.open_member(path)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_deflating_wouldnt_make_smaller_is_stored_and_only_that(tmp_path: Path) -> None:
    made = write(tmp_path / "a.tar.gz", {"a": [DENSE, b"A" * 70_000, DENSE, b"few"]}, reserve_bytes=4096)
    assert read(tmp_path / "a.tar.gz")["a"] == DENSE + b"A" * 70_000 + DENSE + b"few"
    content = (tmp_path / "a.tar.gz").read_bytes()
    # As it is, but for five bytes before each 64 KiB and what surrounds it.
    assert content.count(DENSE[:60_000]) == 2
    assert made.size_bytes < 4096 + 2 * len(DENSE) + 2048


def test_text_that_deflates_little_is_deflated(tmp_path: Path) -> None:
    """A tenth of it is enough: payload is random, headers are not."""
    packets = b"".join(b"header" * 4 + random.Random(n).randbytes(216) for n in range(600))
    made = write(tmp_path / "a.tar.gz", {"a": [packets]}, reserve_bytes=4096)
    assert made.size_bytes < 4096 + 0.96 * len(packets)


@given(st.binary(max_size=300), st.one_of(st.binary(max_size=300), st.sampled_from(LARGE)))
def test_checksums_combine(first: bytes, second: bytes) -> None:
    assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def manifest_of(infos: tuple[MemberInfo, ...]) -> bytes:
    """Far from a whole manifest: what is wrong with it is the schema's to say, and it is said."""
    files = [{"path": i.path, "size_bytes": i.size_bytes, "sha256": i.sha256} for i in infos]
    return json.dumps({"base": TOP, "files": files}).encode()


def test_a_manifest_that_is_not_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    writer = ArchiveWriter(path, TOP, 0)
    writer.add_bytes("a", b"x")
    writer.finish(manifest_of)
    assert any("manifest" in p for p in verify_archive(path).problems)
    with pytest.raises(ArchiveError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [f"{TOP}/../evil", "/evil", f"{TOP}/link", "other/x"])
def test_a_hostile_archive_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in ((f"{TOP}/manifest.json", manifest_of(())), (name, b"x")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            if member.endswith("/link"):
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(info, io.BytesIO(content))
    assert verify_archive(path).problems
    with pytest.raises(ArchiveError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    """Of a real archive every 61st byte is altered, but in the gzip header's comment, which is read by nobody."""
    run = Run(
        "{name: damage, duration: 2s, captures: [{collect: [{command: {argv: [head, -c, 9000, /dev/urandom]}}]}]}",
        tmp_path,
    )
    assert run.end() == 0, run.events
    path = run.archive().path
    assert verify_archive(path).ok
    whole = path.read_bytes()
    broken = tmp_path / "b.tar.gz"
    for content, said in ((whole[:-9], "truncated"), (whole[: len(whole) // 2], "truncated"), (whole + b"x", "behind")):
        broken.write_bytes(content)
        assert any(said in p for p in verify_archive(broken).problems)
    comment_ends = whole.index(b"\0", 10)
    for at in [0, 1, 2, *range(comment_ends + 1, len(whole), 61), len(whole) - 8, len(whole) - 4]:
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert not verify_archive(broken).ok, at
    told = retina_run_verify(broken, path)
    assert told.returncode == 1
    assert f"{path}: ok" in told.stdout


def retina_run_verify(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RETINA_RUN, "verify", *map(str, paths)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
