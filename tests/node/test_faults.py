"""What goes wrong, one test each: nothing is left behind, nothing collected is lost, and the end says what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_runner.agent.clock import both
from retina_runner.agent.collectors.tcpdump import Tcpdump
from retina_runner.agent.supervisor import children_of
from retina_runner.verification import verify_archive
from tests.lab import REPOSITORY, RETINA_RUN, Lab, Run, eventually, processes, sh

pytestmark = pytest.mark.root

CAPTURE = "{name: fault, duration: 6s, captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp}}, iptables]}]}"


def retina_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RETINA_RUN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def nothing_left(run: Run) -> bool:
    return not run.work.exists()


def pids(run: Run, what: str) -> list[int]:
    return [pid for pid, command in processes().items() if what in command and str(run.work) in command]


def written(run: Run, packets: int) -> None:
    """Until tcpdump has written so many: the kernel hands it a block at least once a second, and of its own it keeps 4 KiB."""
    while run.wait_for("progress")["packets"] < packets:
        pass


# -- refused before anything is touched ------------------------------------------------------------------------------


def test_a_bad_filter_is_refused_with_its_place_and_nothing_is_touched(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        "name: bad\ncaptures:\n  - collect:\n      - tcpdump:\n          filter: tcp prot 80\n", tmp_path, netns=lab.a
    )
    assert run.end() == 2
    assert "runbook.yaml:5:19: captures[0].collect[0].tcpdump.filter: tcpdump can't compile it" in run.stderr
    assert not (tmp_path / "runs").exists()
    assert nothing_left(run)


def test_an_interface_that_is_not_there_is_refused_by_the_node(lab: Lab, tmp_path: Path) -> None:
    run = Run("{name: bad, captures: [{collect: [{tcpdump: {interfaces: [eth7]}}]}]}", tmp_path, netns=lab.a)
    assert run.end() == 2
    (failed,) = run.all("node-failed")
    assert failed["what"] == "interface eth7"
    assert "there are eth0, lo" in failed["hint"]
    assert nothing_left(run)


def test_without_the_right_to_capture_the_node_refuses(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE, tmp_path, netns=lab.a, wrapper=("setpriv", "--bounding-set", "-net_raw,-net_admin"))
    assert run.end() == 2
    (failed,) = run.all("node-failed")
    assert "permi" in failed["why"]
    assert "cap_net_raw" in failed["hint"]


def test_too_little_free_disk_is_refused(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    run = Run("{name: space, captures: [{}]}", tmp_path, "--work-dir", str(small_disk / "work"), netns=lab.a)
    assert run.end() == 2
    assert run.all("node-failed")[0]["what"] == "disk space"
    assert list(small_disk.iterdir()) == []


# -- a tool is missing -------------------------------------------------------------------------------------------------


def hide(*programs: str) -> tuple[str, ...]:
    """Run the command that follows where these programs can't be executed: in a mount namespace of its own."""
    script = "".join(f"mount --bind /dev/null {p}; " for p in programs) + 'exec "$@"'
    return ("unshare", "-m", "sh", "-ec", script, "sh")


def where(program: str) -> str:
    return os.path.realpath(sh("which", program).strip())


def test_without_tcpdump_the_rest_is_collected_and_the_gap_is_told(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE, tmp_path, netns=lab.a, wrapper=hide(where("tcpdump")))
    assert run.end() == 0, run.events
    archive = run.archive()
    assert archive.manifest["collectors"]["tcpdump"]["status"] == "skipped"
    (gap,) = [s for s in archive.manifest["skipped"] if s["collector"] == "tcpdump"]
    assert gap["why"] == "not installed"
    assert "apt-get install tcpdump" in gap["hint"]
    assert archive.manifest["collectors"]["iptables"]["status"] == "done"


def test_without_iptables_the_packets_are_not_lost(lab: Lab, tmp_path: Path) -> None:
    programs = sorted({where(p) for p in ("xtables-nft-multi", "xtables-legacy-multi", "nft", "ipset")})
    run = Run(CAPTURE, tmp_path, netns=lab.a, wrapper=hide(*programs))
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 20)
    assert run.end() == 0, run.events
    archive = run.archive()
    assert archive.manifest["collectors"]["iptables"]["status"] == "skipped"
    assert len(archive.pcap()) == 20


def test_with_no_tool_at_all_it_is_refused(lab: Lab, tmp_path: Path) -> None:
    run = Run("{name: none, captures: [{collect: [tcpdump]}]}", tmp_path, netns=lab.a, wrapper=hide(where("tcpdump")))
    assert run.end() == 2
    assert "none of them can work here" in run.all("node-failed")[0]["why"]


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "fields", "archived"),
    [
        ("node-check", {}, False),
        ("ready", {}, False),
        ("armed", {}, False),
        ("window", {}, True),
        ("phase", {"phase": "collecting"}, True),
        ("archive", {}, True),
    ],
)
def test_ctrl_c_keeps_what_is_there_and_leaves_nothing(
    lab: Lab, tmp_path: Path, event: str, fields: dict[str, str], archived: bool
) -> None:
    # A window, or a run, that must not end by itself before the signal has arrived: archives come at a snail's pace.
    book = CAPTURE.replace("6s", "60s") if event == "window" else CAPTURE
    rate = "12kB/s" if event in ("phase", "archive") else "30kB/s"
    run = Run(book, tmp_path, "--fetch-rate", rate, netns=lab.a)
    run.wait_for(event, **fields)
    run.signal(signal.SIGINT)
    assert run.end() == 130, run.events
    assert nothing_left(run)
    # T0 is soon after `armed`: on a busy machine the signal comes after it all the same, to a window that has opened.
    archived = archived or bool(run.all("window"))
    assert [a.path.exists() for a in run.archives()] == ([True] if archived else [])
    assert run.summary()["interrupted"] == "SIGINT"
    if event == "window":
        manifest = run.archive().manifest
        assert manifest["verdict"] == "partial"
        assert manifest["window"]["duration_s"] < 60.0
        assert not verify_archive(run.archive().path).problems


def test_sigterm_ends_as_ctrl_c_does_with_its_own_status(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE.replace("6s", "60s"), tmp_path, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 100)
    run.signal(signal.SIGTERM)
    assert run.end() == 143
    assert len(run.archive().pcap()) == 100
    assert nothing_left(run)


def test_ctrl_c_twice_leaves_at_once_and_says_what_remains(lab: Lab, tmp_path: Path) -> None:
    run = Run(
        "{name: twice, duration: 60s, captures: [{collect: [{tcpdump: {interfaces: [eth0]}}]}]}", tmp_path, netns=lab.a
    )
    worker = run.wait_for("started")["pid"]
    run.wait_for("window")
    os.kill(worker, signal.SIGSTOP)  # else the window may be over, and its archive here, before the second
    try:
        run.signal(signal.SIGINT)
        run.wait_for("interrupted")
        run.signal(signal.SIGINT)
        assert run.end() == 130
    finally:
        os.kill(worker, signal.SIGCONT)
    remains = run.all("interrupted")[-1]["remains"]
    assert remains
    assert str(run.work) in remains[0]
    cleaned = retina_run("cleanup", str(run.directory))
    assert cleaned.returncode == 0, cleaned.stderr
    assert nothing_left(run)


# -- killed ------------------------------------------------------------------------------------------------------------


def test_a_killed_runner_leaves_an_agent_that_ends_on_time_and_a_node_that_cleanup_cleans(
    lab: Lab, tmp_path: Path
) -> None:
    run = Run(CAPTURE, tmp_path, netns=lab.a)
    run.wait_for("window")
    run.process.kill()
    run.process.wait()
    lab.send("10.93.0.2", 9, 100)
    (directory,) = [p for p in run.work.iterdir() if p.is_dir()]
    eventually(
        lambda: (
            list((directory / "archive").glob("*.tar.gz"))
            and '"event":"end"' in (directory / "events.jsonl").read_text()
        ),
        "the agent has packed",
    )
    assert pids(run, "tcpdump -i") == []
    (packed,) = (directory / "archive").glob("*.tar.gz")
    checked = verify_archive(packed)
    assert (checked.problems, checked.packets) == ((), 100)
    listed = retina_run("list", str(tmp_path / "runs"))
    assert " dead " in listed.stdout
    assert retina_run("cleanup", str(run.directory)).returncode == 0
    assert nothing_left(run)
    eventually(lambda: pids(run, "") == [], "no process of the run is left")


def test_a_killed_tcpdump_costs_its_own_rest_only(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE.replace("6s", "10s"), tmp_path, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 500)
    written(run, 400)
    for pid in pids(run, "tcpdump -i"):
        os.kill(pid, signal.SIGKILL)
    assert run.end() == 3
    archive = run.archive()
    verdict = archive.verdict(".pcap")
    assert verdict["verdict"] == "partial"
    assert any("killed by signal 9" in r for r in verdict["reasons"])
    assert 400 < len(archive.pcap()) <= 500  # what its own buffer held, up to 4 KiB, died with it
    assert archive.manifest["collectors"]["iptables"]["status"] == "done"
    assert not verify_archive(archive.path).problems
    assert nothing_left(run)


def test_a_tcpdump_that_is_kept_from_running_when_the_window_ends_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    """As on a node without a processor to spare: for longer than the overrun, with a block still to be read."""
    run = Run(CAPTURE.replace("6s", "60s"), tmp_path, netns=lab.a)
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 200)
    kept = pids(run, "tcpdump -i")
    for pid in kept:
        os.kill(pid, signal.SIGSTOP)
    try:
        run.signal(signal.SIGINT)
        run.wait_for("phase", phase="collecting")
        time.sleep(Tcpdump.OVERRUN_S + 0.5)
    finally:
        for pid in kept:
            os.kill(pid, signal.SIGCONT)
    assert run.end() == 130, run.events
    assert len(run.archive().pcap()) == 200
    assert not any("still reading" in r for r in run.archive().verdict(".pcap")["reasons"])


def test_a_killed_worker_is_packed_by_its_supervisor(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE.replace("6s", "60s"), tmp_path, netns=lab.a)
    worker = run.wait_for("started")["pid"]
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 500)
    written(run, 400)
    os.kill(worker, signal.SIGKILL)
    assert run.end() == 3, run.events
    archive = run.archive()
    assert archive.manifest["verdict"] == "partial"
    assert any("worker died (killed by signal 9)" in w for w in archive.manifest["warnings"])
    (name,) = archive.pcaps()
    assert "-uncut-" in name
    assert 400 < len(archive.pcap()) <= 500
    assert not verify_archive(archive.path).problems
    assert nothing_left(run)


def test_a_killed_supervisor_is_outlived_just_long_enough_to_pack(lab: Lab, tmp_path: Path) -> None:
    run = Run(CAPTURE.replace("6s", "60s"), tmp_path, netns=lab.a)
    worker = run.wait_for("started")["pid"]
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 200)
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert worker in children_of(parent)
    os.kill(parent, signal.SIGKILL)
    assert run.end() == 3, run.events
    assert run.archive().manifest["verdict"] == "partial"
    assert len(run.archive().pcap()) == 200
    assert nothing_left(run)


# -- disks -------------------------------------------------------------------------------------------------------------


FLOOD = """
import os, socket, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _ in range(20):
        sender.sendto(os.urandom(1400), ("10.93.0.2", 9))
    time.sleep(float(sys.argv[1]))
"""


def flood(lab: Lab, run: Run, pause_s: float) -> None:
    """Send until the run says that a limit was reached: 28 kB, a pause, and again."""
    sender = subprocess.Popen(["ip", "netns", "exec", lab.a, sys.executable, "-c", FLOOD, str(pause_s)])
    try:
        run.wait_for("limit")
    finally:
        sender.kill()
        sender.wait()


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        ("disk_free_bytes: 12MB", "disk_free"),
        ("disk_free_bytes: 0B", "disk_full"),
        ("disk_free_bytes: 0B, node_bytes: 5MB", "node_bytes"),
    ],
)
def test_a_disk_that_fills_ends_the_capture_and_what_is_there_is_archived(
    lab: Lab, tmp_path: Path, small_disk: Path, limits: str, limit: str
) -> None:
    run = Run(f"""
name: disk
duration: 60s
limits: {{disk_free_percent: 0, {limits}}}
captures:
  - collect:
      - tcpdump: {{interfaces: [eth0], filter: udp, snaplen: 256KiB, max_size: 1GB}}
      - network-state: {{include: [snmp]}}
""", tmp_path, "--work-dir", str(small_disk / "work"), netns=lab.a)  # fmt: skip
    run.wait_for("window")
    flood(lab, run, 0.0 if limit == "disk_full" else 0.02)
    if limit == "disk_full":
        run.signal(signal.SIGINT)  # the capture is over, the window isn't
    status = run.end()
    assert status == {"disk_full": 130}.get(limit, 0), run.events
    archive = run.archive()
    assert {e["limit"] for e in run.all("limit")} == {limit}
    assert archive.manifest["verdict"] == "partial"
    assert len(archive.pcap()) > 1000
    assert not verify_archive(archive.path).problems
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_here_keeps_the_copy_on_the_node(lab: Lab, tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (24 * 1024 * 1024 - 100_000))
    run = Run(
        "{name: here, duration: 2s, captures: [{collect: [{command: {argv: [head, -c, 3000000, /dev/urandom]}}]}]}",
        tmp_path,
        "--output",
        str(small_disk / "runs"),
        netns=lab.a,
    )
    assert run.end() == 4, run.events
    (failed,) = run.all("node-failed")
    assert "No space left" in failed["why"]
    (kept,) = run.work.glob("*/archive/*.tar.gz")
    assert not verify_archive(kept).problems
    assert failed["remains"] == str(kept.parent.parent)
    (directory,) = (small_disk / "runs").iterdir()
    assert retina_run("cleanup", str(directory)).returncode == 0
    assert nothing_left(run)


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stepped_clock(_unharmed: None) -> Iterator[None]:
    """Put the clock back to where the monotonic one says that it should be."""
    apart = realtime_less_monotonic()
    yield
    while abs(realtime_less_monotonic() - apart) > 0.005:  # it may be a while before it is set to what it should be now
        time.clock_settime(time.CLOCK_REALTIME, apart + time.monotonic())


def realtime_less_monotonic() -> float:
    realtime, monotonic = both()
    return realtime - monotonic


@pytest.mark.parametrize("step_s", [12.0, -12.0])
def test_a_clock_that_is_stepped_in_the_window_loses_no_packet(
    lab: Lab, tmp_path: Path, stepped_clock: None, step_s: float
) -> None:
    """By more than the window and the overrun: set back by less, the clock says once more that it is the window's time."""
    run = Run(
        "{name: clock, duration: 8s, captures: [{collect: [{tcpdump: {interfaces: [eth0], filter: udp}}]}]}",
        tmp_path,
        netns=lab.a,
    )
    run.wait_for("window")
    lab.send("10.93.0.2", 9, 300)
    time.sleep(1.5)
    before = realtime_less_monotonic()
    time.clock_settime(time.CLOCK_REALTIME, time.time() + step_s)
    stepped_s = realtime_less_monotonic() - before  # less than step_s by as long as this was kept from setting it
    lab.send("10.93.0.2", 9, 200, source=40001)
    run.wait_for("clock")
    run.wait_for("phase", phase="collecting")
    lab.send("10.93.0.2", 9, 50, source=40002)
    assert run.end() == 0, run.events
    archive = run.archive()
    counts = archive.verdict(".pcap")["counts"]
    assert counts["in_window"] == 500
    assert counts["outside_window"] <= 50  # all of them, where the sender isn't slower than tcpdump's overrun
    (step,) = archive.manifest["clock"]["steps"]
    assert abs(step["step_s"] - stepped_s) < 0.1
    assert archive.manifest["window"]["duration_s"] == 8.0


def test_a_runbook_that_changes_during_the_run_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    import hashlib

    run = Run(CAPTURE, tmp_path, netns=lab.a)
    run.wait_for("window")
    (tmp_path / "runbook.yaml").write_text("name: other\n")
    assert run.end() == 0
    manifest = run.archive().manifest
    assert manifest["runbook"] == {"name": "fault", "sha256": hashlib.sha256(CAPTURE.encode()).hexdigest()}


def test_two_runs_at_once_do_not_meet(lab: Lab, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        # They begin each in its own time, on a busy machine seconds apart; the windows have to overlap.
        runs.append(
            Run(CAPTURE.replace("6s", "10s"), tmp_path / name, "--work-dir", str(tmp_path / "work"), netns=lab.a)
        )
    for run in runs:
        run.wait_for("window")
    lab.send("10.93.0.2", 9, 100)
    for run in runs:
        assert run.end() == 0
        assert len(run.archive().pcap()) == 100
    assert not (tmp_path / "work").exists()


def test_a_work_directory_of_somebody_else_is_not_trusted(lab: Lab, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o777)
    work.chmod(0o777)
    run = Run(CAPTURE, tmp_path, netns=lab.a)
    assert run.end() == 2
    assert "may be written by others" in json.dumps(run.events) + run.stderr


def test_a_work_directory_that_can_not_be_made_is_told_by_check_and_run(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "runbook.yaml").write_text(CAPTURE)
    words = (
        str(tmp_path / "runbook.yaml"),
        "--output",
        str(tmp_path / "runs"),
        "--work-dir",
        str(tmp_path / "file" / "x"),
    )
    checked = retina_run("--check", *words)
    assert (checked.returncode, checked.stderr) == (2, "")
    assert "not possible" in checked.stdout
    assert "--work-dir" in checked.stdout
    done = retina_run(*words)
    assert done.returncode == 2
    assert "--work-dir" in done.stdout
    assert "capturing" not in done.stdout


SHELF = "{{name: shelf, duration: 3s, captures: [{{collect: [iptables]}}], upload: [{{host_path: {{path: incidents, base: {base}}}}}]}}"


def test_a_node_that_could_keep_nothing_where_host_path_says_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(SHELF.format(base=tmp_path / "file" / "base"), tmp_path)
    assert run.end() == 2
    (failed,) = [e for e in run.events if e["event"] == "node-failed"]
    assert (failed["what"], failed["why"]) == ("upload host_path", f"{tmp_path}/file is not a directory")
    assert nothing_left(run)
    checked = retina_run("--check", str(tmp_path / "runbook.yaml"), "--work-dir", str(run.work))
    assert checked.returncode == 2
    assert "problem: upload host_path: " in checked.stdout


def test_what_a_node_could_not_keep_is_here_and_upload_does_not_claim_otherwise(tmp_path: Path) -> None:
    base = tmp_path / "base"
    run = Run(SHELF.format(base=base), tmp_path)
    run.wait_for("window")
    base.write_text("somebody made a file of it")
    assert run.end() == 5, run.events
    assert "to finish the uploads" not in run.stderr  # nobody could
    (made,) = (tmp_path / "runs").iterdir()
    again = retina_run("upload", str(made))
    assert again.returncode == 5, again
    assert f"not kept in {base}/incidents on the node" in again.stderr
    (archive,) = (made / "archives").iterdir()
    assert str(archive) in again.stderr


def test_what_is_kept_for_a_look_is_named_and_goes_by_cleanup(tmp_path: Path) -> None:
    run = Run("{name: look, duration: 2s, captures: [{collect: [iptables]}]}", tmp_path, "--keep")
    assert run.end() == 0, run.events
    (kept,) = [p for p in run.work.iterdir() if p.is_dir()]
    assert f"kept for a look: {run.archive().manifest['node']}: {kept}" in run.stderr
    assert (kept / "events.jsonl").exists()
    (made,) = (tmp_path / "runs").iterdir()
    assert f"retina-run cleanup {made} removes it" in run.stderr
    assert retina_run("cleanup", str(made)).returncode == 0
    assert nothing_left(run)


def test_an_interface_that_goes_away_in_the_window_costs_no_verdict(lab: Lab, tmp_path: Path) -> None:
    """As those of pods do all the time. What it had counted is in the delta as `vanished`."""
    lab.inside(lab.a, "ip", "link", "add", "pod0", "type", "veth", "peer", "name", "pod1")
    run = Run(
        "{name: pods, duration: 6s, captures: [{collect: [{network-state: {include: ['*dev*', 'ethtool*']}}]}]}",
        tmp_path,
        netns=lab.a,
    )
    run.wait_for("window")
    lab.inside(lab.a, "ip", "link", "del", "pod0")
    assert run.end() == 0, run.events
    archive = run.archive()
    assert archive.lacking() == {}
    moved = archive.json("state/delta/network-state.json")["counters"]
    gone = {(m["name"], m["status"]) for m in moved if m["labels"].get("interface") == "pod0"}
    assert ("ethtool.peer_ifindex", "vanished") in gone, moved
