"""What harnesses make in their caches is made once, however many processes want it at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab import REPOSITORY

MAKE = """
import sys, time
from pathlib import Path
from tests.building import making
product = Path(sys.argv[1])
print("here", flush=True)
sys.stdin.readline()
with making(product) as wanted:
    if wanted:
        with open(product.with_name("made"), "a") as file:
            file.write("once\\n")
        time.sleep(0.5)
        product.with_name("part").write_text("whole")
        product.with_name("part").rename(product)
    assert product.read_text() == "whole"
"""


def test_a_product_is_made_once_and_waited_for(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", MAKE, str(tmp_path / "product")]
    makers = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(3)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "here\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        maker.communicate()
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "once\n"
