"""What a kernel charges for programs and maps: those before 5.11 take it off RLIMIT_MEMLOCK, this machine's may not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retina_runner.agent.ebpf import syscalls
from tests.lab import REPOSITORY

pytestmark = pytest.mark.root

NEED = 100_000
ASKS = """
import errno, os, resource, sys
from retina_runner.agent.ebpf import syscalls
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, int(sys.argv[1])))
real = syscalls.call
def as_before_5_11(command, attributes):
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit != resource.RLIM_INFINITY and limit < int(sys.argv[2]):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return real(command, attributes)
syscalls.call = as_before_5_11
try:
    syscalls.Map(syscalls.MapShape("m", syscalls.HASH, 4, 4, 1024, 0), 1)
    print("made")
except OSError as error:
    print(error.strerror)
"""


def ask(hard: int) -> str:
    """What comes of a map that takes NEED bytes, with a soft limit of 64 kB and no right to raise the hard one."""
    wrapper = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource", "--"]
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", ASKS, str(hard), str(NEED)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mocked_kernel_that_charges_to_the_limit_is_asked_again_with_a_higher_one() -> None:
    """tests/kernels has a real one, 5.10, and root's right to lift the limit."""
    assert ask(NEED) == "made\n"


def test_a_limit_that_cannot_be_raised_is_named() -> None:
    said = ask(65536)
    assert "RLIMIT_MEMLOCK may be too low: 65536 B" in said
    assert "CAP_SYS_RESOURCE" in said


def test_a_refusal_for_another_reason_stays_what_it_is() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.charged(syscalls.MAP_CREATE, b"\xff" * 28)
