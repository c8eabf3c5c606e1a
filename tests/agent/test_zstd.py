"""`.tar.zst`: the node's own zstd program writes it, every reader of zstd reads it, and no failure of the program loses a byte."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_runner.agent.framing import FRAME_BYTES, FRAME_LEAST_BYTES, ZstdFraming
from retina_runner.agent.process import SEARCH_PATH
from retina_runner.verification import unpack, verify_archive
from tests.agent.test_archive import TOP, names, pieces, write
from tests.lab import REPOSITORY, RETINA_RUN, Run

RUNBOOK = """
name: dense
duration: 2s
compression: zstd
captures:
  - collect:
      - command: {argv: [sh, -c, "head -c 6000000 /dev/urandom; head -c 3000000 /dev/zero"], when: [after], output_limit: 20MB}
      - network-state
"""


def read(path: Path) -> dict[str, bytes]:
    """By the zstd program and Python's tarfile: neither of them is what we read with."""
    plain = subprocess.run(["zstd", "-q", "-dc", str(path)], capture_output=True, check=True).stdout
    whole = path.with_suffix("")
    whole.write_bytes(plain)
    with tarfile.open(whole, "r:") as tar:
        return {m.name.removeprefix(TOP + "/"): tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def without_program(data: bytes) -> bytes:
    return b""


@given(
    st.dictionaries(names.map("/".join), pieces, max_size=4),
    st.integers(min_value=0, max_value=2),
    st.integers(min_value=-1, max_value=2),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, list[bytes]], pad: int, fast: int, fails: bool
) -> None:
    """Also with a manifest larger than the room at the front, with pieces in a hurry, and if the program never works."""
    members = {n: p for n, p in members.items() if not any(o.startswith(n + "/") for o in members)}
    path = tmp_path_factory.mktemp("archive") / "a.tar.zst"
    manifest = json.dumps({"pad": [os.urandom(8).hex() for _ in range(pad * 400)]}).encode()
    framing = ZstdFraming(without_program) if fails else ZstdFraming()
    write(path, members, manifest, 4096, framing, fast)
    found = read(path)
    assert next(iter(found)) == "manifest.json"
    assert found.pop("manifest.json") == manifest
    assert found == {n: b"".join(p) for n, p in members.items()}


@pytest.mark.parametrize(
    "reader",
    [
        ["tar", "tf"],
        ["tar", "--zstd", "-tf"],
        ["bsdtar", "tf"],
        ["sh", "-c", 'zstd -qt "$0" && zstd -qdc "$0" | tar tf -'],
    ],
    ids=lambda r: " ".join(r)[:24],
)
def test_every_reader_lists_it_without_a_word_of_complaint(tmp_path: Path, reader: list[str]) -> None:
    path = tmp_path / "a.tar.zst"
    long_name = "state/before/" + "n" * 120 + ".txt"
    write(path, {"a.pcap": [b"\0" * 100_000, b"x" * 5000], long_name: [b"hello\n"], "empty": []}, framing=ZstdFraming())
    done = subprocess.run([*reader, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"{TOP}/{n}" for n in ("manifest.json", "a.pcap", long_name, "empty")]


def test_memory_doesnt_grow_with_a_member(tmp_path: Path) -> None:
    """A member of 200 MB, in a process that may have 64 MB more than Python itself has: a few frames at a time are held."""
    script = f"""
import os, resource, sys
from pathlib import Path
from retina_runner.agent.archive import ArchiveWriter
from retina_runner.agent.framing import ZstdFraming
noise = os.urandom(1 << 20)
writer = ArchiveWriter(Path(sys.argv[1]), {TOP!r}, 0, ZstdFraming())
member = writer.open_member("big.pcap")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(200):
    member.write(noise[number:] + noise[:number])
member.close()
writer.finish(lambda infos: b"{{}}")
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, children)
"""
    path = tmp_path / "a.tar.zst"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    grown_kib, program_kib = map(int, done.stdout.split())
    assert grown_kib < 65536
    assert program_kib < 65536
    assert path.stat().st_size < 210 << 20


@pytest.mark.parametrize("fails_after", [0, 1])
def test_a_program_that_dies_loses_nothing(tmp_path: Path, fails_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real program's frames, until there is none any more: killed by its memory limit, removed, out of processes."""
    from retina_runner.agent import framing

    calls = 0

    def fragile(data: bytes) -> bytes:
        nonlocal calls
        calls += 1
        return framing._by_program(data) if calls <= fails_after else b""

    noise = os.urandom(3 * FRAME_BYTES // 2)
    path = tmp_path / "a.tar.zst"
    write(path, {"a": [noise, b"\0" * FRAME_BYTES]}, framing=ZstdFraming(fragile))
    assert read(path)["a"] == noise + b"\0" * FRAME_BYTES
    assert calls > 2


@pytest.mark.root
def test_a_whole_run(tmp_path: Path) -> None:
    run = Run(RUNBOOK, tmp_path)
    assert run.end() == 0, (run.events[-5:], run.stderr)
    (path,) = (run.directory / "archives").iterdir()
    assert path.name.endswith("UTC.tar.zst")
    assert path.stat().st_size < 7_500_000
    told = verify_archive(path)
    assert told.ok, told.problems
    assert told.manifest is not None
    assert told.manifest["base"] == path.name.removesuffix(".tar.zst")
    folder = unpack(path, tmp_path / "out")
    listed = subprocess.run(["tar", "tf", str(path)], capture_output=True, text=True, check=True).stdout.split()
    assert {str(p.relative_to(folder.parent)) for p in folder.rglob("*") if p.is_file()} == set(listed)
    done = subprocess.run(
        [*RETINA_RUN, "verify", str(path)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0
    assert f"{path}: ok" in done.stdout
    damage(path, tmp_path / path.name)


def damage(path: Path, broken: Path) -> None:
    """Cut anywhere, or altered anywhere but in what every reader skips (the room at the front, a tar's padding), it isn't
    intact. The last 13 bytes are the frame that ends the tar."""
    whole = path.read_bytes()
    skipped = whole.index(b"\x50\x2a\x4d\x18")
    room = 8 + struct.unpack("<I", whole[skipped + 4 : skipped + 8])[0]
    for cut in (3, 4, 100, skipped, skipped + 5, skipped + room, len(whole) // 2, len(whole) - 13, len(whole) - 1):
        broken.write_bytes(whole[:cut])
        assert not verify_archive(broken).ok, cut
    for more in (b"x", whole[-13:], whole):
        broken.write_bytes(whole + more)
        assert not verify_archive(broken).ok, more[:8]
    spots = [*range(0, skipped, 1499), *range(skipped, skipped + 8), *range(skipped + room, len(whole), 600_011)]
    for at in [*spots, *range(len(whole) - 13, len(whole))]:
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert not verify_archive(broken).ok, at


def test_an_archive_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    """A window of 128 MiB, and 2 GB of zeros in a few kilobytes: neither is given."""
    for number, option in enumerate(["--long=27", "-1"]):
        path = tmp_path / f"bomb{number}.tar.zst"
        packed = subprocess.run(
            ["sh", "-c", f"head -c 2000000000 /dev/zero | zstd -q {option} -c > {path}"],
            capture_output=True,
            check=False,
        )
        assert packed.returncode == 0
        script = (
            "import sys\nfrom retina_runner.verification import verify_archive\n"
            # Not ru_maxrss, which begins with what the process was before exec(2): pytest.
            "peak = [w.split()[1] for w in open('/proc/self/status') if w.startswith('VmHWM')][0]\n"
            "print(verify_archive(sys.argv[1]).problems, peak)"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
        assert "()" not in done.stdout
        assert int(done.stdout.split()[-1]) < 150_000, done.stdout


@pytest.mark.root
def test_a_node_without_the_program_makes_a_gzip_archive_and_says_so(tmp_path: Path) -> None:
    """In a mount namespace where every place that programs are looked for in has no zstd."""
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    empty.chmod(0o644)  # not executable: not a program
    places = sorted({str(Path(p, "zstd").resolve()) for p in SEARCH_PATH.split(":") if Path(p, "zstd").exists()})
    assert places
    hide = " && ".join(f"mount --bind {empty} {place}" for place in places)
    assert shutil.which("unshare")
    run = Run(RUNBOOK, tmp_path, wrapper=("unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh"))
    assert run.end() == 0, (run.events[-5:], run.stderr)
    archive = run.archive()
    assert archive.path.name.endswith(".tar.gz")
    assert verify_archive(archive.path).ok
    assert any("zstd: not installed" in e["why"] for e in run.all("warning"))
    (checked,) = run.all("node-check")
    assert [p["what"] for p in checked["problems"]] == ["compression"]
    assert checked["ok"]
    assert any("zstd" in w for w in archive.manifest["warnings"])


def test_small_pieces_are_not_worth_a_process() -> None:
    def never(data: bytes) -> bytes:
        raise AssertionError("a process for so little")

    squeezer = ZstdFraming(never).squeezer(stored=False)
    assert squeezer.compress(b"x" * (FRAME_LEAST_BYTES - 1)) == b""
    assert squeezer.end().endswith(b"x" * (FRAME_LEAST_BYTES - 1))
