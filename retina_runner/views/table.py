"""The end of a run as plain text: a row a node, then what is missing, what went wrong, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from retina_runner.errors import EXIT_CODES, Exit
from retina_runner.report import NodeReport, RunReport, Trouble
from retina_runner.units import format_size

HEADINGS = ("NODE", "STATE", "VERDICT", "PACKETS", "DROPPED", "SIZE", "ARCHIVE")
RIGHT = {"PACKETS", "DROPPED", "SIZE"}


def plain(text: object) -> str:
    """One line without control characters: a node's words may come from anywhere."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def table(report: RunReport) -> str:
    """The whole text, without a newline at its end."""
    lines = [*_rows(report.nodes), ""]
    lines += _reasons(report.nodes)
    lines += _grouped("not collected", ((n, t) for n in report.nodes for t in n.skipped), len(report.nodes))
    lines += _grouped("warning", ((n, Trouble(w, "")) for n in report.nodes for w in n.warnings), len(report.nodes))
    lines += _grouped("failed", _failures(report.nodes), len(report.nodes))
    lines += _grouped(
        "not as expected",
        ((n, Trouble(e.expression, e.why)) for n in report.nodes for e in n.findings),
        len(report.nodes),
    )
    lines += _stored(report.nodes)
    for node in report.nodes:
        for upload in node.uploads:
            if upload.state != "stored":
                lines.append(f"{plain(node.id)}: not stored in {plain(upload.target)}: {plain(upload.why)}")
    for node in report.nodes:
        if node.remains:
            lines.append(f"{plain(node.id)}: left on the node: {plain(node.remains)}")
    if any(n.remains for n in report.nodes) or report.remains:
        lines.append(f"to remove what is left: retina-run cleanup {report.directory}")
    if report.held_back:
        lines.append(plain(report.held_back))
    if report.skew:
        skew = report.skew
        lines.append(
            f"start skew of {skew.nodes} nodes: {skew.spread_s * 1000:.1f} ms ± {skew.error_s * 1000:.1f} ms; after T0: "
            f"p50 {skew.p50_s * 1000:.1f} ms, p99 {skew.p99_s * 1000:.1f} ms, each ± {skew.after_error_s * 1000:.1f} ms"
        )
    if lines[-1]:
        lines.append("")
    if report.directory:
        lines.append(f"run directory: {report.directory}")
    if report.exit_code is not None and report.exit_code != 0:
        lines.append(f"exit status {report.exit_code}: {EXIT_CODES.get(Exit(report.exit_code), '')}")
    return "\n".join(lines)


def _stored(nodes: Iterable[NodeReport]) -> Iterator[str]:
    """Where archives are besides, and who brought them there: a line a target, however many nodes."""
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        for upload in node.uploads:
            if upload.state == "stored":
                counts.setdefault(upload.target, Counter())[upload.via] += 1
    words = {"node": "by its node", "runner": "by the runner"}
    for target, by in counts.items():
        yield f"stored in {plain(target)}: " + ", ".join(f"{by[via]} {words[via]}" for via in words if by[via])


def _rows(nodes: Iterable[NodeReport]) -> list[str]:
    cells = [HEADINGS]
    for node in nodes:
        known = node.verdict != ""
        cells.append(
            (
                plain(node.id),
                node.state,
                node.verdict or "-",
                str(node.packets) if known else "-",
                str(node.dropped) if known else "-",
                format_size(node.size_bytes) if node.size_bytes else "-",
                plain(node.archive) or "-",
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
    return [
        "  ".join(
            c.rjust(w) if h in RIGHT else c.ljust(w) for c, w, h in zip(row, widths, HEADINGS, strict=True)
        ).rstrip()
        for row in cells
    ]


def _reasons(nodes: Iterable[NodeReport]) -> list[str]:
    return [
        f"{plain(n.id)}: {n.verdict}: {plain(reason)}" for n in nodes if n.verdict != "complete" for reason in n.reasons
    ]


def _failures(nodes: Iterable[NodeReport]) -> Iterable[tuple[NodeReport, Trouble]]:
    for node in nodes:
        for collector in node.failed_collectors:
            yield node, Trouble(collector.name, collector.why, collector.hint)
        if node.trouble is not None:
            yield node, node.trouble


def _grouped(title: str, found: Iterable[tuple[NodeReport, Trouble]], total: int) -> list[str]:
    """One line for the same trouble on many nodes."""
    by_trouble: dict[Trouble, list[str]] = {}
    for node, trouble in found:
        names = by_trouble.setdefault(trouble, [])
        if node.id not in names:
            names.append(node.id)
    lines = []
    for trouble, names in by_trouble.items():
        if len(names) == total and total > 1:
            where = f"all {total} nodes"
        else:
            where = ", ".join(plain(n) for n in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(f"{where}: {title}: {plain(trouble.what)}" + (f": {plain(trouble.why)}" if trouble.why else ""))
        if trouble.hint:
            lines.append(f"    {plain(trouble.hint)}")
    return lines
