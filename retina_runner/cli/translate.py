"""`retina-run translate MANIFEST`: the runbook that a manifest of Retina means, as YAML; nothing is touched."""

from __future__ import annotations

import argparse
import sys

from retina_runner import translate, variables
from retina_runner.documents import load_document
from retina_runner.errors import DocumentError, Exit
from retina_runner.runbook_reading import parse_runbook


def main(chosen: argparse.Namespace) -> int:
    extra = variables.parse_extra(chosen.extra_vars)
    document = load_document(chosen.manifest, with_problems=True)
    if not translate.is_manifest(document):
        hint = "apiVersion: retina.sh/v1alpha1, kind: Capture or MetricsConfiguration"
        raise DocumentError([document.problem((), "isn't a manifest of Retina", hint)])
    made = translate.translate(document, extra, on_hosts=chosen.hosts)
    parse_runbook(made.runbook_text.encode(), "the runbook", chosen.extra_vars)
    for note in made.notes:
        print(f"retina-run: {chosen.manifest}: {note}", file=sys.stderr)
    print(made.runbook_text, end="")
    return Exit.OK
