"""`check`: can this node do the plan? Answers with facts and problems, and touches nothing.

A problem is `fatal` (this node would refuse the plan, or a part of it is a mistake that only the user can mend: a filter
that doesn't compile, an interface that isn't there) or a `gap` (a tool is missing: the rest is still worth having).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict, List

from retina_runner.agent import bounds, collectors, facts
from retina_runner.agent.context import Gap
from retina_runner.agent.plan import Plan
from retina_runner.agent.process import MissingTool
from retina_runner.agent.workspace import UnsafeDirectory, check_private


def check(plan: Plan, parent: Path) -> Dict[str, Any]:
    """Everything that can be known beforehand. `parent` is the directory below which `start` would work."""
    problems: List[Dict[str, str]] = []

    def note(severity: str, what: str, why: str, hint: str = "", collector: str = "") -> None:
        problems.append({"severity": severity, "what": what, "why": why, "hint": hint, "collector": collector})

    _check_place(plan, parent, note)
    _check_compression(plan, note)
    gaps = 0
    for entry in plan.entries if _may_look(plan, note) else ():
        try:
            fatal, gap = collectors.problems(entry.name, entry.options)
        except KeyError:
            note("fatal", entry.id, f"this agent has no collector {entry.name}", "", entry.id)
            continue
        for problem in fatal:
            note("fatal", problem.what, problem.why, problem.hint, entry.id)
        for problem in gap:
            note("gap", problem.what, problem.why, problem.hint, entry.id)
        gaps += any(problem.whole for problem in gap)
    if plan.entries and gaps == len(plan.entries):
        note("fatal", "collectors", "none of them can work here", "install what the lines above name")
    free, total = bounds.free_bytes(_existing(parent))
    return {
        "ok": not any(p["severity"] == "fatal" for p in problems),
        "problems": problems,
        "host": facts.system(),
        "rights": facts.rights(),
        "disk": {
            "directory": str(parent),
            "free_bytes": free,
            "total_bytes": total,
            "floor_bytes": plan.bounds.floor_bytes(total),
        },
        "time": time.time(),
    }


def _check_place(plan: Plan, parent: Path, note: Any) -> None:
    place = _existing(parent)
    if parent.exists():
        try:
            check_private(parent)
        except UnsafeDirectory as error:
            note("fatal", str(parent), str(error), "remove it, or choose another with --work-dir")
            return
    elif not os.access(str(place), os.W_OK | os.X_OK):
        note("fatal", str(place), "may not be written by this user", "choose another with --work-dir")
        return
    lacking = bounds.lacking_space(plan.bounds, place)
    if lacking:
        note("fatal", "disk space", lacking, "free some, or lower limits.disk_free_percent and limits.disk_free_bytes")


def _may_look(plan: Plan, note: Any) -> bool:
    """Go to where the collectors would look, which for a pod's own view is its network namespace; whether that worked."""
    if not plan.document.get("pod"):
        return True
    from retina_runner.agent.pod import Inside, Pod

    pod = Pod.of(plan.document)
    assert pod is not None
    try:
        Inside(pod)
    except Gap as gap:
        note("fatal", gap.what, gap.why, gap.hint)
        return False
    return True


def _check_compression(plan: Plan, note: Any) -> None:
    if plan.compression != "zstd":
        return  # the others need nothing that Python hasn't
    from retina_runner.agent.framing import framing_of

    try:
        framing_of(plan.compression)
    except MissingTool as missing:
        note("gap", "compression", f"{missing}; the archive will be a .tar.gz", f"install {missing.tool}")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
