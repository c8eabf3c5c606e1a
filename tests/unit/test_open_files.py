"""How many files a run on many nodes may hold open: raised where that is allowed, told where it isn't. In processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from retina_runner.cli.resolve import open_files
soft, hard, nodes = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(open_files(nodes), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "nodes", "said"),
    [
        (256, 4096, 10, "() 256"),
        (256, 4096, 1000, "() 2200"),
        (256, 400, 1000, "('1000 nodes may take 2200 open files, and the limit is 400: ulimit -Hn, or --shard',) 256"),
    ],
)
def test_the_limit_is_raised_as_far_as_needed(soft: int, hard: int, nodes: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(nodes)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said
