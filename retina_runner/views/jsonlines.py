"""For machines: every event as one JSON object a line, the same as in `events.jsonl`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from retina_runner.report import RunReport


class JsonLines:
    """Events to `out`, flushed one by one."""

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout

    def event(self, event: Mapping[str, Any], report: RunReport) -> None:
        print(json.dumps(event, separators=(",", ":")), file=self._out, flush=True)

    def close(self, report: RunReport) -> None:
        pass
