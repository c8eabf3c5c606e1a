"""Conditions on a node's counters: `rate("Udp.RcvbufErrors") > 10 and value("conntrack.use") >= 80`. Small, and safe.

An expression is parsed as Python's own syntax and then walked by hand: numbers, comparisons, and/or/not, + - * /, and the
functions below; nothing else has a meaning, so nothing else can happen. Pure: what is measured is an argument.
"""

from __future__ import annotations

import ast
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from retina_runner.agent.counters import FAMILY, Snapshot
from retina_runner.agent.records import dataclass, field

Number = Union[int, float]
LONGEST = 1000
FUNCTIONS: Mapping[str, str] = {
    "value": 'value("conntrack.count"): a counter or gauge as it stands, summed over its labels',
    "delta": 'delta("TcpExt.ListenDrops"): how far a counter went',
    "rate": 'rate("interface.rx_errors", interface="eth0"): delta a second',
    "rule_delta": 'rule_delta("DROP"): packets that took the rules whose text contains that',
    "packets": "packets(): captured, in all pcaps of the node (expect only)",
    "dropped": "dropped(): lost, as far as is known (expect only)",
    "lossless": "lossless(): 1 when every artefact is complete (expect only)",
}
AFTERWARDS = ("packets", "dropped", "lossless")
"""Functions that mean something once there is an archive, not before."""


class ConditionError(Exception):
    """Not a condition. `column` counts from 1 in the expression's own text."""

    def __init__(self, why: str, column: int = 1):
        super().__init__(why)
        self.column = column


class Unknown(Exception):
    """The node has no such counter; `hint` names the nearest that it has."""

    def __init__(self, why: str, hint: str = ""):
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True)
class Condition:
    """A parsed expression. `needs_rules` is whether firewall rules have to be read for it, `metrics` the names of metric
    plugins' metrics in it: written as Prometheus has them, where the kernel's own counters have a dot or no underscore."""

    text: str
    tree: ast.expr
    needs_rules: bool
    metrics: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Two looks at a node, `seconds` apart. `rules` are (text, packets) before and after; `archive` what came of it."""

    before: Snapshot
    after: Snapshot
    seconds: float
    rules: Tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
    archive: Mapping[str, Number] = field(default_factory=dict)


def parse(text: str, afterwards: bool = False) -> Condition:
    """Read one. `afterwards`: functions of the archive are allowed too. Raises ConditionError."""
    if len(text) > LONGEST:
        raise ConditionError(f"longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip() and text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ConditionError("not an expression", getattr(error, "offset", None) or 1) from None
    calls: List[str] = []
    _check(tree, afterwards, calls, 0)
    if not isinstance(tree, (ast.Compare, ast.BoolOp)) and not (
        isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
    ):
        raise ConditionError("says neither yes nor no; compare it with something, as in … > 0", tree.col_offset + 1)
    asked = [n.args[0].value for n in ast.walk(tree) if isinstance(n, ast.Call) and n.args and
             isinstance(n.func, ast.Name) and n.func.id in ("value", "delta", "rate") and
             isinstance(n.args[0], ast.Constant)]  # fmt: skip
    metrics = dict.fromkeys(str(name) for name in asked if "_" in str(name) and "." not in str(name))
    return Condition(text, tree, "rule_delta" in calls, tuple(metrics))


def _check(node: ast.AST, afterwards: bool, calls: List[str], depth: int) -> None:
    column = getattr(node, "col_offset", 0) + 1
    if depth > 40:
        raise ConditionError("nested too deeply", column)
    if isinstance(node, ast.BoolOp):
        parts: List[ast.AST] = list(node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        parts = [node.operand]
    elif isinstance(node, ast.Compare) and all(isinstance(o, tuple(_COMPARE)) for o in node.ops):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, tuple(_ARITHMETIC)):
        parts = [node.left, node.right]
    elif isinstance(node, ast.Call):
        return _check_call(node, afterwards, calls, column)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return None
    elif isinstance(node, ast.Name):
        raise ConditionError(f'{node.id} is no number; a counter is written value("{node.id}")', column)
    else:
        raise ConditionError(
            "means nothing here; there are numbers, < <= > >= == !=, and or not, + - * /, functions", column
        )
    for part in parts:
        _check(part, afterwards, calls, depth + 1)
    return None


def _check_call(node: ast.Call, afterwards: bool, calls: List[str], column: int) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS or (name in AFTERWARDS and not afterwards):
        known = [f for f in FUNCTIONS if afterwards or f not in AFTERWARDS]
        near = _nearest(name, known, 1)
        others = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise ConditionError(f"there is no function {name} here{others}", column)
    texts = [*node.args, *(k.value for k in node.keywords)]
    if not all(isinstance(a, ast.Constant) and isinstance(a.value, str) and a.value for a in texts) or any(
        k.arg is None for k in node.keywords
    ):
        raise ConditionError(f"{name} takes names in quotes: {FUNCTIONS[name]}", column)
    wanted = 0 if name in AFTERWARDS else 1
    if len(node.args) != wanted or (node.keywords and name not in ("value", "delta", "rate")):
        raise ConditionError(f"{name} takes {wanted} name{'s' if wanted != 1 else ''}: {FUNCTIONS[name]}", column)
    calls.append(name)


def _nearest(name: str, known: Sequence[str], most: int) -> List[str]:
    import difflib  # seldom needed, and no small thing to import

    return difflib.get_close_matches(name, known, most)


def holds(condition: Condition, measured: Measured) -> Tuple[bool, Dict[str, Number]]:
    """Whether it does, and the number of each call in it, by its text. Raises Unknown.

    Nothing is left out for being decided early: the numbers are there to be read. A division by zero is infinity.
    """
    seen: Dict[str, Number] = {}
    return bool(_value(condition.tree, measured, seen)), seen


def _value(node: ast.AST, measured: Measured, seen: Dict[str, Number]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BoolOp):
        values = [bool(_value(v, measured, seen)) for v in node.values]
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, measured, seen)
        return not inner if isinstance(node.op, ast.Not) else -inner
    if isinstance(node, ast.Compare):
        values = [_value(v, measured, seen) for v in (node.left, *node.comparators)]
        return all(_COMPARE[type(o)](a, b) for o, a, b in zip(node.ops, values, values[1:]))
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value(node.left, measured, seen), _value(node.right, measured, seen))
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
    labels = {str(k.arg): str(k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
    number = _call(node.func.id, str(arguments[0]) if arguments else "", labels, measured)
    seen[_written(node.func.id, arguments, labels)] = number
    return number


def _written(name: str, arguments: List[Any], labels: Mapping[str, str]) -> str:
    return f"{name}({', '.join([*map(str, arguments), *(f'{k}={v}' for k, v in labels.items())])})"


def _call(name: str, what: str, labels: Mapping[str, str], measured: Measured) -> Number:
    if name in AFTERWARDS:
        return measured.archive.get(name, 0)
    if name == "rule_delta":
        before, after = measured.rules
        matching = [text for text in after if what in text]
        if not matching:
            raise Unknown(f"no firewall rule here contains {what!r}", "iptables-save and ip6tables-save print them")
        return sum(max(0, after[text] - before.get(text, 0)) for text in matching)
    now = _sum(measured.after, what, labels)
    if now is None and measured.after.get((what, ()), (0, ""))[1] == FAMILY:
        now = 0
    if now is None:
        names = sorted({n for n, _ in measured.after})
        near = _nearest(what, names, 3)
        with_labels = f" with {', '.join(f'{k}={v}' for k, v in labels.items())}" if labels else ""
        raise Unknown(
            f"this node has no counter {what}{with_labels}", f"the nearest: {', '.join(near)}" if near else ""
        )
    if name == "value":
        return now
    # What went back was reset (a module loaded again, an interface made anew): it counts from nothing.
    before_sum = _sum(measured.before, what, labels) or 0
    moved = now - before_sum if now >= before_sum else now
    return moved if name == "delta" else moved / measured.seconds


def _sum(snapshot: Snapshot, name: str, labels: Mapping[str, str]) -> Optional[int]:
    found = [v for (n, ls), (v, _) in snapshot.items() if n == name and labels.items() <= dict(ls).items()]
    return sum(found) if found else None


def _divided(a: Number, b: Number) -> Number:
    return a / b if b else float("inf") if a > 0 else 0.0


_COMPARE: Dict[Any, Callable[[Any, Any], bool]] = {
    ast.Lt: lambda a, b: bool(a < b),
    ast.LtE: lambda a, b: bool(a <= b),
    ast.Gt: lambda a, b: bool(a > b),
    ast.GtE: lambda a, b: bool(a >= b),
    ast.Eq: lambda a, b: bool(a == b),
    ast.NotEq: lambda a, b: bool(a != b),
}
_ARITHMETIC: Dict[Any, Callable[[Any, Any], Number]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _divided,
}
