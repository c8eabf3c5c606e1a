"""The tcpdump that an entry of the plan means: its command line, its interfaces, what it may hold, whether it can be had."""

from __future__ import annotations

import fnmatch
from typing import Any, List, Mapping, Sequence, Tuple

from retina_runner.agent import kernel, process
from retina_runner.agent.context import Gap

COMPILE_LIMIT_S = 30.0
RING_STEP_BYTES = 1_000_000
"""tcpdump(8): the units of -C are millions of bytes."""
MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS, linux/bpf_common.h: with a longer program libpcap filters in user space, where it would cost packets."""


def argv(
    options: Mapping[str, Any], interface: str, target: str, *, as_root: bool = True, optimise: bool = False
) -> List[str]:
    """The command for one interface. Pure, so that a plan can show exactly what will run.

    `options` are normalised (bytes); `expression` is the built filter, empty for everything.
    """
    command = ["ip", "netns", "exec", str(options["netns"])] if options.get("netns") else []
    command += [
        "tcpdump",
        "-i",
        interface,
        "-n",
        "-s",
        str(options["snaplen"]),
        "-B",
        str(options["buffer_size"] // 1024),
    ]
    if as_root:
        command += ["-Z", "root"]
    if not options["promiscuous"]:
        command.append("-p")
    command += ["-w", target]
    ring = options.get("ring")
    if ring:
        command += ["-C", str(ring["file_size"] // RING_STEP_BYTES)]
    if options.get("hold_s"):
        command.append("-U")
    return command + (["-O"] if options.get("expression") and not optimise else []) + _expression(options)


def _expression(options: Mapping[str, Any]) -> List[str]:
    # After `--`, so that no text, whatever it begins with, is read as an option.
    return ["--", options["expression"]] if options.get("expression") else []


def worst_case_bytes(options: Mapping[str, Any], interfaces: int) -> int:
    """The most that this entry can hold on the node's disk: the pcap and its compressed copy, for each interface."""
    ring = options.get("ring")
    one = (ring["files"] + 1) * ring["file_size"] if ring else options["max_size"]
    # A ring that is being frozen may grow to twice its size, beside the archive that is made of it.
    return int((3 if options.get("hold_s") else 2) * one * interfaces)


def interfaces_of(options: Mapping[str, Any]) -> List[str]:
    """The interfaces that the names and globs stand for on this node, in the given order, each once. Raises Gap."""
    netns = options.get("netns")
    if netns:
        listing = process.run(["ip", "netns", "exec", str(netns), "ls", "/sys/class/net"])
        if not listing.ok:
            raise Gap(f"network namespace {netns}", listing.why(), "ip netns list")
        present = listing.stdout.decode("utf-8", "replace").split()
    else:
        present = kernel.interfaces()
    chosen: List[str] = []
    for wanted in options["interfaces"]:
        found = ["any"] if wanted == "any" else fnmatch.filter(present, wanted)
        if not found:
            raise Gap(f"interface {wanted}", "no such interface on this node", "there are " + ", ".join(present))
        chosen += [name for name in found if name not in chosen]
    return chosen


def problems(options: Mapping[str, Any]) -> Tuple[List[Gap], List[Gap]]:
    """(what makes the plan impossible here, what will be a gap): tool, interfaces, rights, and the filter as libpcap reads it."""
    if process.find("tcpdump") is None:
        return [], [Gap("tcpdump", "not installed", "apt-get install tcpdump, or dnf install tcpdump")]
    try:
        interfaces = interfaces_of(options)
    except Gap as gap:
        return [gap], []
    fatal: List[Gap] = []
    for interface in interfaces:
        outcome = process.run(compile_argv(options, interface), limit_s=COMPILE_LIMIT_S)
        if not outcome.ok:
            why = last_words(outcome.stderr).replace("tcpdump: ", "", 1) if not outcome.timed_out else outcome.why()
            what = (
                "filter"
                if "syntax error" in why or "expression" in why or "unknown" in why
                else f"capture on {interface}"
            )
            hint = "run as root, or give tcpdump the capability cap_net_raw" if "permi" in why.lower() else ""
            fatal.append(Gap(what, why, hint))
            break
    return fatal, []


def compile_argv(options: Mapping[str, Any], interface: str, optimise: bool = True) -> Sequence[str]:
    """Compile the filter for this interface's own link type and print the program; nothing is captured.

    The optimiser also finds out that a filter can never match.
    """
    command = ["ip", "netns", "exec", str(options["netns"])] if options.get("netns") else []
    flags = ["-d"] if optimise else ["-d", "-O"]
    return [*command, "tcpdump", *flags, "-i", interface, "-s", str(options["snaplen"]), *_expression(options)]


def too_long(options: Mapping[str, Any], interface: str) -> bool:
    """Whether the filter as generated is more than the kernel takes, so that only an optimised one can run there."""
    if not options.get("expression"):
        return False
    program = process.run(compile_argv(options, interface, optimise=False), limit_s=COMPILE_LIMIT_S)
    return program.ok and len(program.stdout.splitlines()) > MOST_INSTRUCTIONS


def last_words(text: bytes) -> str:
    """The last thing that tcpdump said, but that it is listening."""
    lines = [
        line for line in text.decode("utf-8", "replace").splitlines() if line.strip() and "listening on" not in line
    ]
    return lines[-1].strip()[:300] if lines else "it said nothing"
