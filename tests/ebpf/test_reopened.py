"""An exporter whose maps the kernel no longer gives it opens its plugins again; no counter that it shows ever falls."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import REPOSITORY, Lab

pytestmark = pytest.mark.root

EXPORTER = """
import json, os, sys
from retina_runner.exporting import SHARED_S, Exporter
from retina_runner.runbook_reading import load_runbook

entries = [e.options for c in load_runbook(sys.argv[1]).captures for e in c.collect]
exporter = Exporter(entries)
exporter.open()
for line in sys.stdin:
    if line == "break\\n":
        null = os.open("/dev/null", os.O_RDONLY)
        broken = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:bpf-map":
                    os.dup2(null, int(name))  # read by bpf(2), this is EINVAL
                    broken += 1
            except OSError:
                pass
        print(json.dumps(broken), flush=True)
    else:
        print(json.dumps(exporter.collect()), flush=True)
exporter.close()
"""


class Watched:
    """The exporter, in the namespace whose traffic it counts."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def ask(self, word: str) -> str | int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer: str | int = json.loads(self._process.stdout.readline())
        return answer

    def scrape(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        time.sleep(1.1)  # scrapes that come closer together are answered from one reading
        lines = [x for x in str(self.ask("scrape")).splitlines() if x and not x.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@contextmanager
def exporter(netns: str, folder: Path) -> Iterator[Watched]:
    book = folder / "live.yaml"
    book.write_text("{name: live, captures: [{collect: [{ebpf: {plugins: [packetforward, dropreason]}}]}]}")
    process = subprocess.Popen(
        ["ip", "netns", "exec", netns, sys.executable, "-c", EXPORTER, str(book)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        yield Watched(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def packets(samples: dict[str, float]) -> float:
    return sum(v for k, v in samples.items() if k.startswith("networkobservability_forward_count"))


def test_counters_go_on_over_maps_that_are_gone(lab: Lab, tmp_path: Path) -> None:
    lab.receive("10.93.0.2", 7000)
    with exporter(lab.b, tmp_path) as watched:
        watched.scrape()  # it is listening
        lab.send("10.93.0.2", 7000, 300)
        first = watched.scrape()
        assert packets(first) >= 300
        assert int(watched.ask("break")) > 0
        second = watched.scrape()
        assert second["retinarun_exporter_reopened_total"] == first["retinarun_exporter_reopened_total"] + 1
        lab.send("10.93.0.2", 7000, 200)
        third = watched.scrape()
        for earlier, later in ((first, second), (second, third)):
            for name, value in earlier.items():
                if "_count" in name or "_total" in name or "_bytes" in name:
                    assert later.get(name, 0) >= value, name
        assert packets(third) >= packets(first) + 200
