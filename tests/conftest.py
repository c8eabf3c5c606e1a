"""Fixtures for all tests, and the promise that every test keeps: nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.lab import Lab, eventually, node_state, processes

# Where a change is judged, the same code must get the same answer twice; new examples are looked for at every other time.
# Neither judges how long anything takes, which on a busy machine is somebody else's doing.
UNTIMED = (HealthCheck.too_slow,)
settings.register_profile("judged", derandomize=True, deadline=None, database=None, suppress_health_check=UNTIMED)
settings.register_profile("searching", deadline=None, suppress_health_check=UNTIMED)
settings.load_profile("judged" if os.environ.get("CI") else "searching")

# What a script starts in the background ignores Ctrl-C, and so does all that it starts. The tests are of programs that don't.
signal.signal(signal.SIGINT, signal.default_int_handler)

ASKED_FOR = ("ansible", "cluster", "containers", "fleet", "fleet100", "kernels", "prometheus", "storage")
"""Markers of tests that need more than Debian's packages, or long: they run where `-m` names them, whatever else it says."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.option.markexpr or ""
    others = [m for m in ASKED_FOR if m not in asked]
    left_out = [item for item in items if any(item.get_closest_marker(m) for m in others)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that touches the node: no process, rule, file, mount, module, address or setting has changed."""
    if "root" not in request.keywords:
        yield
        return
    before = node_state()
    yield
    eventually(
        lambda: set(processes()) <= set(before["processes"]),
        lambda: f"only the old processes left, there are {processes()}",
        30.0,
    )
    after = node_state()
    for what, value in before.items():
        if what != "processes":
            assert after[what] == value, f"the test changed the node's {what}"


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's nodes have compiled isn't there for another's."""
    if "root" in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(request.getfixturevalue("tmp_path") / "cache"))


@pytest.fixture
def lab(_unharmed: None) -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def two_links(_unharmed: None) -> Iterator[Lab]:
    with Lab(links=2) as made:
        yield made
