"""Views: folds over the event stream for people and machines. None of them knows more than the events say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from retina_runner.report import RunReport


class View(Protocol):
    """Shown each event with the report so far, then the report at the end. Never raises for what an event holds."""

    def event(self, event: Mapping[str, Any], report: RunReport) -> None: ...

    def close(self, report: RunReport) -> None: ...
