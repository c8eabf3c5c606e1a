"""The reference pages, made from what the code itself obeys: the schemas, and the one table of exit codes.

`python -m retina_runner.reference docs` writes them again; a test fails when they are older than their sources.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retina_runner import metrics_page, schema
from retina_runner.errors import EXIT_CODES

MADE = "<!-- Made by `python -m retina_runner.reference docs` from the schemas; edit those. -->"


def pages() -> dict[str, str]:
    """File name to text."""
    return {"runbook.md": runbook_page(), "exit-codes.md": exit_codes_page(), "metrics.md": metrics_page.page(MADE)}


def exit_codes_page() -> str:
    """Every exit status and its meaning."""
    rows = "\n".join(f"| {code.value} | {text} |" for code, text in EXIT_CODES.items())
    return f"{MADE}\n\n# Exit status\n\n| status | meaning |\n| ---: | --- |\n{rows}\n"


def runbook_page() -> str:
    """The runbook, key by key, and every collector's options."""
    runbook = schema.load("runbook")
    lines = [MADE, "", "# Runbook reference", "", str(runbook["description"]), ""]
    lines += [
        "Durations are written `90s`, `5m`, `1h30m`; sizes `96B`, `200MB` (powers of 1000), `1GiB` (powers of 1024).",
        "`${name}` stands for a variable in any value, `$${` for a literal `${`. Paths are relative to the runbook.",
        "",
        "## Keys",
        "",
        *_table(runbook, runbook, ""),
        "",
        "## Collectors",
        "",
    ]
    for name in schema.collectors():
        collector = schema.load(f"collectors/{name}")
        lines += [f"### {name}", "", str(collector["description"]), "", *_table(collector, collector, "")]
        for example in collector.get("examples", []):
            shown = json.dumps(example)
            lines += ["", "```yaml", f"- {name}: {shown}" if example else f"- {name}", "```"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _table(found: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    yield from _rows(found, root, prefix)


def _rows(found: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[str]:
    required = found.get("required", ())
    for key, given in found.get("properties", {}).items():
        inner = _resolved(given, root)
        name = f"{prefix}{key}"
        default = "needed" if key in required else f"`{json.dumps(inner['default'])}`" if "default" in inner else ""
        yield f"| `{name}` | {_kind(inner)} | {default} | {_cell(inner.get('description', ''))} |"
        if inner.get("type") == "object" or "properties" in inner:
            yield from _rows(inner, root, f"{name}.")
        items = _resolved(inner.get("items", {}), root) if isinstance(inner.get("items"), dict) else {}
        if items.get("properties"):
            yield from _rows(items, root, f"{name}[].")
        for branch in inner.get("oneOf", ()):
            yield from _rows(_resolved(branch, root), root, f"{name}.")


def _resolved(given: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = str(given.get("$ref", ""))
    return root["$defs"][reference.removeprefix("#/$defs/")] if reference.startswith("#/$defs/") else given


def _kind(found: Mapping[str, Any]) -> str:
    if "enum" in found:
        return " or ".join(f"`{v}`" for v in found["enum"])
    if "format" in found:
        low, high = found.get("x-minimum"), found.get("x-maximum")
        return str(found["format"]) + (f", {low or ''}..{high or ''}" if low or high else "")
    kind = found.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """Write the pages below the folder that is named."""
    folder = Path(arguments[0])
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
