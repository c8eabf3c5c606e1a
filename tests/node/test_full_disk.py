"""A node's disk that is full, and stays so: what was there is in a partial archive, what isn't is named, nothing stays.

Somebody else fills the disk to the last byte, and takes whatever is given back.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from retina_runner.verification import verify_archive
from tests.lab import Archive, Lab, Run, eventually
from tests.node.greed import greed

pytestmark = pytest.mark.root


def begin(collect: str, folder: Path, disk: Path, netns: str, *, duration: str = "4s") -> Run:
    book = f"""
name: full
duration: {duration}
limits: {{disk_free_percent: 0, disk_free_bytes: 0B}}
captures: [{{collect: [{collect}]}}]
"""
    return Run(book, folder, "--work-dir", str(disk / "work"), netns=netns)


def crowded(run: Run, disk: Path, status: int, pause_s: float = 3600) -> Archive:
    """The run's end on a disk that somebody else has filled."""
    with greed(disk, pause_s):
        assert run.end() == status, run.events
        assert [p.name for p in disk.iterdir()] == ["theirs"]
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    return archive


def gaps(archive: Archive) -> dict[str, str]:
    return {s["what"]: s["why"] for s in archive.manifest["skipped"]}


NOISE = "command: {argv: [head, -c, %d, /dev/urandom], output_limit: 16MiB, when: [%s], every: 1s}"


def test_what_fits_once_but_not_twice_is_moved_into_the_archive(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    """15 MB that don't compress, and an archive of 15 MB, on 24 MB."""
    run = begin("{" + NOISE % (15_000_000, "after") + "}", tmp_path, small_disk, lab.a, duration="2s")
    assert run.end() == 0, run.events
    assert list(small_disk.iterdir()) == []
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    assert len(archive.members["commands/command/after.stdout"]) == 15_000_000
    assert archive.lacking() == {}


def test_outputs_of_a_command_that_nobody_has_room_for_are_gaps(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    """8 MB before T0 are on the disk, what comes then isn't: it waits in memory for the room that those 8 MB give back."""
    collect = "{" + NOISE % (8_000_000, "before, during") + "}, {network-state: {include: [snmp]}}"
    run = begin(collect, tmp_path, small_disk, lab.a, duration="5s")
    run.wait_for("window")
    archive = crowded(run, small_disk, 3)
    assert archive.manifest["verdict"] == archive.verdict("commands/command")["verdict"] == "partial"
    assert len(archive.members["commands/command/before.stdout"]) == 8_000_000
    assert archive.whole("state/delta/network-state.json"), archive.lacking()
    assert archive.manifest["collectors"]["network-state"]["status"] == "done"
    assert "no space left on the node for" in archive.manifest["collectors"]["command"]["why"]
    lost = {what: why for what, why in gaps(archive).items() if "during" in what}
    assert lost
    assert all("no space left" in why or "disk is full" in why for why in lost.values())
    # How many came to be run is a matter of how busy the machine is; what each has said is there, or a gap, or both in part.
    told = {n for n in archive.members if n.endswith(".stdout")} | set(lost)
    assert len(told) >= len([c for c in archive.manifest["commands"] if c["argv"][0] == "head"]) > 2
    assert {e["limit"] for e in run.all("limit")} == {"disk_full"}


def test_files_that_nobody_has_room_for_are_gaps(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    source = tmp_path / "logs"
    source.mkdir()
    for number in range(6):
        (source / f"large-{number}.log").write_bytes(os.urandom(7_000_000))
    (source / "small.log").write_bytes(b"what matters\n")
    collect = f"{{files: {{paths: ['{source}/*'], max_size: 10MB, total_size: 60MB, when: [after]}}}}"
    run = begin(collect, tmp_path, small_disk, lab.a)
    run.wait_for("window")
    archive = crowded(run, small_disk, 3)
    assert archive.members[f"files/after{source}/small.log"] == b"what matters\n"
    assert archive.verdict("files/after")["verdict"] == archive.manifest["verdict"] == "partial"
    missing = {what for what in gaps(archive) if "large" in what}
    whole = {n for n, c in archive.members.items() if "large" in n and len(c) == 7_000_000}
    assert len(missing) + len(whole) == 6
    assert missing
    assert archive.manifest["collectors"]["files"]["status"] == "failed"


def test_packets_of_a_full_disk_are_kept_as_far_as_they_came(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    run = begin("{tcpdump: {interfaces: [eth0], filter: udp}}, iptables", tmp_path, small_disk, lab.a, duration="120s")
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 3000)
    eventually(lambda: any(e["packets"] >= 2000 for e in [run.wait_for("progress")]), "the packets are in the archive")
    with greed(small_disk, 0.05):
        for _ in range(20):
            lab.send("10.93.0.2", 9, 500, size=1000)
        run.signal(signal.SIGINT)
        assert run.end() == 130, run.events
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    assert archive.manifest["verdict"] == "partial"
    assert len(archive.pcap()) >= 2000
    assert list(small_disk.iterdir()) == []


def test_a_ring_on_a_full_disk_is_archived_by_moving_it(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    collect = "{tcpdump: {interfaces: [eth0], filter: udp, snaplen: 2000B, ring: {files: 4, file_size: 4MB}}}"
    run = begin(collect, tmp_path, small_disk, lab.a, duration="15s")
    run.wait_for("window")
    for _ in range(6):
        lab.send("10.93.0.2", 9, 2000, size=1400)
    with greed(small_disk, 3600):
        lab.send("10.93.0.2", 9, 2000, size=1400)  # tcpdump itself finds no room for these, and doesn't say so
        assert run.end() == 3, run.events
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    assert archive.manifest["verdict"] == "partial"
    assert "disk was full" in archive.manifest["collectors"]["tcpdump"]["why"]
    assert sum(map(len, archive.pcaps().values())) > 2000
    assert list(small_disk.iterdir()) == []


def test_a_series_loses_lines_and_no_counts(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    run = begin("{ebpf: {plugins: [linuxutil], interval: 100ms}}", tmp_path, small_disk, lab.a, duration="9s")
    run.wait_for("window")
    with greed(small_disk, 3600):
        for _ in range(40):
            lab.send("10.93.0.2", 9, 10)  # every line has something to tell
        assert run.end() == 3, run.events
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    lines = archive.members["metrics/series.jsonl"].splitlines()
    verdict = archive.verdict("metrics/series.jsonl")
    assert "the node's disk was full" in str(verdict["reasons"])
    assert verdict["counts"]["lines"] == len(lines)
    assert archive.json("metrics/metrics.json")["metrics"]
    assert archive.whole("metrics/metrics.json"), archive.lacking()


def test_somebody_who_takes_every_byte_that_is_given_back_costs_the_outputs_and_not_the_archive(
    lab: Lab, tmp_path: Path, small_disk: Path
) -> None:
    collect = "{" + NOISE % (5_000_000, "before, after") + "}, iptables"
    run = begin(collect, tmp_path, small_disk, lab.a)
    run.wait_for("window")
    archive = crowded(run, small_disk, 3, pause_s=0)
    assert archive.manifest["verdict"] == "partial"
    short = {v["artefact"]: v["reasons"] for v in archive.manifest["verdicts"] if v["verdict"] == "partial"}
    assert "the node's disk is full" in str(short)


def test_what_a_dead_worker_left_on_a_full_disk_is_packed(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    collect = "{tcpdump: {interfaces: [eth0], filter: udp}}, {" + NOISE % (12_000_000, "before") + "}"
    run = begin(collect, tmp_path, small_disk, lab.a, duration="60s")
    worker = run.wait_for("started")["pid"]
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 500)
    eventually(lambda: any(e["packets"] >= 400 for e in [run.wait_for("progress")]), "the packets are written")
    with greed(small_disk, 3600):
        os.kill(worker, signal.SIGKILL)
        assert run.end() == 3, run.events
    archive = run.archive()
    assert not verify_archive(archive.path).problems
    assert len(archive.members["commands/command/before.stdout"]) == 12_000_000
    assert 400 <= len(archive.pcap()) <= 500
    assert list(small_disk.iterdir()) == []
