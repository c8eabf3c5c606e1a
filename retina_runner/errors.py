"""Every way a run can end, as exit codes and exceptions: the class is the message and the code.

`EXIT_CODES` is the only table of them; the command's help, the docs page and the tests are made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit status of `retina-run`; meanings in `EXIT_CODES`."""

    OK = 0
    BUG = 1
    UNTOUCHED = 2
    SOME_FAILED = 3
    NONE_SUCCEEDED = 4
    NOT_UPLOADED = 5
    LOSSY = 6
    FINDINGS = 7
    OVERLAP = 8
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES: dict[Exit, str] = {
    Exit.OK: "everything asked for was collected (for `verify`: every archive is intact)",
    Exit.BUG: "a bug in retina-run (a Python traceback); for `verify` alone: an archive is damaged",
    Exit.UNTOUCHED: "nothing was touched: usage, validation, no node matched, or a node can't do what the plan asks",
    Exit.SOME_FAILED: "ended, but some node or collector failed, or was cut short",
    Exit.NONE_SUCCEEDED: "ended, and no node succeeded",
    Exit.NOT_UPLOADED: "collected, but not uploaded; the archives are kept and the message says where",
    Exit.LOSSY: "collected, but lossy, and the runbook says `fail_on_loss: true`",
    Exit.FINDINGS: "collected, but something isn't as the runbook's `expect` says; the findings name it",
    Exit.OVERLAP: "nothing was touched: a run of this runbook is under way, and `--lock` says one at a time",
    Exit.INTERRUPTED: "interrupted (Ctrl-C); what was there is archived and the nodes are clean, or the message says what remains",
    Exit.TERMINATED: "terminated (SIGTERM), or `--deadline` has passed; as for 130",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one document.

    `line` and `column` count from 1; 0 means that the problem has no place in the file. `path` is the dotted path of
    the value (`captures[0].collect[1].tcpdump.snaplen`), empty for the whole document. `excerpt` is the source line,
    without its newline. `hint` is the next step (a nearest name, an example), without a full stop.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    excerpt: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: "
        head = place + (f"{self.path}: " if self.path else "") + self.message
        if self.hint:
            head += f" ({self.hint})"
        if not (self.excerpt and self.line):
            return head
        gutter = f"{self.line:5d} | "
        # A tab before the column is kept, so that the caret stands below the character whatever a tab's width is.
        lead = "".join("\t" if c == "\t" else " " for c in self.excerpt[: self.column - 1])
        return f"{head}\n{gutter}{self.excerpt}\n{' ' * (len(gutter) - 2)}| {lead}^"


class RetinaRunError(Exception):
    """An end of the run that is not a bug. The text is what the user reads; `exit_code` is the process's."""

    exit_code = Exit.UNTOUCHED


class UsageError(RetinaRunError):
    """Wrong words on the command line."""


class DocumentError(RetinaRunError):
    """Everything that is wrong in the documents of a run, all at once.

    `problems` is ordered by file, line and column, and never empty.
    """

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column, p.path)))
        count = len(self.problems)
        lines = [str(p) for p in self.problems]
        lines.append(f"{count} problem{'s' if count != 1 else ''} found; nothing was touched")
        super().__init__("\n".join(lines))


class OverlapError(RetinaRunError):
    """Another run of the same runbook is under way."""

    exit_code = Exit.OVERLAP


class ArchiveError(RetinaRunError):
    """An archive is truncated, altered, or not one of ours."""

    exit_code = Exit.BUG


class PreflightError(RetinaRunError):
    """Storing can't work, as far as can be known before a run; no node was touched."""


class UploadError(RetinaRunError):
    """Collected, but not stored where the runbook says; the archive is kept."""

    exit_code = Exit.NOT_UPLOADED
