"""Fixtures for all tests, and the promise that every test keeps: nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, eventually, node_state, processes


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
        f"only the old processes left, there are {processes()}",
        15.0,
    )
    after = node_state()
    for what, value in before.items():
        if what != "processes":
            assert after[what] == value, f"the test changed the node's {what}"


@pytest.fixture
def lab(_unharmed: None) -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def two_links(_unharmed: None) -> Iterator[Lab]:
    with Lab(links=2) as made:
        yield made
