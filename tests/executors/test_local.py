"""The conformance suite over this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from retina_runner.executors.local import LocalLink
from tests.executors.conformance import Bench, Conformance, SharedFolder

pytestmark = pytest.mark.root


class TestLocal(Conformance, SharedFolder):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        work = tmp_path / "work"

        def link() -> LocalLink:
            return LocalLink(str(work))

        return Bench("local", str(work), link, link)
