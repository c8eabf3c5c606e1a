"""`retina-run schedule`: print, install, remove or list what makes a scheduler that is there carry a runbook out."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from retina_runner.errors import Exit, UsageError
from retina_runner.runbook import KubernetesNodes, LocalNodes, Runbook
from retina_runner.runbook_reading import load_runbook
from retina_runner.schedule import FLEET_TASKS, TASKS, Schedule, crontab, installed, systemd
from retina_runner.schedule.cron import parse_cron
from retina_runner.units import parse_duration, parse_size


def main(chosen: argparse.Namespace) -> int:
    root = Path(chosen.root)
    if chosen.runbook == "list":
        return _list(root)
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    if chosen.remove:
        return _remove(root, runbook)
    if chosen.kind in ("exporter", "daemonset"):
        return _always_on(chosen, runbook)
    schedule = _schedule(chosen, runbook)
    _tell_secrets(chosen, runbook, schedule)
    if chosen.kind == "cronjob":
        if chosen.install:
            raise UsageError(
                "a CronJob is installed by kubectl: retina-run schedule … --as cronjob | kubectl apply -f -"
            )
        print(_cron_job(chosen, runbook, schedule), end="")
        return Exit.OK
    if chosen.kind == "cron":
        files, timer = {f"{installed.CRON}/{schedule.unit}": crontab(schedule)}, ""
    else:
        timer = f"{schedule.unit}.timer"
        files = {
            f"{installed.UNITS}/{schedule.unit}.service": systemd.service(schedule),
            f"{installed.UNITS}/{timer}": systemd.timer(schedule),
        }
    if not chosen.install:
        for name, text in files.items():
            print(f"# /{name}\n{text}" if len(files) > 1 else text, end="" if len(files) == 1 else "\n")
        return Exit.OK
    for path in installed.install(root, files, timer):
        print(f"written: {path}")
    return Exit.OK


def _always_on(chosen: argparse.Namespace, runbook: Runbook) -> int:
    """The exporter: no `--on`, since it is always on."""
    from retina_runner.schedule.exporter import PORT, daemon_set, service

    if chosen.on is not None or chosen.install:
        raise UsageError(f"--as {chosen.kind}: it is always on and only printed; leave --on and --install out")
    if not any(e.name == "ebpf" for c in runbook.captures for e in c.collect):
        raise UsageError(f"{chosen.runbook}: has no `ebpf` in its `collect`, so there is nothing to export")
    chosen.on = "@daily"  # the model has a time, which nothing of it is written from here
    schedule = _schedule(chosen, runbook)
    if chosen.kind == "exporter":
        print(service(schedule, f":{PORT}"), end="")
        return Exit.OK
    from retina_runner.documents import to_yaml

    if not chosen.image:
        raise UsageError("--as daemonset needs --image: images/runner/Containerfile makes one")
    _whole(chosen, runbook)
    print(to_yaml(daemon_set(schedule, runbook.document.text, chosen.namespace, chosen.image)), end="")
    return Exit.OK


def _list(root: Path) -> int:
    rows = [("SCHEDULE", "BY", "WHEN", "FILES")]
    rows += [(s.unit, s.kind, s.when, ", ".join(map(str, s.files))) for s in installed.found(root)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return Exit.OK


def _remove(root: Path, runbook: Runbook) -> int:
    unit = Schedule(runbook.name, "", parse_cron("@daily"), "UTC", "", "", (), "").unit
    gone = installed.remove(root, unit)
    for path in gone:
        print(f"removed: {path}")
    if not gone:
        print(f"{unit}: not installed", file=sys.stderr)
    return Exit.OK


def _schedule(chosen: argparse.Namespace, runbook: Runbook) -> Schedule:
    """The one model, from the words. Raises UsageError."""
    if chosen.on is None:
        raise UsageError('schedule: say when, for example --on "*/30 * * * *"')
    try:
        cron = parse_cron(chosen.on)
    except ValueError as error:
        raise UsageError(f"--on: {error}") from None
    try:
        jitter_s = parse_duration(chosen.jitter) if chosen.jitter else 0.0
        deadline_s = parse_duration(chosen.deadline) if chosen.deadline else None
        memory = parse_size(chosen.memory)
    except ValueError as error:
        raise UsageError(f"schedule: {error}") from None
    if not 1 <= chosen.cpu <= 10000:
        raise UsageError(f"--cpu {chosen.cpu}: percent of one core, from 1 to 10000")
    cluster = chosen.kind in ("cronjob", "daemonset")
    arguments = [word for e in chosen.extra_vars for word in ("-e", _absolute_file(e))]
    unit = Schedule(runbook.name, "", cron, "UTC", "", "", (), "").unit
    folders = tuple(str(Path(str(u.options["path"])).resolve()) for u in runbook.uploads if u.kind == "directory")
    shelves = tuple(str(u.options["base"]) for u in runbook.uploads if u.kind == "host_path")
    textfiles = (runbook.metrics["textfile"],) if "textfile" in runbook.metrics else ()
    here = all(isinstance(c.nodes, LocalNodes) for c in runbook.captures)
    references = (str(u.options.get(k) or "") for u in runbook.uploads for k in ("credential", "proxy"))
    secrets = tuple(dict.fromkeys(r.partition(":")[2] for r in references if r.startswith("env:")))
    return Schedule(
        name=runbook.name,
        summary=runbook.summary,
        cron=cron,
        timezone=_timezone(chosen),
        program="retina-run" if cluster else _program(),
        runbook="/etc/retina-run/runbook.yaml" if cluster else str(Path(chosen.runbook).resolve()),
        arguments=tuple(arguments),
        folder="/work" if cluster else f"/var/lib/{unit}",
        writable=(*folders, *shelves, *textfiles),
        made=(*folders, *(() if all(isinstance(c.nodes, KubernetesNodes) for c in runbook.captures) else shelves)),
        # Inventories, too, name secrets as env:NAME.
        environment=f"/etc/retina-run/{runbook.name}.env" if secrets or not here else "",
        secrets=secrets,
        tasks=TASKS if here else FLEET_TASKS,
        cpu_percent=chosen.cpu,
        memory_bytes=memory,
        jitter_s=jitter_s,
        deadline_s=deadline_s,
        tunables=any(e.name == "ebpf" for c in runbook.captures for e in c.collect),
    )


def _tell_secrets(chosen: argparse.Namespace, runbook: Runbook, schedule: Schedule) -> None:
    """On stderr, where the runs will look for the secrets that the runbook refers to: whoever starts them has none."""
    if schedule.secrets:
        names = ", ".join(schedule.secrets)
        where = (
            f"keys of a Secret {schedule.unit} in the namespace {chosen.namespace}"
            if chosen.kind == "cronjob"
            else f"lines NAME='value' of {schedule.environment}, which only root may read"
        )
        print(f"retina-run: {chosen.runbook}: its secrets ({names}) are to be {where}", file=sys.stderr)
    if chosen.kind == "cronjob":
        files = [
            str(u.options[k]) for u in runbook.uploads for k in ("credential", "proxy", "ca_file") if u.options.get(k)
        ]
        missing = ", ".join(f for f in files if f.startswith(("file:", "/")))
        if missing:
            print(
                f"retina-run: {chosen.runbook}: not in the pod, unless you mount it there: {missing}", file=sys.stderr
            )


def _absolute_file(extra: str) -> str:
    return f"@{Path(extra[1:]).resolve()}" if extra.startswith("@") else extra


def _program() -> str:
    """The absolute path of this command, as a scheduler with an empty PATH must call it. Raises UsageError."""
    own = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("retina-run")
    for path in (own if own.name == "retina-run" else beside, beside, Path(shutil.which("retina-run") or "/nowhere")):
        if path.is_file():
            return str(path.absolute())
    raise UsageError("retina-run isn't installed as a command (pip install makes it); a schedule needs its path")


def _timezone(chosen: argparse.Namespace) -> str:
    if chosen.timezone is None:
        return "UTC"
    if chosen.kind == "cron":
        raise UsageError("--timezone: cron has no zone of its own, it uses the machine's; use --as systemd or cronjob")
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(chosen.timezone)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"--timezone {chosen.timezone}: not a zone this machine knows, as Europe/Berlin is") from None
    return str(chosen.timezone)


def _whole(chosen: argparse.Namespace, runbook: Runbook) -> None:
    """Refuse what a pod wouldn't have: only the runbook's own text travels there. Raises UsageError."""
    files = [word for word in chosen.extra_vars if word.startswith("@")]
    if files:
        raise UsageError(f"-e {files[0]}: that file isn't in the pod; give its values, -e KEY=VALUE")
    for capture in runbook.captures:
        for entry in capture.collect:
            if entry.options.get("files") and entry.name == "ebpf":
                raise UsageError(
                    f"{chosen.runbook}: the plugin {entry.options['files'][0]} isn't in the pod; --as {chosen.kind} takes "
                    "runbooks that are whole by themselves"
                )


def _cron_job(chosen: argparse.Namespace, runbook: Runbook, schedule: Schedule) -> str:
    from retina_runner.documents import to_yaml
    from retina_runner.executors.kubernetes.choosing import IMAGE_VARIABLE
    from retina_runner.schedule.kubernetes import cron_job

    selections = []
    for capture in runbook.captures:
        if not isinstance(capture.nodes, KubernetesNodes):
            where = f"{capture.name}: " if capture.name else ""
            raise UsageError(f"{chosen.runbook}: {where}its nodes aren't the cluster's; --as cronjob can't reach them")
        selection = capture.nodes.selection
        elsewhere = selection.get("kubeconfig") or selection.get("context") not in (None, "", "in-cluster")
        if elsewhere:
            raise UsageError(
                f"{chosen.runbook}: its nodes say kubeconfig or context; in a pod there is its own cluster only"
            )
        selections.append(selection)
    node_image = os.environ.get(IMAGE_VARIABLE, "")
    if not node_image and not all(s.get("image") for s in selections):
        raise UsageError(
            f"{chosen.runbook}: name the image of its Jobs (nodes: {{kubernetes: {{image: …}}}}), or say "
            f"{IMAGE_VARIABLE} now, which the CronJob will carry"
        )
    _whole(chosen, runbook)
    if any(u.kind == "directory" for u in runbook.uploads):
        raise UsageError(
            f"{chosen.runbook}: its upload `directory` is gone with the pod; use a store, or --claim for the runs"
        )
    if not chosen.image:
        raise UsageError("--as cronjob needs --image: images/runner/Containerfile makes one")
    variables = {IMAGE_VARIABLE: node_image} if node_image else {}
    objects = cron_job(
        schedule, runbook.document.text, selections, chosen.namespace, chosen.image, chosen.claim or "", variables
    )
    return to_yaml(objects)
