"""Words of the command line, after ansible-playbook's habits where they fit. Nothing but argparse is imported here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from retina_runner import __version__
from retina_runner.errors import EXIT_CODES, UsageError

VERBS = (
    "run",
    "check",
    "plan",
    "translate",
    "inventory",
    "verify",
    "report",
    "merge",
    "list",
    "resume",
    "retry",
    "upload",
    "download",
    "exporter",
    "cleanup",
    "schedule",
    "prune",
    "schema",
    "doctor",
    "version",
    "completion",
)


def with_verb(words: Sequence[str]) -> list[str]:
    """`retina-run RUNBOOK …` is `retina-run run RUNBOOK …`: put the verb in where the first plain word isn't one.
    Raises UsageError for a verb that is misspelt."""
    words = list(words)
    for word in words:
        if word in ("-h", "--help", "--version"):
            return words
        if not word.startswith("-"):
            if word is words[0]:
                _refuse_slip(word)
            return words if word in VERBS else ["run", *words]
    return ["run", *words] if words else words


def _refuse_slip(word: str) -> None:
    """Raises UsageError for what is neither a verb nor a file, but nearly a verb, or no name of a YAML file at all."""
    if word not in VERBS and not os.path.exists(word):
        import difflib

        near = difflib.get_close_matches(word, VERBS, 1, 0.7)
        if near:
            raise UsageError(f"{word}: neither a verb nor a file; did you mean {near[0]}?")
        if word.isalpha() and word.islower():
            raise UsageError(f"{word}: neither a verb nor a file; `retina-run --help` lists the verbs")


def parser() -> argparse.ArgumentParser:
    """The whole command line, with help made from the one table of exit codes."""
    codes = "\n".join(f"  {code.value:3d}  {text}" for code, text in EXIT_CODES.items())
    top = argparse.ArgumentParser(
        prog="retina-run",
        description="Declarative node diagnostics: one runbook, one instant, one verified archive a node.",
        epilog=f"`retina-run RUNBOOK` is short for `retina-run run RUNBOOK`.\n\nexit status:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"retina-run {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str, module: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(module=module)
        return added

    run = verb("run", "carry a runbook out", "run")
    _documents(run)
    run.add_argument(
        "--check", action="store_true", help="check runbook, nodes and rights, and stop before anything starts"
    )
    run.add_argument("--list-hosts", action="store_true", help="print the nodes that the runbook means, and stop")
    run.add_argument(
        "--output", metavar="DIR", default="runs", help="where the run's directory is made (default: runs)"
    )
    _conduct(run)
    _unattended(run)

    check = verb("check", "validate runbooks, and the inventories that they name, without touching any node", "check")
    check.add_argument("runbooks", nargs="+", metavar="RUNBOOK")
    check.add_argument(
        "-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE", help="set variables"
    )

    plan = verb("plan", "show what would run where: commands, bytes, rights; nothing is touched", "plan")
    _documents(plan)
    plan.add_argument("--json", action="store_true", help="print the plans themselves, as the agents would read them")
    plan.add_argument("--manifests", action="store_true",
                      help="print the Jobs of a cluster's nodes, for kubectl apply; each begins when its pod is ready")  # fmt: skip
    plan.add_argument("--run-id", metavar="ID",
                      help="with --manifests: a part of all names, so that the same can be captured again")  # fmt: skip

    hosts = verb("inventory", "show hosts, how each is reached, and where every value was said", "inventory")
    hosts.add_argument("pattern", nargs="?", default="all", metavar="PATTERN", help="a host pattern: web:&eu:!canary")
    hosts.add_argument("-i", "--inventory", action="append", default=[], metavar="INVENTORY",
                       help="a file or folder, host1,host2, @connector; may be repeated")  # fmt: skip
    hosts.add_argument("--limit", metavar="PATTERN", help="only the hosts that match this too; @FILE for a list")
    hosts.add_argument("--explain", metavar="HOST", help="every effective value of one host, and where it was said")
    hosts.add_argument("--graph", action="store_true", help="groups and the hosts in them, as a tree")
    hosts.add_argument("--json", action="store_true", help="everything known of the hosts, as JSON")

    translate = verb(
        "translate", "print the runbook that a Capture or MetricsConfiguration of Retina means", "translate"
    )
    translate.add_argument(
        "manifest", metavar="MANIFEST", help="a YAML file of retina.sh/v1alpha1; `run` takes it as well"
    )
    translate.add_argument("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE",
                           help="variables that the runbook needs (container_url)")  # fmt: skip
    translate.add_argument("--hosts", action="store_true", help="for hosts of an inventory (-i) instead of a cluster")

    verify = verb("verify", "check archives: every digest, the schema, every pcap to its last packet", "verify")
    verify.add_argument("archives", nargs="+", metavar="ARCHIVE")
    verify.add_argument("--json", action="store_true", help="print the findings as JSON")

    report = verb("report", "show a run again, from its directory", "report")
    report.add_argument("run", metavar="RUN_DIR")
    report.add_argument("--format", choices=("table", "lines", "json", "junit"), default="table")

    merge = verb("merge", "make one run of several, the shards of a fleet for instance", "merge")
    merge.add_argument("runs", nargs="+", metavar="RUN_DIR")
    merge.add_argument("--output", metavar="DIR", default="runs", help="where the one run is made (default: runs)")
    merge.add_argument("-q", "--quiet", action="store_true", help="print its directory only")

    listing = verb("list", "list the runs below a folder, newest first", "listing")
    listing.add_argument("folder", nargs="?", default="runs", metavar="DIR")
    listing.add_argument("--json", action="store_true", help="one JSON object a run")

    resume = verb("resume", "take up a run whose runner died: wait for its agents, fetch, verify, remove", "resume")
    resume.add_argument("run", metavar="RUN_DIR")
    _conduct(resume)

    exporter = verb(
        "exporter", "serve the metrics of a runbook's plugins on this machine, until it is stopped", "exporter"
    )
    exporter.add_argument("runbook", metavar="RUNBOOK", help="a YAML runbook whose captures collect `ebpf`")
    exporter.add_argument("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE",
                          help="set variables of the runbook")  # fmt: skip
    exporter.add_argument("--listen", metavar="[ADDRESS]:PORT", default="127.0.0.1:10093",
                          help=":10093 for every address (default: 127.0.0.1:10093)")  # fmt: skip
    exporter.add_argument("--most-series", type=_positive, default=2000, metavar="N",
                          help="label sets of one metric; those beyond are added up in one (default: 2000)")  # fmt: skip

    upload = verb("upload", "store a run's archives at the targets where that failed", "upload")
    upload.add_argument("run", metavar="RUN_DIR")
    upload.add_argument("--json", action="store_true", help="print every event as one JSON object a line")
    upload.add_argument("-q", "--quiet", action="store_true", help="print problems and the result only")
    upload.add_argument("-v", "--verbose", action="count", default=0, help="say more")

    download = verb("download", "get archives back from where they were stored, and verify them", "download")
    download.add_argument("run", nargs="?", metavar="RUN_DIR")
    download.add_argument("--from", dest="source", metavar="URL",
                          help="https://account/container/prefix, s3://bucket/prefix, or a folder")  # fmt: skip
    download.add_argument(
        "--node", action="append", default=[], metavar="NODE", help="only this node's; may be repeated"
    )
    download.add_argument("-o", "--output", default=".", metavar="DIR", help="where to put them (default: here)")
    download.add_argument("--credential", metavar="REFERENCE", help="env:NAME or file:PATH, for --from")
    download.add_argument("--endpoint-url", metavar="URL", help="of an S3-compatible store, for --from s3://")
    download.add_argument("--ca-file", metavar="FILE", help="certificates of authorities to trust, for --from")
    _fetch_rate(download)

    retry = verb("retry", "do a run's failed nodes again, as planned, at a T0 of their own", "retry")
    retry.add_argument("run", metavar="RUN_DIR")
    retry.add_argument(
        "--failed", action="store_true", help="the nodes that failed (needed: there is no other choice yet)"
    )
    retry.add_argument(
        "--output", metavar="DIR", help="where the new run's directory is made (default: beside the old one)"
    )
    _conduct(retry)

    cleanup = verb("cleanup", "remove what interrupted or dead runs left on nodes", "cleanup")
    cleanup.add_argument("runs", nargs="*", metavar="RUN_DIR", help="runs to clean up after")
    cleanup.add_argument("--older-than", metavar="AGE", help="all runs below --runs that began longer ago: 2h, 7d")
    cleanup.add_argument(
        "--runs", dest="folder", metavar="DIR", default="runs", help="for --older-than (default: runs)"
    )
    cleanup.add_argument(
        "--all-here", action="store_true", help="everything that agents of this user left on this machine"
    )
    cleanup.add_argument(
        "--work-dir", metavar="DIR", help="where agents work on this machine, if not in the usual place"
    )

    prune = verb("prune", "take away the runs that a runbook's `retention` doesn't keep", "prune")
    prune.add_argument("runbook", metavar="RUNBOOK")
    prune.add_argument("--runs", dest="folder", metavar="DIR", default="runs", help="where they are (default: runs)")
    prune.add_argument("--check", action="store_true", help="say what would go and what stays, and why; delete nothing")
    prune.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    prune.add_argument("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE",
                       help="set variables of the runbook")  # fmt: skip

    schedule = verb(
        "schedule", "print or install what makes cron, systemd or Kubernetes carry a runbook out", "schedule"
    )
    schedule.add_argument("runbook", metavar="RUNBOOK|list", help="a runbook; or `list`: what is installed here")
    schedule.add_argument("--on", metavar="CRON", help='when, as cron has it: "*/30 * * * *" (minute hour day month weekday)')  # fmt: skip
    schedule.add_argument(
        "--as",
        dest="kind",
        choices=("systemd", "cron", "cronjob", "exporter", "daemonset"),
        default="systemd",
        help="which of them; exporter and daemonset are always on (default: systemd)",
    )
    schedule.add_argument("--install", action="store_true", help="write it, and enable it")
    schedule.add_argument("--remove", action="store_true", help="take it away; its runs stay")
    schedule.add_argument("--root", metavar="DIR", default="/", help="install below another root directory: an image's")
    schedule.add_argument("--timezone", metavar="ZONE", help="of --on (default: UTC; cron has the machine's)")
    schedule.add_argument("--jitter", metavar="TIME", help="spread the start by a random while of at most that")
    schedule.add_argument("--deadline", metavar="TIME", help="end the windows by then and keep what is there")
    schedule.add_argument("--cpu", type=int, metavar="PERCENT", default=100, help="of one core (default: 100)")
    schedule.add_argument("--memory", metavar="SIZE", default="1GiB", help="of runner and agents here (default: 1GiB)")
    schedule.add_argument("--namespace", metavar="NAME", default="default", help="of the CronJob or DaemonSet")
    schedule.add_argument("--image", metavar="IMAGE", help="of the CronJob or DaemonSet: one that has retina-run")
    schedule.add_argument("--claim", metavar="PVC", help="a PersistentVolumeClaim for the CronJob's run directories")
    schedule.add_argument("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE",
                          help="set variables of the runbook")  # fmt: skip

    schema = verb("schema", "print a shipped JSON Schema, or where they are", "schema")
    schema.add_argument(
        "name", nargs="?", metavar="NAME", help="runbook, plan, event, manifest, run, collectors/tcpdump, …"
    )

    verb("doctor", "what this machine can do, what is missing, and how to get it", "doctor")
    verb("version", "print the version of retina-run and of the agent it ships", "version")
    completion = verb("completion", "print the completion code for a shell", "completion")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


def _conduct(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--keep", action="store_true", help="leave the finished agents' directories on the nodes, for a look"
    )
    verb.add_argument("--max-fail", metavar="N|N%", help="start nothing new once more nodes than that have failed")
    _fetch_rate(verb)
    verb.add_argument("--json", action="store_true", help="print every event as one JSON object a line")
    verb.add_argument("-q", "--quiet", action="store_true", help="print problems and the result only")
    verb.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more: the exact commands, and each transition"
    )


def _fetch_rate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--fetch-rate", metavar="SIZE/s", help="bound the bytes a second of all fetching together: 20MB/s"
    )


def _unattended(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("unattended runs", "for cron, timers and CronJobs")
    group.add_argument(
        "--quiet-ok", action="store_true", help="print nothing unless something is worth a mail, then the summary"
    )
    group.add_argument(
        "--lock", action="store_true", help="one run of this runbook at a time in the --output folder (else status 8)"
    )
    group.add_argument("--jitter", metavar="TIME", help="begin after a random while of at most that: 5m")
    group.add_argument("--deadline", metavar="TIME", help="end the windows by then and keep what is there: 30m")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 on")
    return int(text)


def _documents(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runbook", metavar="RUNBOOK", help="a YAML runbook")
    verb.add_argument("-i", "--inventory", action="append", default=[], metavar="INVENTORY",
                      help="hosts for captures that name no inventory: a file or folder, host1,host2, @connector")  # fmt: skip
    verb.add_argument("--limit", metavar="PATTERN", help="only the runbook's nodes that match (web:&eu:!canary, @FILE)")
    verb.add_argument("-f", "--forks", type=_positive, metavar="N",
                      help="how many hosts are connected to and fetched from at a time (default: 50)")  # fmt: skip
    verb.add_argument("--shard", metavar="I/N", help="only the nodes of the Ith of N shards, counted from 1; see merge")
    verb.add_argument("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE|@FILE",
                      help="set variables of the runbook; may be repeated")  # fmt: skip
    verb.add_argument(
        "--work-dir", metavar="DIR", help="where agents work on this machine (default: /var/tmp/retina-run-UID)"
    )
