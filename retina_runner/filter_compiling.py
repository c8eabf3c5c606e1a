"""Whether a filter compiles, asked of tcpdump itself before anything is started, and its complaint in words for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from retina_runner.agent.process import Outcome
from retina_runner.filters import Expression, render


def compile_check(
    expression: Expression | str,
    snaplen: int = 262144,
    linktypes: Sequence[str] = ("EN10MB", "LINUX_SLL2"),
    *,
    run: Callable[[Sequence[str]], Outcome],
) -> str | None:
    """What libpcap says against the filter (or its text), or None when it compiles for at least one of the link types.

    At least one, as `vlan` or `ether host` is right for Ethernet and wrong for `any`: the node compiles once more, for
    its own interfaces. None also means that this tcpdump can't say. `snaplen` is in bytes. Raises what `run` raises.

    `tcpdump -d -y TYPE` compiles without a device, a file or rights (measured, 4.99.3, as root and as nobody), and for
    live traffic: with `-r` and an empty savefile, `inbound` on Ethernet is refused. Names are looked up by this
    machine, with `-n` too, and once more by the node: an address means the same everywhere.
    """
    text = expression if isinstance(expression, str) else render(expression)
    if not text:
        return None
    said: list[str] = []
    for linktype in linktypes:
        outcome = run(["tcpdump", "-d", "-y", linktype, "-s", str(snaplen), "--", text])
        if outcome.ok:
            return None
        why = _complaint(outcome)
        if why is None:
            return None
        if why not in said:
            said.append(why)
    return "; ".join(said) or None


# An older libpcap doesn't know LINUX_SLL2, and an older tcpdump opens a device even for -d.
_NO_ANSWER = re.compile(
    r"invalid data link type|permission|not permitted|no suitable device|no interfaces|not one of the DLTs"
)


def _complaint(outcome: Outcome) -> str | None:
    """tcpdump's own words without its name and notices; None when they aren't about the filter."""
    if outcome.timed_out:
        return (
            f"no end within {outcome.duration_s:.0f} s: a name in it that DNS doesn't answer, or too many addresses; "
            "write addresses for names, and networks for many addresses"
        )
    lines = outcome.stderr.decode("utf-8", "replace").rstrip().splitlines()
    kept = [
        line.removeprefix("tcpdump: ") for line in lines if not line.lower().startswith(("reading from", "warning:"))
    ]
    message = "\n".join(kept)  # more than one line only where libpcap points at the place
    if not message:
        return outcome.why()
    if _NO_ANSWER.search(message):
        return None
    if message.startswith(("unknown host", "unknown network")):
        return f"{message}: this machine can't resolve the name; write its address"
    if "rejects all packets" in message:
        return f"{message}: its parts exclude each other"
    return message
