"""A finished run's counters for monitoring: a file for node_exporter's textfile collector, or a push to a Pushgateway.

The samples are those of each archive's own `metrics.prom`, with `node` and `runbook` before them, and what the run itself
came to. The file is replaced in one step, so that a scrape sees the old run or the new one.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from retina_runner.agent.metrics.text import escaped
from retina_runner.inflating import Inflater
from retina_runner.report import NodeReport, RunReport
from retina_runner.secrets import redact
from retina_runner.verification import members

PUSH_LIMIT_S = 20
MOST_BYTES = 16 << 20


class NotPublished(Exception):
    """Why the metrics aren't where they should be."""


def render(report: RunReport, texts: Iterable[tuple[NodeReport, str]]) -> str:
    """Prometheus text of a run: `texts` are the nodes' own metrics. A family's lines stand together, as the format wants."""
    families: dict[str, tuple[list[str], list[str]]] = {}

    def lines(name: str) -> tuple[list[str], list[str]]:
        return families.setdefault(name, ([], []))

    for node, text in texts:
        own = f'node="{escaped(node.node, quotes=True)}",runbook="{escaped(report.runbook, quotes=True)}"'
        current = ""
        for line in text.splitlines():
            if line.startswith("# "):
                current = line.split(" ", 3)[2]
                if line not in lines(current)[0]:
                    lines(current)[0].append(line)
            elif line:
                lines(current)[1].append(_labelled(line, own))
    book = f'runbook="{escaped(report.runbook, quotes=True)}"'
    for name, help_text, value in _of_run(report):
        head, body = lines(name)
        head += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        body.append(f"{name}{{{book}}} {value}")
    return "".join("\n".join((*families[name][0], *families[name][1])) + "\n" for name in sorted(families))


def _labelled(line: str, own: str) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{own}{',' if not rest.startswith('}') else ''}{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{own}}} {value}"


def _of_run(report: RunReport) -> list[tuple[str, str, str]]:
    t0 = datetime.fromisoformat(report.t0.replace("Z", "+00:00")).timestamp() if report.t0 else 0.0
    nodes = [n for n in report.nodes if not n.trigger]
    collected = sum(n.state == "collected" for n in nodes)
    return [
        ("retinarun_run_t0_seconds", "When the last run began to count, Unix time", f"{t0:.3f}"),
        ("retinarun_run_nodes", "Nodes of the last run", str(len(nodes))),
        ("retinarun_run_frozen_windows", "Windows that the last run's trigger froze, over all nodes", str(len(report.nodes) - len(nodes))),
        ("retinarun_run_nodes_collected", "Nodes of the last run whose archive is complete", str(collected)),
        ("retinarun_run_exit_status", "Exit status of the last run", str(report.exit_code if report.exit_code is not None else -1)),
        ("retinarun_run_packets", "Packets in the archives of the last run", str(sum(n.packets for n in report.nodes))),
        ("retinarun_run_dropped_packets", "Packets that captures of the last run lost", str(sum(n.dropped for n in report.nodes))),
    ]  # fmt: skip


def metrics_of(archive: Path) -> str:
    """The archive's own metrics; empty for one that has none, or that isn't here. It has been verified before."""
    if not archive.is_file():
        return ""
    with open(archive, "rb") as packed:
        for tar, member in members(Inflater(packed, sys.maxsize)):
            if member.name.endswith("/metrics/metrics.prom") and member.size <= MOST_BYTES:
                file = tar.extractfile(member)
                return file.read().decode("utf-8", "replace") if file is not None else ""
    return ""


def write_textfile(folder: Path, runbook: str, content: str) -> Path:
    """Replace the runbook's file in node_exporter's folder. Raises NotPublished."""
    path = folder / f"retina-run-{runbook}.prom"
    part = folder / f".retina-run-{runbook}.{os.getpid()}.part"  # node_exporter reads *.prom only
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)  # node_exporter is another user
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise NotPublished(f"{error.filename or path}: {error.strerror}") from None
    return path


def push(url: str, runbook: str, content: str) -> str:
    """Replace the runbook's group at a Pushgateway. Raises NotPublished."""
    target = f"{url.rstrip('/')}/metrics/job/retina-run/runbook/{quote(runbook, safe='')}"
    request = urllib.request.Request(
        target, content.encode(), {"Content-Type": "text/plain; version=0.0.4"}, method="PUT"
    )
    try:
        with urllib.request.urlopen(request, timeout=PUSH_LIMIT_S):
            return target
    except urllib.error.HTTPError as error:
        said = error.read(500).decode("utf-8", "replace").strip().splitlines()[:1]
        raise NotPublished(redact(f"{target}: {error.code} {said[0] if said else error.reason}")) from None
    except OSError as error:
        raise NotPublished(redact(f"{target}: {getattr(error, 'reason', None) or error}")) from None
