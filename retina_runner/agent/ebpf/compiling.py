"""From plugins to a compiled unit: one that the runner brought for this kernel, else by BCC in a child process.

What is compiled is the same text wherever it is put together, so that the runner knows which units could serve a plan
before it has met the node.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import retina_runner.agent as agent
from retina_runner.agent.ebpf import bytecode
from retina_runner.agent.ebpf.offsets import OFFSETS
from retina_runner.agent.metrics import plugins

COMPILE_LIMIT_S = 300.0
ENUMERATIONS = ("skb_drop_reason", "sk_rst_reason")
SOCKET, RAW, TAIL = "socket_filter", "raw_tracepoint", "tail_call"
FUNCTION, RETURN = "kprobe", "kretprobe"
HINT = "apt-get install python3-bpfcc, or dnf install python3-bcc"
BROUGHT = "bytecode that the runner brought"
FOLDER = "bytecode"
"""Below the scratch directory: what was compiled here, for the runner to take."""

Group = List[plugins.Plugin]


def chosen(names: Sequence[str], options: Mapping[str, Any]) -> Group:
    """The plugins of these names that are BPF programs, and all of the user's own. Unknown names are left out."""
    own = {f["name"]: f for f in options.get("files", ())}
    found = []
    for name in dict.fromkeys([*names, *own]):
        if name in own:
            found.append(plugins.parse(name, own[name]["description"]))
        elif name in plugins.names() and plugins.load(name).kind == plugins.BPF:
            found.append(plugins.load(name))
    return found


def groups(wanted: Group, options: Mapping[str, Any]) -> List[Group]:
    """What is compiled together: everything of ours in one go; a user's own is always alone."""
    own = {f["name"] for f in options.get("files", ())}
    ours = [p for p in wanted if p.name not in own]
    return ([ours] if ours else []) + [[p] for p in wanted if p.name in own]


def request_of(group: Group, options: Mapping[str, Any]) -> Dict[str, Any]:
    """What the compiler is asked, but for its paths; see `worker.compile_unit`."""
    hooks = [h for p in group for h in p.document["hooks"]]
    return {
        "text": _text(group, options),
        "programs": sorted({h[name] for h in hooks for name in ("program", "detailed") if name in h}),
        "tracepoints": sorted({h["target"] for h in hooks if h["kind"] == RAW}),
        "enumerations": list(ENUMERATIONS),
        "defines": {"FLOW_ENTRIES": options["flow_entries"], **{f"WITH_{p.name}": 1 for p in group}},
        "offsets": {**OFFSETS, **{o: place for p in group for o, place in p.document.get("offsets", {}).items()}},
    }


def digest_of(group: Group, options: Mapping[str, Any]) -> str:
    """The `programs` of the units that could serve this group."""
    return bytecode.programs_digest(request_of(group, options), _headers())


def _text(group: Group, options: Mapping[str, Any]) -> str:
    texts = {f["name"]: f["source"] for f in options.get("files", ())}
    ports = " || ".join(f"(port) == BIG16({p})" for p in options["dns_ports"])
    sockets = any(h["kind"] == SOCKET for p in group for h in p.document["hooks"] if p.name not in texts)
    parts = ["#include <linux/version.h>", _shipped("retinarun.h"), f"#define IS_DNS(port) ({ports})"]
    parts += [_shipped("packet.h")] if sockets else []
    parts += [texts.get(p.name) or _shipped(f"{p.name}.c") for p in group]
    parts += [_shipped("packet.c")] if sockets else []
    return "\n".join(parts)


def _shipped(name: str) -> str:
    content = plugins.shipped(name)
    if content is None:
        raise OSError(f"this agent lacks bpf/{name}")
    return content.decode()


def _headers() -> Dict[str, bytes]:
    """The small tree that BCC takes for a kernel's headers."""
    return {name: _shipped(name).encode() for name in plugins.shipped_paths() if name.startswith("include/")}


class Compiler:
    """`directory` is scratch space. `brought` are units as they travel."""

    def __init__(self, options: Mapping[str, Any], directory: Path):
        self._options, self._directory = options, directory
        self._brought: Sequence[Mapping[str, Any]] = options.get("bytecode") or ()
        self._kernel: Optional[str] = None

    def unit(self, group: Group) -> Tuple[Mapping[str, Any], str]:
        """(the unit, or {"why", "hint"} for none; what there is to say of where it comes from)."""
        request, headers = request_of(group, self._options), _headers()
        programs = bytecode.programs_digest(request, headers)
        unit, why = self._find(programs)
        if unit is not None:
            return unit, BROUGHT
        compiled = self._compile(request, headers)
        if "why" in compiled:
            return {**compiled, "why": compiled["why"] + (f"; {BROUGHT}: {why}" if why else "")}, ""
        packed = bytecode.pack(programs, self._here(), compiled)
        folder = self._directory / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / f"{programs[:32]}.json").write_text(json.dumps(packed), encoding="utf-8")
        return _with_numbers(compiled), f"compiled here; {BROUGHT}: {why}" if why else ""

    def _here(self) -> str:
        if self._kernel is None:
            self._kernel = bytecode.kernel_digest()
        return self._kernel

    def _find(self, programs: str) -> Tuple[Optional[Mapping[str, Any]], str]:
        """(a unit for these programs on this kernel, why there is none of those that were brought)."""
        why = ""
        for packed in self._brought:
            if packed.get("programs") != programs:
                continue
            if packed.get("kernel") != self._here():
                why = why or "it is of another kernel"
                continue
            try:
                return _with_numbers(bytecode.unpack(packed)), ""
            except bytecode.Unfit as unfit:
                why = str(unfit)
        return None, why

    def serves(self, wanted: Group) -> bool:
        """Whether everything can be had without a compiler. Raises nothing."""
        try:
            return all(
                self._find(digest_of(group, self._options))[0] is not None
                for group in groups(wanted, self._options)
            )  # fmt: skip
        except OSError:
            return False

    def _compile(self, request: Mapping[str, Any], headers: Mapping[str, bytes]) -> Mapping[str, Any]:
        from retina_runner.agent import process  # what is there already needs no process

        if process.find("python3") is None:
            return {"why": "the distribution's own python3, which BCC belongs to, isn't installed", "hint": HINT}
        answer = self._directory / "compiled.json"
        for name, content in headers.items():
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        asked = {**request, "include": str(self._directory), "answer": str(answer)}
        code = (
            f"import sys; sys.path.insert(0, {str(Path(str(agent.__file__)).parents[2])!r}); "
            "from retina_runner.agent.ebpf.worker import main; sys.exit(main())"
        )
        answer.unlink() if answer.exists() else None
        outcome = process.run(["python3", "-c", code], stdin=json.dumps(asked).encode(), limit_s=COMPILE_LIMIT_S)
        said = _first_error(outcome.stderr.decode("utf-8", "replace"))
        if not answer.exists():
            if outcome.exit_status == -signal.SIGABRT:
                said = "LLVM aborted " + said
            return {"why": f"BCC: {said or outcome.why()}"}
        found: Dict[str, Any] = json.loads(answer.read_text())
        answer.unlink()
        if "why" in found:
            found["why"] += f" ({said})" if said else ""
        return found


def _with_numbers(unit: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON has no numbers for keys."""
    named = {
        name: {int(value): label for value, label in values.items()} for name, values in unit["enumerations"].items()
    }
    return {**unit, "enumerations": named}


def without_bcc() -> str:
    """Why programs can't be compiled here, as far as it can be known without compiling one; else an empty text."""
    from retina_runner.agent import process

    if process.find("python3") is None:
        return "the distribution's own python3, which BCC belongs to, isn't installed"
    outcome = process.run(["python3", "-c", "import bcc; bcc.BPF"], limit_s=30.0)
    return "" if outcome.ok else "BCC's Python module isn't installed"


def without_btf() -> str:
    """Why offsets can't be known here; else an empty text."""
    return "" if os.path.exists(bytecode.BTF) else f"this kernel has no BTF ({bytecode.BTF})"


def _first_error(stderr: str) -> str:
    """The compiler's first complaint, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if "error:" in line or "could not" in line.lower()]
    return lines[0][:300] if lines else ""
