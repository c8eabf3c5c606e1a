"""iptables rules as values: read from `iptables-save -c`, and how far each rule's counters went between two saves. Pure.

A rule is known by its table, its chain and its own text, not by its number: numbers change when a rule is inserted
above. Equal texts in one chain are told apart by their order, as well as that can be done (`_pair_copies`).
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Dict, List, Optional, Sequence, Tuple

from retina_runner.agent.records import asdict, dataclass, field

_RULE = re.compile(r"^\[(\d+):(\d+)\] -A (\S+) ?(.*)$")
_CHAIN = re.compile(r"^:(\S+) (\S+) \[(\d+):(\d+)\]$")
_MOST_COPIES = 64
_WORDS = {
    "-p": "protocol", "-s": "source", "-d": "destination", "-i": "in_interface", "-o": "out_interface",
    "-j": "target", "-g": "goto", "--comment": "comment", "--dport": "destination_port", "--sport": "source_port",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One rule. `position` counts from 1 in its chain; `packets` and `bytes` are the kernel's 64-bit counters."""

    table: str
    chain: str
    text: str
    position: int
    packets: int
    bytes: int


@dataclass(frozen=True)
class Chain:
    """A chain; `policy` is `-` for a user's chain, whose counters mean nothing."""

    table: str
    name: str
    policy: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class RuleSet:
    """One save. `odd_lines` are lines that are none of what iptables-save(8) prints."""

    chains: Tuple[Chain, ...]
    rules: Tuple[Rule, ...]
    odd_lines: Tuple[str, ...] = ()


def parse(text: str) -> RuleSet:
    """Read the output of `iptables-save -c` and its like. Never raises: what can't be read is in `odd_lines`."""
    chains: List[Chain] = []
    rules: List[Rule] = []
    odd: List[str] = []
    table = ""
    counts: Dict[Tuple[str, str], int] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            continue
        if not line.strip() or line.startswith("#") or line == "COMMIT":
            continue
        rule = _RULE.match(line)
        if rule:
            chain = (table, rule[3])
            counts[chain] = counts.get(chain, 0) + 1
            rules.append(Rule(table, rule[3], rule[4].strip(), counts[chain], int(rule[1]), int(rule[2])))
            continue
        found = _CHAIN.match(line)
        if found:
            chains.append(Chain(table, found[1], found[2], int(found[3]), int(found[4])))
        else:
            odd.append(line)
    return RuleSet(tuple(chains), tuple(rules), tuple(odd))


def typed(rule: Rule) -> Dict[str, Any]:
    """The rule as a JSON object, with the parts of its text that have a common meaning as fields of their own."""
    result: Dict[str, Any] = asdict(rule)
    try:
        words = shlex.split(rule.text)
    except ValueError:
        return result
    negated = False
    for word, following in zip(words, [*words[1:], ""]):
        if word in _WORDS and not (word == "--comment" and not following):
            result[_WORDS[word]] = ("! " if negated else "") + following
        negated = word == "!"
    return result


@dataclass(frozen=True)
class RuleDelta:
    """What a rule counted between two saves.

    `status`: `ok`; `added` (counts are since it was added); `removed` (counts unknown, 0); `reset` (its counters went
    back: counts are since the reset, so at least). `copy` is the number of the equal texts before it in its chain.
    `ambiguous`: equal texts were added or removed, and which of them is which can't be known; their sum can.
    """

    table: str
    chain: str
    text: str
    copy: int
    packets: int
    bytes: int
    status: str
    position_before: Optional[int]
    position_after: Optional[int]
    ambiguous: bool = False


@dataclass(frozen=True)
class PolicyDelta:
    """What a built-in chain's policy counted."""

    table: str
    chain: str
    policy: str
    packets: int
    bytes: int
    status: str


@dataclass(frozen=True)
class Delta:
    """Rules that counted most first, then in the order of the tables."""

    rules: Tuple[RuleDelta, ...] = ()
    policies: Tuple[PolicyDelta, ...] = field(default=())


def delta(before: RuleSet, after: RuleSet) -> Delta:
    """What every rule and policy counted from `before` to `after`."""
    old, new = _by_text(before.rules), _by_text(after.rules)
    found: List[RuleDelta] = []
    for key in dict.fromkeys([*new, *old]):
        found += _pair(key, old.get(key, []), new.get(key, []))
    found.sort(key=lambda d: (-d.packets, -d.bytes))
    policies_before = {(c.table, c.name): c for c in before.chains}
    policies = []
    for chain in after.chains:
        if chain.policy == "-":
            continue
        earlier = policies_before.get((chain.table, chain.name))
        packets, size, status = _count(earlier, chain)
        policies.append(PolicyDelta(chain.table, chain.name, chain.policy, packets, size, status))
    return Delta(tuple(found), tuple(policies))


def _by_text(rules: Sequence[Rule]) -> Dict[Tuple[str, str, str], List[Rule]]:
    groups: Dict[Tuple[str, str, str], List[Rule]] = {}
    for rule in rules:
        groups.setdefault((rule.table, rule.chain, rule.text), []).append(rule)
    return groups


def _count(earlier: Any, later: Any) -> Tuple[int, int, str]:
    if earlier is None:
        return later.packets, later.bytes, "added"
    if later.packets < earlier.packets or later.bytes < earlier.bytes:
        return later.packets, later.bytes, "reset"
    return later.packets - earlier.packets, later.bytes - earlier.bytes, "ok"


def _pair(key: Tuple[str, str, str], old: List[Rule], new: List[Rule]) -> List[RuleDelta]:
    pairs = _pair_copies(old, new)
    ambiguous = len(old) != len(new) and bool(old) and bool(new)
    deltas = []
    for copy, (earlier, later) in enumerate(pairs):
        if later is None:
            assert earlier is not None
            deltas.append(RuleDelta(*key, copy, 0, 0, "removed", earlier.position, None, ambiguous))
            continue
        packets, size, status = _count(earlier, later)
        deltas.append(
            RuleDelta(
                *key, copy, packets, size, status, earlier.position if earlier else None, later.position, ambiguous
            )
        )
    return deltas


def _pair_copies(old: List[Rule], new: List[Rule]) -> List[Tuple[Optional[Rule], Optional[Rule]]]:
    """Which of the equal texts after is which of those before.

    As many as before: in their order. More or fewer: in their order too, leaving out those whose omission lets no
    counter run backwards, and of these choices the one that leaves out the smallest counters: a rule that was just
    added has counted least. (Dynamic programming over the two lists, as in an alignment.)
    """
    if len(old) == len(new) or not old or not new or max(len(old), len(new)) > _MOST_COPIES:
        longest = max(len(old), len(new))
        return [(old[i] if i < len(old) else None, new[i] if i < len(new) else None) for i in range(longest)]
    fewer, more = (old, new) if len(old) < len(new) else (new, old)
    impossible = (len(fewer) + 1, 0)  # worse than any choice: (counters that run backwards, packets left out)
    best: List[List[Tuple[int, int]]] = [[impossible] * (len(more) + 1) for _ in range(len(fewer) + 1)]
    best[0][0] = (0, 0)
    for i in range(len(fewer) + 1):
        for j in range(len(more) + 1):
            if j and best[i][j - 1] != impossible:
                best[i][j] = min(best[i][j], (best[i][j - 1][0], best[i][j - 1][1] + more[j - 1].packets))
            if i and j and best[i - 1][j - 1] != impossible:
                backwards = _runs_backwards(fewer[i - 1], more[j - 1], fewer is old)
                best[i][j] = min(best[i][j], (best[i - 1][j - 1][0] + backwards, best[i - 1][j - 1][1]))
    pairs: List[Tuple[Optional[Rule], Optional[Rule]]] = []
    i, j = len(fewer), len(more)
    while j:
        backwards = _runs_backwards(fewer[i - 1], more[j - 1], fewer is old) if i else 0
        taken = (
            i
            and best[i - 1][j - 1] != impossible
            and best[i][j] == (best[i - 1][j - 1][0] + backwards, best[i - 1][j - 1][1])
        )
        one = fewer[i - 1] if taken else None
        pairs.append((one, more[j - 1]) if fewer is old else (more[j - 1], one))
        i, j = (i - 1, j - 1) if taken else (i, j - 1)
    return pairs[::-1]


def _runs_backwards(one: Rule, other: Rule, one_is_earlier: bool) -> int:
    earlier, later = (one, other) if one_is_earlier else (other, one)
    return int(later.packets < earlier.packets or later.bytes < earlier.bytes)
