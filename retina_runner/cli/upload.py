"""`retina-run upload RUN_DIR`: finish what a run couldn't store, at the targets that it began with."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from retina_runner.cli.resume import open_run, refuse_running
from retina_runner.cli.run import Recorder, view_of
from retina_runner.delivery import of_record
from retina_runner.errors import Exit, UploadError
from retina_runner.rundir import RunDirectory
from retina_runner.uploads import NotStored, Parcel
from retina_runner.verification import verify_archive


def main(chosen: argparse.Namespace) -> int:
    with RunDirectory(Path(chosen.run)).alone():
        return _upload(chosen)


def _upload(chosen: argparse.Namespace) -> int:
    directory, report = open_run(Path(chosen.run))
    refuse_running(directory, report)
    delivery = of_record(report.terms, directory.name)
    wanted = [p.describe() for p in delivery.places if p.target is not None]
    open_nodes = []
    for node in report.nodes:
        stored = {u.target for u in node.uploads if u.state == "stored"}
        if node.archive:
            path = directory.archives / Path(node.archive).name
            parcel = Parcel(directory.name, node.node, path, node.sha256, node.size_bytes)
            delivery.begin_with(node.id, parcel, stored)
            if set(wanted) - stored:
                open_nodes.append((node, path))
    shelves = {p.describe() for p in delivery.places if p.target is None}
    unkept = [(n, u) for n in report.nodes for u in n.uploads if u.target in shelves and u.state == "failed"]
    for node, upload in unkept:  # nodes keep their own archives at the end of a run, and have none any more
        print(f"retina-run: {node.id}: not kept in {upload.target} ({upload.why}), and its node's copy has gone: "
              f"{node.archive} is what there is", file=sys.stderr)  # fmt: skip
    if not open_nodes:
        if unkept:
            return Exit.NOT_UPLOADED
        print(f"{directory.path}: every archive is where it should be")
        return Exit.OK
    try:
        delivery.preflight(3600.0)
    except NotStored as why:
        raise UploadError(str(why)) from why
    recorder = Recorder(directory, view_of(chosen))
    recorder.add({"event": "resumed", "pid": os.getpid(), "ids": []})
    for node, path in open_nodes:
        told = {"id": node.id, "node": node.node, "capture": node.capture}
        checked = verify_archive(path)
        if not checked.ok:
            recorder.add({"event": "warning", **told, "why": f"{path}: {checked.problems[0]}"})
            continue
        manifest = json.dumps(checked.manifest, indent=1).encode()
        for event in delivery.store(node.id, node.node, path, node.sha256, manifest):
            recorder.add({**event, **told})
    status = recorder.end()
    for problem in delivery.conclude(directory.summary.read_bytes()):
        print(problem)
    return status
