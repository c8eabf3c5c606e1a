"""junit.xml: a suite a capture, a case for each collector of each node, one for its archive and one for each upload."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from retina_runner.report import NodeReport, RunReport

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: RunReport) -> str:
    """The document, as text. What XML 1.0 can't hold is replaced by `?`."""
    root = ElementTree.Element("testsuites", name=_clean(report.run))
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for capture in dict.fromkeys(n.capture for n in report.nodes):
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_clean(capture or report.runbook),
            timestamp=report.started[:19],
            time=f"{report.duration_s:g}",
        )
        counts = dict.fromkeys(totals, 0)
        for node in report.nodes:
            if node.capture == capture:
                _node(suite, node, counts)
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
    for name, count in totals.items():
        root.set(name, str(count))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _node(suite: ElementTree.Element, node: NodeReport, counts: dict[str, int]) -> None:
    def case(name: str, outcome: str = "", message: str = "") -> None:
        element = ElementTree.SubElement(suite, "testcase", classname=_clean(node.id), name=_clean(name), time="0")
        counts["tests"] += 1
        if outcome:
            counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[outcome]] += 1
            ElementTree.SubElement(element, outcome, message=_clean(message))

    for collector in node.collectors:
        outcome = {"failed": "failure", "skipped": "skipped"}.get(collector.status, "")
        case(collector.name, outcome, collector.why)
    for told in node.expectations:
        case(f"expect {told.expression}", "" if told.ok else "failure", told.why)
    if node.state == "skipped":
        case("archive", "skipped", "; ".join(t.why for t in node.skipped))
    elif node.archive and node.verified:
        case("archive")
    else:
        trouble = node.trouble
        case(
            "archive",
            "error",
            f"{trouble.what}: {trouble.why}" if trouble else f"no verified archive; the node is {node.state}",
        )
    for upload in node.uploads:
        case(f"upload {upload.target}", {"failed": "failure", "skipped": "skipped"}.get(upload.state, ""), upload.why)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
