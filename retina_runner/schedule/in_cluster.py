"""deploy/runner/cronjob.yaml: a runner in the cluster that waits to be asked, for kustomize to fill in.

`python -m retina_runner.schedule.in_cluster > deploy/runner/cronjob.yaml` writes it again; a test fails when it is older.
"""

from __future__ import annotations

import sys

from retina_runner.executors.kubernetes.rbac import NAME
from retina_runner.schedule import Schedule
from retina_runner.schedule.cron import parse_cron
from retina_runner.schedule.kubernetes import RUNBOOK, WORK, cron_object, runner_pod

HEAD = """\
# Made by `python -m retina_runner.schedule.in_cluster`; edit that, or change it in an overlay of yours.
#
# A runner that waits to be asked: kubectl -n retina-run create job --from=cronjob/retina-run now
# It is what `retina-run schedule --as cronjob` prints, with the rights of deploy/rbac.yaml, and suspended: `suspend: false` and a
# `schedule` make it one that comes by itself.
---
"""


def text() -> str:
    """The file."""
    from retina_runner.translate.yaml_text import lines

    schedule = Schedule(
        name="in-cluster", summary="", cron=parse_cron("@daily"), timezone="UTC", program="retina-run",
        runbook=f"{RUNBOOK}/runbook.yaml", arguments=(), folder=WORK,
    )  # fmt: skip
    labels = {"app.kubernetes.io/name": NAME}
    pod = runner_pod(schedule, NAME, NAME, "", {})
    return HEAD + "\n".join(lines(cron_object(schedule, NAME, NAME, labels, pod, suspend=True))) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
