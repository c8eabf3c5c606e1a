"""Somebody who fills a disk to the last byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GREEDY = """
import os, sys, time
file, told = open(sys.argv[1], "wb", buffering=0), False
while True:
    try:
        while file.write(bytes(1 << 20)):
            pass
    except OSError:
        if not told:  # once: a pipe that nobody reads would end the greed
            print("full", flush=True)
        told = True
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def greed(disk: Path, pause_s: float) -> Iterator[None]:
    """Somebody takes every byte of the disk, and looks for more every so often."""
    taker = subprocess.Popen(
        [sys.executable, "-c", GREEDY, str(disk / "theirs"), str(pause_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "full\n"
        yield
    finally:
        taker.kill()
        taker.wait()
        (disk / "theirs").unlink()
