"""network-state: addresses, routes, neighbours, sockets, settings and counters, before and after, with deltas.

What there is to collect is a table, state_items.py; this is how: the first way that works, a limit on each, a gap with
its reason where none does. Descriptive items are taken in `prepare` and `finish`, counters in `begin` and `end`.
"""

from __future__ import annotations

import fnmatch
import os
from typing import Any, Dict, List, Optional, Set, Tuple

from retina_runner.agent import counters, process
from retina_runner.agent.collectors import Collector
from retina_runner.agent.context import COMPLETE, PARTIAL, UNKNOWN, Context, Verdict
from retina_runner.agent.kernel import has_module, interfaces
from retina_runner.agent.state_items import CONNTRACK_TABLE, COUNTERS, DESCRIPTIVE, ETHTOOL, Item, Way, command

READ_BYTES = 64 << 10
"""Some files below /proc/sys allocate as much kernel memory as is asked for at once."""
SECRET_SETTINGS = ("tcp_fastopen_key", "stable_secret")
REDACTED = "(a secret; not collected)\n"

Taken = Dict[Tuple[str, str], Tuple[bytes, str]]
"""(namespace, item) to (content, how it was got)."""


class NetworkState(Collector):
    """See `Collector` for when each hook runs."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._options = context.options
        self._namespaces: List[str] = ["", *self._options["netns"]]
        self._before: Taken = {}
        self._after: Taken = {}
        self._ethtool: Dict[str, List[str]] = {}
        self._cut: Set[Tuple[str, str]] = set()

    def prepare(self) -> None:
        self._check_namespaces()
        for namespace in self._namespaces:
            self._ethtool[namespace] = self._choose_interfaces(namespace)
        self._describe("before")

    def begin(self) -> None:
        self._before = self._count()

    def end(self) -> None:
        self._after = self._count()

    # -- what to take ----------------------------------------------------------------------------------------------

    def _wanted(self, name: str) -> bool:
        def match(patterns: List[str]) -> bool:
            return any(fnmatch.fnmatchcase(name, p) for p in patterns)

        return match(self._options["include"]) and not match(self._options["exclude"])

    def _check_namespaces(self) -> None:
        for namespace in list(self._namespaces[1:]):
            outcome = self.context.run(["ip", "netns", "exec", namespace, "true"])
            if not outcome.ok:
                self.context.skip(f"network namespace {namespace}", outcome.why(), "ip netns list")
                self._namespaces.remove(namespace)

    def _choose_interfaces(self, namespace: str) -> List[str]:
        if not self._options["interfaces"] or process.find("ethtool") is None:
            if self._options["interfaces"] and not namespace:
                self.context.skip("ethtool", "not installed", "apt-get install ethtool, or dnf install ethtool")
            return []
        names = [n for n in self._present(namespace) if n not in ("lo", "bonding_masters")]
        most = self._options["interfaces"]
        if len(names) > most:
            self.context.skip(
                "ethtool", f"of {len(names)} interfaces only the first {most} were asked", "raise the option interfaces"
            )
        return names[:most]

    def _present(self, namespace: str) -> List[str]:
        if not namespace:
            return interfaces()
        listing = self.context.run(["ip", "netns", "exec", namespace, "ls", "/sys/class/net"])
        return listing.stdout.decode("utf-8", "replace").split()

    def _is_gone(self, namespace: str, interface: str) -> bool:
        """Whether it is an interface that went away during the window, as those of pods do all the time."""
        return bool(interface) and interface not in self._present(namespace)

    # -- taking it ---------------------------------------------------------------------------------------------------

    def _describe(self, when: str) -> None:
        items = [*DESCRIPTIVE, CONNTRACK_TABLE] if self._options["conntrack_table"] else list(DESCRIPTIVE)
        for namespace in self._namespaces:
            for item in items:
                if self._wanted(item.name) and (item.per_netns or not namespace):
                    self._put(when, namespace, item.name, self._take(item, namespace))
            for name, flag in ETHTOOL.items():
                for interface in self._ethtool[namespace] if self._wanted(name) else []:
                    item = Item(name, (command("ethtool", flag, interface),), optional=True)
                    self._put(when, namespace, f"{name}-{_safe(interface)}", self._take(item, namespace))
        if self._wanted("dmesg") and self._options["dmesg_lines"]:
            self._dmesg(when)
        if self._wanted("sysctl"):
            settings = _settings("/proc/sys/net", self._options["output_limit"])
            self._check_cut("", "sysctl", settings)
            self._put(when, "", "sysctl", (settings, "/proc/sys/net"))

    def _count(self) -> Taken:
        taken: Taken = {}
        for namespace in self._namespaces:
            for item in self._counters(namespace):
                found = self._take(item, namespace)
                if found is not None:
                    taken[(namespace, item.name)] = found
        return taken

    def _counters(self, namespace: str) -> List[Item]:
        items = [i for i in COUNTERS if self._wanted(i.name) and (i.per_netns or not namespace)]
        for interface in self._ethtool.get(namespace, []) if self._wanted("ethtool-statistics") else []:
            items.append(
                Item(
                    f"ethtool-statistics-{_safe(interface)}",
                    (command("ethtool", "-S", interface),),
                    counters.parse_ethtool(interface),
                    optional=True,
                    interface=interface,
                )
            )
        return items

    def _take(self, item: Item, namespace: str) -> Optional[Tuple[bytes, str]]:
        """(content, how), by the first way that works; None with the reasons noted."""
        reasons = []
        for way in item.ways:
            missing = [m for m in way.needs if not has_module(m)]
            if missing:
                reasons.append(f"{way.text}: the kernel module {missing[0]} isn't loaded, and it mustn't be for this")
                continue
            try:
                content = self._by(way, namespace)
                self._check_cut(namespace, item.name, content)
                return content, way.text
            except (OSError, RuntimeError, process.MissingTool) as error:
                reasons.append(f"{way.text}: {error.strerror if isinstance(error, OSError) else error}")
        if not item.optional:
            self.context.skip(_what(namespace, item.name), "; ".join(reasons))
        return None

    def _check_cut(self, namespace: str, name: str, content: bytes) -> None:
        limit = self._options["output_limit"]
        if len(content) >= limit:
            self._cut.add((namespace, name))
            self.context.skip(_what(namespace, name), f"cut at {limit} B", "raise output_limit")

    def _by(self, way: Way, namespace: str) -> bytes:
        if way.path and not namespace:
            return read_bounded(way.path, self._options["output_limit"])
        argv = list(way.argv) if way.argv else ["cat", way.path]
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        outcome = self.context.run(
            [*prefix, *argv], limit_s=self._options["command_limit"], output_limit_bytes=self._options["output_limit"]
        )
        if not outcome.ok:
            raise RuntimeError(outcome.why())
        return outcome.stdout

    def _dmesg(self, when: str) -> None:
        item = Item("dmesg", (command("dmesg", "-T"), command("dmesg")))
        found = self._take(item, "")
        if found is not None:
            lines = found[0].splitlines(keepends=True)[-self._options["dmesg_lines"] :]
            self._put(when, "", "dmesg", (b"".join(lines), found[1]))

    def _put(self, when: str, namespace: str, name: str, found: Optional[Tuple[bytes, str]]) -> None:
        if found is None:
            return
        content, how = found
        folder = f"netns-{namespace}/" if namespace else ""
        ending = "json" if " -j " in f" {how} " and content[:1] in (b"[", b"{") else "txt"
        self.context.write(f"state/{when}/{self._own()}{folder}{name}.{ending}", content)

    def _own(self) -> str:
        """A second entry of the same collector has its own files."""
        return "" if self.context.node_id == "network-state" else f"{self.context.node_id}/"

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        for when, taken in (("before", self._before), ("after", self._after)):
            for (namespace, name), found in taken.items():
                self._put(when, namespace, name, found)
        self._describe("after")
        self._write_delta()

    def _write_delta(self) -> None:
        path = f"state/delta/{self.context.node_id}.json"
        verdict = self.context.verdict(Verdict(path, COMPLETE))
        with verdict.at_stake():
            self.context.write(path, {"format": 1, "counters": self._moved(verdict)})

    def _moved(self, verdict: Verdict) -> List[Dict[str, Any]]:
        moved: List[Dict[str, Any]] = []
        for namespace in self._namespaces:
            for item in self._counters(namespace):
                pair = self._before.get((namespace, item.name)), self._after.get((namespace, item.name))
                if pair[0] is not None and pair[1] is None and self._is_gone(namespace, item.interface):
                    pair = pair[0], (b"", "")  # nothing that could have been read: its counters have `vanished`
                if pair[0] is None or pair[1] is None or item.parse is None:
                    if (pair[0] is None) != (pair[1] is None):
                        verdict.lower(
                            PARTIAL, f"{item.name}: only {'after' if pair[0] is None else 'before'} the window"
                        )
                    continue
                if (namespace, item.name) in self._cut:
                    verdict.lower(PARTIAL, f"{_what(namespace, item.name)}: cut at {self._options['output_limit']} B")
                texts = [found[0].decode("utf-8", "replace") for found in pair if found is not None]
                for entry in counters.delta(item.name, item.parse(texts[0]), item.parse(texts[1])):
                    moved.append({**entry, "netns": namespace})
                    if entry["status"] == "reset":
                        verdict.lower(UNKNOWN, f"{entry['name']} {entry['labels']} was reset during the window")
        return moved


def read_bounded(path: str, limit_bytes: int) -> bytes:
    """A file's content, up to the limit, in small reads. Raises OSError."""
    content = bytearray()
    with open(path, "rb", buffering=0) as file:
        while len(content) < limit_bytes:
            chunk = file.read(min(READ_BYTES, limit_bytes - len(content)))
            if not chunk:
                break
            content += chunk
    return bytes(content)


def _settings(top: str, limit_bytes: int) -> bytes:
    """Every setting below `top` as `path = value`, sorted; secrets are named, not shown."""
    lines: List[str] = []
    size = 0
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                value = (
                    REDACTED if name in SECRET_SETTINGS else read_bounded(path, READ_BYTES).decode("utf-8", "replace")
                )
            except OSError:
                continue  # can only be written, or isn't for this user
            for line in value.splitlines() or [""]:
                lines.append(f"{path[len('/proc/sys/') :].replace('/', '.')} = {line}\n")
                size += len(lines[-1])
            if size > limit_bytes:
                return "".join(lines).encode()[:limit_bytes]
    return "".join(lines).encode()


def _what(namespace: str, name: str) -> str:
    return f"{name} in {namespace}" if namespace else name


def _safe(interface: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in interface)
