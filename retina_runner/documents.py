"""YAML documents with a place for every value, and without YAML 1.1's surprises.

A runbook is read by people who know YAML 1.2 and by a parser of 1.1, so whatever the two read differently is refused
with both meanings (`STRICT`). An inventory is read as Ansible reads it (`ANSIBLE`): there `yes` is a boolean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retina_runner.errors import DocumentError, Problem

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
"""After aliases are followed: a few lines of nested aliases can stand for billions of values."""
MOST_INVENTORY_VALUES = 3_000_000
MOST_DEPTH = 100

Path_ = tuple[str | int, ...]


class Dialect(Enum):
    """How plain scalars are read."""

    STRICT = "strict"
    ANSIBLE = "ansible"


_BOOLEAN_11 = re.compile(r"(?:yes|no|on|off|y|n)\Z", re.I)
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(?::[0-5]?\d)+(?:\.\d*)?\Z")
_OCTAL_11 = re.compile(r"[-+]?0[0-7_]+\Z")
_UNDERSCORED = re.compile(r"[-+]?\d[\d_]*_[\d_]*(?:\.\d*)?\Z")
_RADIX = re.compile(r"[-+]?0[xob][0-9a-fA-F_]+\Z")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?(?:[Tt ].*)?\Z")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9]\d*)\Z")
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?:\.\d*)?[eE][-+]?\d+)\Z")
_SECRET_TEXT = re.compile(
    r"(?i)[?&](?:sig|x-amz-signature|x-amz-credential)=|://[^/\s:@]+:[^/\s@]+@|accountkey=|sharedaccesssignature="
)


@dataclass(frozen=True)
class Document:
    """A read document. `text` is its source; `places` maps a path to (line, column) of the value, from 1.

    `problems` are of single values or keys, in a document that was asked for in spite of them: a reader that checks more
    can then tell everything at once.
    """

    name: str
    text: str
    value: Any
    places: Mapping[Path_, tuple[int, int]]
    key_places: Mapping[Path_, tuple[int, int]]
    lines: tuple[str, ...] = field(repr=False, default=())
    problems: tuple[Problem, ...] = ()

    def place(self, path: Iterable[str | int], key: bool = False) -> tuple[int, int]:
        """(line, column) of the value at the path, or of its key; of the nearest parent that has a place."""
        path = tuple(path)
        if key and path in self.key_places:
            return self.key_places[path]
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))

    def problem(self, path: Iterable[str | int], message: str, hint: str = "", key: bool = False) -> Problem:
        """A problem at that place, with its line. A line that looks like a secret isn't shown."""
        path = tuple(path)
        line, column = self.place(path, key)
        return Problem(self.name, line, column, dotted(path), message, hint, _excerpt(self.lines, line))


def looks_secret(text: str) -> bool:
    """Whether a value holds a signature or a password, as far as one can see."""
    return _SECRET_TEXT.search(text) is not None


def _excerpt(lines: tuple[str, ...], line: int) -> str:
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    return "" if looks_secret(text) else text[:200]


def dotted(path: Iterable[str | int]) -> str:
    """`captures[0].collect[1].tcpdump.snaplen`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or what there is when nothing is near; empty when there is nothing."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(word, known, 1, 0.6) or difflib.get_close_matches(word.lower(), known, 1, 0.6)
    if near:
        return f"did you mean {near[0]}?"
    return "there are " + ", ".join(known) if known and len(known) <= 30 else ""


def load_document(path: str | Path, dialect: Dialect = Dialect.STRICT, *, with_problems: bool = False) -> Document:
    """Read a file. Raises DocumentError with every problem of the file that YAML lets one find at once.

    With `with_problems`, only for a file that can't be read as a whole; the other problems are the document's.
    """
    name = str(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        parent = Path(path).parent
        siblings = [p.name for p in parent.iterdir() if p.suffix in (".yaml", ".yml")] if parent.is_dir() else []
        raise _whole(name, "no such file", nearest(Path(path).name, siblings)) from None
    except IsADirectoryError:
        raise _whole(name, "is a directory", "name a file in it") from None
    except OSError as error:
        raise _whole(name, error.strerror or str(error)) from None
    if len(content) > MOST_BYTES:
        raise _whole(name, f"is larger than {MOST_BYTES} bytes, so it is hardly the file you mean")
    return parse_document(content, name, dialect, with_problems=with_problems)


def _whole(name: str, message: str, hint: str = "") -> DocumentError:
    return DocumentError([Problem(name, 0, 0, "", message, hint)])


def parse_document(
    content: bytes, name: str, dialect: Dialect = Dialect.STRICT, *, with_problems: bool = False
) -> Document:
    """As `load_document`, for content that is here already."""
    import yaml

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise DocumentError([Problem(name, line, column, "", "not UTF-8 text", "save the file as UTF-8")]) from None
    lines = tuple(text.splitlines())
    try:
        root = _composed(text, dialect)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = error.problem or str(error.context or "not YAML")
        if "but found another document" in what:
            what = "there is a second document (---) in the file; one is allowed"
        elif "cannot start any token" in what and "'\\t'" in what:
            what = "a tab; YAML indents with blanks"
        raise DocumentError(
            [Problem(name, line, column, "", what, _yaml_hint(lines, line), _excerpt(lines, line))]
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise _whole(name, f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise _whole(name, "is nested too deeply") from None
    if root is None:
        raise _whole(name, "is empty")
    document = _Reader(name, text, lines, dialect).read(root)
    if document.problems and not with_problems:
        raise DocumentError(document.problems)
    return document


def _composed(text: str, dialect: Dialect) -> yaml.Node | None:
    """The node tree. Inventories may be of megabytes: libyaml reads them, ten times as fast, where it is there."""
    import yaml

    fast: Any = getattr(yaml, "CSafeLoader", None) if dialect is Dialect.ANSIBLE else None
    for kind in (fast, yaml.SafeLoader) if fast else (yaml.SafeLoader,):
        loader = kind(text)
        try:
            root: yaml.Node | None = loader.get_single_node()
            return root
        except yaml.YAMLError:
            if kind is yaml.SafeLoader:
                raise  # in PyYAML's own words, which the hints below know
        finally:
            loader.dispose()
    raise AssertionError("unreachable")


def _yaml_hint(lines: tuple[str, ...], line: int) -> str:
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in text[: len(text) - len(text.lstrip())]:
        return "the line is indented with a tab"
    if re.search(r":\s+[\[{*&!%@`]|:\s+\S+: ", text):
        return "quote the value"
    return ""


class _Reader:
    """Turns the node tree into plain values, noting places and problems on the way."""

    def __init__(self, name: str, text: str, lines: tuple[str, ...], dialect: Dialect):
        self._name, self._text, self._lines, self._dialect = name, text, lines, dialect
        self._problems: list[Problem] = []
        self._places: dict[Path_, tuple[int, int]] = {}
        self._key_places: dict[Path_, tuple[int, int]] = {}
        self._count = 0

    def read(self, root: yaml.Node) -> Document:
        value = self._value(root, ())
        return Document(
            self._name, self._text, value, self._places, self._key_places, self._lines, tuple(self._problems)
        )

    def _problem(self, node: yaml.Node, path: Path_, message: str, hint: str = "") -> None:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self._problems.append(
            Problem(self._name, line, column, dotted(path), message, hint, _excerpt(self._lines, line))
        )

    def _value(self, node: yaml.Node, path: Path_) -> Any:
        import yaml

        self._count += 1
        most = MOST_VALUES if self._dialect is Dialect.STRICT else MOST_INVENTORY_VALUES
        if self._count > most or len(path) > MOST_DEPTH:
            self._problem(node, path, "too many or too deeply nested values (aliases count each time)")
            raise DocumentError(self._problems)
        self._places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, path, ("tag:yaml.org,2002:seq",))
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _check_tag(self, node: yaml.Node, path: Path_, allowed: tuple[str, ...]) -> None:
        if node.tag not in allowed:
            self._problem(node, path, f"the tag {_shown_tag(node.tag)} isn't known here", "leave it out")

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        import yaml

        self._check_tag(node, path, ("tag:yaml.org,2002:map",))
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        self._problem(value_node, path, "<<: takes a mapping, or a list of mappings")
                        continue
                    for key, value in self._mapping(source, path).items():
                        merged.setdefault(key, value)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be plain text")
                continue
            key = key_node.value
            here = (*path, key)
            if not key_node.style and self._dialect is Dialect.STRICT and _BOOLEAN_11.match(key):
                self._problem(
                    key_node, path, f"the key {key} is a boolean in YAML 1.1 and text in 1.2", f'write "{key}"'
                )
                continue
            if key in first:
                self._problem(key_node, here, f"the key {key} is here twice", f"the first is in line {first[key]}")
                continue
            first[key] = key_node.start_mark.line + 1
            self._key_places[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self._value(value_node, here)
        for key, value in merged.items():
            result.setdefault(key, value)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        text: str = node.value
        tag = node.tag
        if tag == "!vault" and self._dialect is Dialect.ANSIBLE:
            return VaultText(text)
        if tag in ("!unsafe", "tag:yaml.org,2002:str", "!") and (node.style or tag == "!unsafe"):
            return text
        if tag.startswith("!") or tag.startswith("tag:yaml.org,2002:python"):
            self._problem(node, path, f"the tag {_shown_tag(tag)} isn't known here", "leave it out")
            return None
        if node.style:  # libyaml's plain style is empty, PyYAML's None
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE"):
            return True
        if text in ("false", "False", "FALSE"):
            return False
        if _INTEGER.match(text) and len(text) < 400:
            return int(text)
        if _FLOAT.match(text):
            return float(text)
        if self._dialect is Dialect.ANSIBLE:
            return _ansible_scalar(text)
        return self._strict_scalar(node, path, text)

    def _strict_scalar(self, node: yaml.Node, path: Path_, text: str) -> Any:
        quoted = f'write "{text}" for text'
        if _BOOLEAN_11.match(text):
            meant = "true" if text.lower() in ("yes", "on", "y") else "false"
            self._problem(
                node, path, f"{text} is a boolean in YAML 1.1 and text in 1.2", f'write {meant}, or "{text}" for text'
            )
        elif _SEXAGESIMAL.match(text):
            self._problem(
                node, path, f"{text} is a number to base 60 in YAML 1.1", f"{quoted}; durations are like 1h30m"
            )
        elif _OCTAL_11.match(text):
            self._problem(node, path, f"{text} is {int(text.replace('_', ''), 8)} in YAML 1.1 and {int(text.replace('_', ''))} in 1.2",
                          f"write the number without the leading zero, or \"{text}\" for text")  # fmt: skip
        elif _UNDERSCORED.match(text) or _RADIX.match(text):
            self._problem(
                node,
                path,
                f"{text} is a number in some versions of YAML and text in others",
                f"write it in decimal, or {quoted}",
            )
        elif _DATE.match(text):
            self._problem(node, path, f"{text} is a date in YAML 1.1 and text in 1.2", quoted)
        elif text == "=" or text in (".inf", "-.inf", ".nan", ".Inf", ".NaN", ".INF", ".NAN"):
            self._problem(node, path, f"{text} has a meaning of its own in YAML", quoted)
        return text


class VaultText(str):
    """Text that ansible-vault encrypted; an error only where the value is needed."""


def _ansible_scalar(text: str) -> Any:
    if text.lower() in ("yes", "on"):
        return True
    if text.lower() in ("no", "off"):
        return False
    if _OCTAL_11.match(text):
        return int(text.replace("_", ""), 8)
    return text


def _shown_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def to_yaml(values: Sequence[Any]) -> str:
    """The values as YAML documents, one after the other, keys in their order, texts of several lines as blocks."""
    import yaml

    class Written(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Written.add_representer(str, text)
    return "---\n" + "---\n".join(yaml.dump(v, Dumper=Written, sort_keys=False, width=120) for v in values)
