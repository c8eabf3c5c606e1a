"""iptables: firewall rules and what each of them counted during the window, for every back end that the node has.

Counters come from one `*-save -c` a back end and family, at T0 and at the end; never from `-L`, which takes the xtables
lock once a chain, and which for the legacy back end *creates* the table that it lists. The save commands take no lock
(iptables-save(8) knows no `-w`): they read a consistent copy of a table in one call of the kernel.
`nft list ruleset` is for detail: its rules have counters only where they say `counter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from retina_runner.agent import process, rules
from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, PARTIAL, UNKNOWN, Context, Gap, Verdict
from retina_runner.agent.kernel import has_module
from retina_runner.agent.records import asdict, dataclass

HINT = "apt-get install iptables, or dnf install iptables-nft"
DELTA = "state/delta/iptables.json"


@dataclass(frozen=True)
class Source:
    """One save command: its artefact's name, its program, its family and back end, and the module that it needs."""

    name: str
    program: str
    family: str
    backend: str
    needs: str
    tables: str


SOURCES: Tuple[Source, ...] = (
    Source("iptables-nft", "iptables-nft-save", "ipv4", "nft", "nf_tables", ""),
    Source("ip6tables-nft", "ip6tables-nft-save", "ipv6", "nft", "nf_tables", ""),
    Source("iptables-legacy", "iptables-legacy-save", "ipv4", "legacy", "ip_tables", "/proc/net/ip_tables_names"),
    Source("ip6tables-legacy", "ip6tables-legacy-save", "ipv6", "legacy", "ip6_tables", "/proc/net/ip6_tables_names"),
)
PLAIN: Tuple[Source, ...] = (
    Source("iptables", "iptables-save", "ipv4", "plain", "ip_tables", ""),
    Source("ip6tables", "ip6tables-save", "ipv6", "plain", "ip6_tables", ""),
)
"""For nodes whose iptables is older than the split into back ends (1.8.0)."""


class Iptables(Collector):
    """Saves, listings and the delta; see `Collector` for when each hook runs."""

    def __init__(self, context: Context):
        super().__init__(context)
        options = context.options
        self._limit_s, self._output_bytes = options["command_limit"], options["output_limit"]
        self._prefix: List[str] = ["ip", "netns", "exec", options["netns"]] if options.get("netns") else []
        self._sources: List[Source] = []
        self._before: Dict[str, Optional[process.Outcome]] = {}
        self._after: Dict[str, Optional[process.Outcome]] = {}

    def prepare(self) -> None:
        self._sources = [s for s in SOURCES if s.family in self.context.options["families"] and self._usable(s)]
        if not self._sources:
            self._sources = [
                s for s in PLAIN if s.family in self.context.options["families"] and self._usable(s, quietly=True)
            ]
        if not self._sources:
            raise Gap("iptables", "no back end of iptables can be read here", HINT)
        self._slow("before")

    def _usable(self, source: Source, quietly: bool = False) -> bool:
        if process.find(source.program) is None:
            if not quietly and source.backend == "nft":
                self.context.skip(source.program, "not installed", HINT)
            return False
        if not has_module(source.needs):
            self.context.skip(
                source.name,
                f"the kernel module {source.needs} isn't loaded, so there are no such rules; loading it would change the node",
            )
            return False
        # Where the kernel has no legacy table there is nothing to save, and nothing missing.
        return not (source.tables and not self._prefix and not _content(source.tables))

    def begin(self) -> None:
        self._before = self._save_all()

    def end(self) -> None:
        self._after = self._save_all()

    def _save_all(self) -> Dict[str, Optional[process.Outcome]]:
        return {source.name: self._run([source.program, "-c"]) for source in self._sources}

    def _run(self, argv: List[str]) -> Optional[process.Outcome]:
        """The command's outcome, or None with the reason noted."""
        try:
            outcome = self.context.run(
                [*self._prefix, *argv], limit_s=self._limit_s, output_limit_bytes=self._output_bytes
            )
        except process.MissingTool as missing:
            self.context.skip(argv[0], str(missing), HINT)
            return None
        if not outcome.ok:
            self.context.skip(" ".join(argv), outcome.why())
            return None
        return outcome

    def _slow(self, when: str) -> None:
        """The listings that aren't worth their time at T0."""
        if self.context.options["nft"]:
            if not has_module("nf_tables"):
                self.context.skip("nft", "the kernel module nf_tables isn't loaded, so there is no ruleset")
            else:
                self._listing(when, "nft.json", ["nft", "-j", "list", "ruleset"])
                self._listing(when, "nft.txt", ["nft", "-a", "list", "ruleset"])
        if self.context.options["ipset"]:
            if not has_module("ip_set"):
                self.context.skip("ipset", "the kernel module ip_set isn't loaded, so there are no sets")
            else:
                self._listing(when, "ipset.txt", ["ipset", "save"])

    def _listing(self, when: str, name: str, argv: List[str]) -> None:
        outcome = self._run(argv)
        if outcome is not None:
            self.context.write(f"state/{when}/{self._folder()}{name}", outcome.stdout)
            if outcome.truncated:
                self.context.skip(" ".join(argv), f"its output was cut at {self._output_bytes} B")

    def _folder(self) -> str:
        return f"netns-{self.context.options['netns']}/" if self._prefix else ""

    def finish(self) -> None:
        self._slow("after")
        verdict = self.context.verdict(Verdict(self._path(DELTA), COMPLETE))
        with verdict.at_stake():
            self._write_delta(verdict)

    def _write_delta(self, verdict: Verdict) -> None:
        deltas: Dict[str, Any] = {}
        snapshots: Dict[str, Dict[str, Any]] = {"before": {}, "after": {}}
        for source in self._sources:
            texts: List[Optional[str]] = []
            for when, outcome in (("before", self._before.get(source.name)), ("after", self._after.get(source.name))):
                texts.append(outcome.stdout.decode("utf-8", "replace") if outcome else None)
                if outcome is not None and outcome.truncated:
                    verdict.lower(PARTIAL, f"{source.name}: {when} the window cut at {self._output_bytes} B")
                if texts[-1] is not None:
                    self.context.write(f"state/{when}/{self._folder()}{source.name}.rules", texts[-1])
                    snapshots[when][source.name] = _typed(source, rules.parse(texts[-1]))
            if texts[0] is None or texts[1] is None:
                verdict.lower(
                    PARTIAL, f"{source.name}: no counters from {'before' if texts[0] is None else 'after'} the window"
                )
                continue
            deltas[source.name] = self._delta(source, texts[0], texts[1], verdict)
        for when, snapshot in snapshots.items():
            self.context.write(f"state/{when}/{self._folder()}{self._path('iptables.json')}", snapshot)
        self.context.write(self._path(DELTA), {"format": 1, "sources": deltas, "times": self._times()})

    def _path(self, path: str) -> str:
        """A second entry of the same collector has its own files."""
        return path.replace("iptables", self.context.node_id)

    def _delta(self, source: Source, before: str, after: str, verdict: Verdict) -> Dict[str, Any]:
        first, second = rules.parse(before), rules.parse(after)
        found = rules.delta(first, second)
        if "reset" in [d.status for d in found.rules] + [d.status for d in found.policies]:
            verdict.lower(UNKNOWN, f"{source.name}: counters were reset during the window")
        if first.odd_lines or second.odd_lines:
            verdict.lower(
                UNKNOWN,
                f"{source.name}: lines that can't be read, such as {(first.odd_lines + second.odd_lines)[0][:80]!r}",
            )
        return {
            "family": source.family,
            "backend": source.backend,
            "rules": [asdict(d) for d in found.rules],
            "policies": [asdict(d) for d in found.policies],
        }

    def _times(self) -> Mapping[str, Any]:
        """When the counters were read: [start, end] in Unix seconds, on the node's clock."""

        def span(outcomes: Dict[str, Optional[process.Outcome]]) -> Optional[List[float]]:
            known = [o for o in outcomes.values() if o is not None]
            return [min(o.start for o in known), max(o.start + o.duration_s for o in known)] if known else None

        return {"before": span(self._before), "after": span(self._after)}


def _typed(source: Source, found: rules.RuleSet) -> Dict[str, Any]:
    return {
        "family": source.family,
        "backend": source.backend,
        "chains": [asdict(c) for c in found.chains],
        "rules": [rules.typed(r) for r in found.rules],
    }


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def problems(options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """(nothing is fatal, a gap when no save command is installed)."""
    if any(process.find(s.program) for s in (*SOURCES, *PLAIN)):
        return [], []
    return [], [Gap("iptables", "not installed", HINT)]
