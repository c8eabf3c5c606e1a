"""Manifests of Microsoft Retina as runbooks: `Capture` and `MetricsConfiguration` of retina.sh/v1alpha1.

Every field of a spec is carried over, or refused at its file, line and column, or changes nothing, which a note says. What
is wrong in the runbook that comes of it (a filter that doesn't compile, say) is told at its place in the manifest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retina_runner.documents import Document, Path_
from retina_runner.errors import Problem

GROUP = "retina.sh/"


@dataclass(frozen=True)
class Translated(Document):
    """A runbook whose places are those of the manifest that it was made from.

    `origins` maps paths of the runbook to paths of the manifest. `notes` say what isn't the same, or means nothing here.
    """

    origin: Document | None = None
    origins: Mapping[Path_, Path_] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def _back(self, path: Iterable[str | int]) -> Path_:
        path = tuple(path)
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, ())

    def place(self, path: Iterable[str | int], key: bool = False) -> tuple[int, int]:
        assert self.origin is not None
        return self.origin.place(self._back(path), key)

    def problem(self, path: Iterable[str | int], message: str, hint: str = "", key: bool = False) -> Problem:
        assert self.origin is not None
        return self.origin.problem(self._back(path), message, hint, key)

    @property
    def runbook_text(self) -> str:
        """The runbook as YAML, its notes as comments."""
        from retina_runner.translate.yaml_text import lines

        source = self.name.replace("\n", " ")
        head = [f"# From {source}, a {self.kind} of Microsoft Retina."]
        head += [f"# - {note}" for note in self.notes]
        return "\n".join([*head, *lines(self.value)]) + "\n"

    @property
    def kind(self) -> str:
        assert self.origin is not None
        return str(self.origin.value["kind"])


def is_manifest(document: Document) -> bool:
    """Whether the document is one of Retina's, rather than a runbook."""
    value = document.value
    return isinstance(value, dict) and str(value.get("apiVersion", "")).startswith(GROUP)


def translate(document: Document, given: Collection[str] = (), *, on_hosts: bool = False) -> Translated:
    """The runbook that the manifest means. Raises DocumentError with every problem.

    `given` are the names of variables on the command line. `on_hosts`: for hosts of inventories instead of the cluster.
    """
    from retina_runner.errors import DocumentError
    from retina_runner.translate import capture, metrics

    kinds = {"Capture": capture.translate, "MetricsConfiguration": metrics.translate}
    kind = document.value.get("kind")
    problems = list(document.problems)
    if kind not in kinds:
        hint = "Capture and MetricsConfiguration can be translated"
        problems.append(document.problem(("kind",), f"a {kind} of Retina has no counterpart here", hint))
        raise DocumentError(problems)
    draft = Draft(document, frozenset(given), on_hosts, problems)
    value = kinds[kind](draft)
    if draft.problems:
        raise DocumentError(list(dict.fromkeys(draft.problems)))
    return Translated(
        name=document.name, text=document.text, value=value, places={}, key_places={}, lines=document.lines,
        origin=document, origins=draft.origins, notes=tuple(dict.fromkeys(draft.notes)),
    )  # fmt: skip


@dataclass
class Draft:
    """A translation in the making: what was found, and where what is written came from."""

    document: Document
    given: frozenset[str]
    on_hosts: bool
    problems: list[Problem]
    origins: dict[Path_, Path_] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def refuse(self, path: Path_, message: str, hint: str = "", *, key: bool = False) -> None:
        self.problems.append(self.document.problem(path, message, hint, key))

    def came(self, path: Path_, origin: Path_) -> None:
        """What stands at the runbook's path was made from what stands at the manifest's."""
        self.origins[path] = origin

    def note(self, path: Path_, text: str) -> None:
        """Said with the line, for what isn't carried over because it changes nothing, or isn't quite the same."""
        self.notes.append(f"line {self.document.place(path, True)[0]}: {path[-1]}: {text}")

    def valid(self, name: str) -> Mapping[str, Any] | None:
        """The spec, when it has the schema's form; otherwise its problems are noted."""
        from retina_runner import schema

        found = schema.validate(self.document, self.document.value, name)
        known = {(p.line, p.column) for p in self.problems}
        self.problems += [p for p in found if (p.line, p.column) not in known]
        return None if self.problems else self.document.value["spec"]


def literal(text: str) -> str:
    """Text that means itself in a runbook, where `${name}` stands for a variable."""
    return text.replace("${", "$${")
