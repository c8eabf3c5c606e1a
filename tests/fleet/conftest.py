"""One fleet for the whole package: bringing it up costs more than most tests. Tests that touch few nodes share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.fleet import Fleet

NODES = 20


@pytest.fixture(scope="package")
def fleet() -> Iterator[Fleet]:
    with Fleet(NODES) as made:
        yield made
