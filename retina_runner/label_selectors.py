"""Label selectors of Kubernetes: read as text or as the mapping of a manifest, matched here, written for the API.

The grammar and its limits are those of k8s.io/apimachinery's labels package, so that what is accepted here is accepted by
the API server, and what isn't is refused before anything is asked, with the place in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*\Z")
_TOKEN = re.compile(r"\s*(==|!=|=|!|<|>|\(|\)|,|[^\s=!<>(),]+)")


class SelectorError(ValueError):
    """Not a selector. `offset` is where in the text, from 0."""

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Requirement:
    """One condition on one label; `values` is sorted, and empty for Exists and DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As the API server: a label that isn't there satisfies NotIn and DoesNotExist, and nothing else."""
        found = labels.get(self.key)
        if self.operator in ("Exists", "DoesNotExist"):
            return (found is not None) == (self.operator == "Exists")
        if found is None:
            return self.operator == "NotIn"
        if self.operator in ("In", "NotIn"):
            return (found in self.values) == (self.operator == "In")
        try:
            number = int(found)
        except ValueError:
            return False
        return number > int(self.values[0]) if self.operator == "Gt" else number < int(self.values[0])

    @property
    def text(self) -> str:
        if self.operator == "Exists":
            return self.key
        if self.operator == "DoesNotExist":
            return f"!{self.key}"
        if self.operator in ("Gt", "Lt"):
            return f"{self.key}{'>' if self.operator == 'Gt' else '<'}{self.values[0]}"
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


@dataclass(frozen=True)
class Selector:
    """AND-ed requirements, sorted; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)

    @property
    def text(self) -> str:
        """What `labelSelector=` of the API takes; `parse` reads it back to an equal selector."""
        return ",".join(r.text for r in self.requirements)


def parse(text: str) -> Selector:
    """`app=web,tier in (a, b),!canary,gen>3`. Raises SelectorError."""
    return _selector(list(_Parser(text).requirements()))


def from_mapping(given: Mapping[str, Any]) -> Selector:
    """The selector of a manifest ({matchLabels, matchExpressions}), or plain labels ({app: web}). Raises SelectorError."""
    if not given.keys() & {"matchLabels", "matchExpressions"}:
        return _selector([_equals(k, v) for k, v in given.items()])
    unknown = given.keys() - {"matchLabels", "matchExpressions"}
    if unknown:
        raise SelectorError(f"{min(unknown)} is neither matchLabels nor matchExpressions")
    found = [_equals(k, v) for k, v in (given.get("matchLabels") or {}).items()]
    for each in given.get("matchExpressions") or ():
        if not isinstance(each, Mapping) or not {"key", "operator"} <= each.keys() <= {"key", "operator", "values"}:
            raise SelectorError("an expression has key, operator and, for In and NotIn, values")
        if each["operator"] not in OPERATORS[:4]:
            raise SelectorError(f"the operator {each['operator']} is none of {', '.join(OPERATORS[:4])}")
        found.append(_requirement(str(each["key"]), each["operator"], [_value(v) for v in each.get("values") or ()]))
    return _selector(found)


def read(given: str | Mapping[str, Any]) -> Selector:
    """Either form. Raises SelectorError."""
    return parse(given) if isinstance(given, str) else from_mapping(given)


def _selector(found: Sequence[Requirement]) -> Selector:
    return Selector(tuple(sorted(set(found), key=lambda r: (r.key, r.operator, r.values))))


def _equals(key: str, value: Any) -> Requirement:
    return _requirement(str(key), "In", [_value(value)])


def _value(value: Any) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise SelectorError(f"a label's value is text, not {value!r}; write it in quotes")
    return str(value)


def _requirement(key: str, operator: str, values: Sequence[str], offset: int = 0) -> Requirement:
    """Checked as apimachinery's NewRequirement does."""
    prefix, slash, name = key.rpartition("/")
    if not _NAME.match(name) or (slash and not (len(prefix) <= 253 and _PREFIX.match(prefix))):
        raise SelectorError(f"{key!r} is no label's key ([domain/]name, the name at most 63 of A-Za-z0-9-_.)", offset)
    if operator in ("In", "NotIn") and not values:
        raise SelectorError(f"{key} {operator.lower()} needs at least one value", offset)
    if operator in ("Exists", "DoesNotExist") and values:
        raise SelectorError(f"{operator} of {key} takes no values", offset)
    if operator in ("Gt", "Lt") and not (len(values) == 1 and re.fullmatch(r"[0-9]{1,18}", values[0])):
        raise SelectorError(f"{key} is compared with {', '.join(values)}, which is no integer", offset)
    for value in values:
        if value and not _NAME.match(value):
            raise SelectorError(
                f"{value!r} is no label's value (at most 63 of A-Za-z0-9-_., ends alphanumeric)", offset
            )
    return Requirement(key, operator, tuple(sorted(set(values))))


class _Parser:
    def __init__(self, text: str):
        self._tokens = [(m.group(1), m.start(1)) for m in _TOKEN.finditer(text)]
        self._end = len(text)
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    @property
    def _offset(self) -> int:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else self._end

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def requirements(self) -> Iterator[Requirement]:
        while self._peek():
            yield self._one()
            if not self._peek():
                return
            if self._peek() != ",":
                raise SelectorError(f"expected a comma before {self._peek()!r}", self._offset)
            self._next()
            if not self._peek():
                raise SelectorError("ends with a comma", self._end)

    def _word(self, what: str) -> str:
        if not self._peek() or self._peek() in ("==", "!=", "=", "!", "<", ">", "(", ")", ","):
            found = repr(self._peek()) if self._peek() else "the end"
            raise SelectorError(f"expected {what}, found {found}", self._offset)
        return self._next()

    def _one(self) -> Requirement:
        offset = self._offset
        if self._peek() == "!":
            self._next()
            return _requirement(self._word("a label's key"), "DoesNotExist", (), offset)
        key = self._word("a label's key")
        operator = self._peek()
        if operator in ("", ","):
            return _requirement(key, "Exists", (), offset)
        if operator in ("=", "==", "!="):
            self._next()
            # `key=` is the empty value.
            value = "" if self._peek() in ("", ",") else self._word("a value")
            return _requirement(key, "NotIn" if operator == "!=" else "In", (value,), offset)
        if operator in ("<", ">"):
            self._next()
            return _requirement(key, "Gt" if operator == ">" else "Lt", (self._word("an integer"),), offset)
        if operator in ("in", "notin"):
            self._next()
            return _requirement(key, "In" if operator == "in" else "NotIn", self._set(), offset)
        raise SelectorError(f"expected =, !=, in, notin, < or > after {key}, found {operator!r}", self._offset)

    def _set(self) -> list[str]:
        if self._next() != "(":
            self._at -= 1
            raise SelectorError("expected ( and the values", self._offset)
        values: list[str] = []
        while True:
            values.append("" if self._peek() in (",", ")") else self._word("a value"))
            if self._peek() == ")":
                self._next()
                return values
            if self._peek() != ",":
                raise SelectorError("the values' ) is missing", self._offset)
            self._next()
