"""Looks at a node for conditions: every counter that a file shows, and firewall rules where one is asked for."""

from __future__ import annotations

from typing import Dict, Sequence

from retina_runner.agent import process
from retina_runner.agent.conditions import Condition
from retina_runner.agent.counters import GAUGE, Snapshot

CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_"


def counters() -> Snapshot:
    """All counters of the agent's own network namespace. Costs some file reads; no process is started.

    `conntrack.use` is percent of the table's size.
    """
    from retina_runner.agent.state_items import COUNTERS

    found: Snapshot = {}
    for item in COUNTERS:
        for way in item.ways:
            text = _read(way.path) if way.path and item.parse else ""
            if text and item.parse:
                found.update(item.parse(text))
                break
    count, most = _read(CONNTRACK + "count").strip(), _read(CONNTRACK + "max").strip()
    if count.isdigit() and most.isdigit() and int(most):
        found[("conntrack.use", ())] = (100 * int(count) // int(most), GAUGE)
    return found


def rule_packets(conditions: Sequence[Condition]) -> Dict[str, int]:
    """Packets by rule (`filter INPUT -p tcp …`) of both families and whatever back end; none if no condition asks."""
    found: Dict[str, int] = {}
    if not any(c.needs_rules for c in conditions):
        return found
    from retina_runner.agent import rules

    for tool in ("iptables-save", "ip6tables-save"):
        try:
            outcome = process.run([tool, "-c"], limit_s=10.0)
        except (process.MissingTool, OSError):
            continue
        for rule in rules.parse(outcome.stdout.decode("utf-8", "replace")).rules:
            name = f"{rule.table} {rule.chain} {rule.text}"
            found[name] = found.get(name, 0) + rule.packets
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
