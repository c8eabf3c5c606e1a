"""Units that travel: whole or refused, whoever sends them; and what the runner keeps of them."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from retina_runner import schema
from retina_runner.agent.ebpf import bytecode, compiling, digests
from retina_runner.bytecode import MOST_KERNELS, Store

OPTIONS = schema.normalise({}, schema.load("collectors/ebpf"))
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
CALL_LOOKUP = struct.pack("=BBhi", 0x85, 0, 0, 1)
LOAD_MAP = struct.pack("=BBhi", 0x18, 0x11, 0, 0) + struct.pack("=BBhi", 0, 0, 0, 0)


def unit(code: bytes = LOAD_MAP + CALL_LOOKUP + EXIT) -> dict[str, Any]:
    return {
        "maps": [{"name": "m", "type": 1, "key_bytes": 4, "value_bytes": 8, "entries": 16, "flags": 0}],
        "programs": {"on_packet": base64.b64encode(code).decode()},
        "tracepoints": {"kfree_skb": 4},
        "enumerations": {"skb_drop_reason": {"2": "SKB_DROP_REASON_NOT_SPECIFIED"}},
    }


def packed(kernel: str = "1" * 64, programs: str = "2" * 64, **changed: Any) -> dict[str, Any]:
    return {**bytecode.pack(programs, kernel, unit()), **changed}


def test_what_is_packed_is_unpacked() -> None:
    assert bytecode.unpack(packed()) == unit()


@pytest.mark.parametrize(
    "changed",
    [{"format": bytecode.FORMAT + 1}, {"sha256": "0" * 64}, {"content": "AAAA"}, {"content": "not base64"}, {"content": 7}],
)  # fmt: skip
def test_what_is_not_whole_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(bytecode.Unfit):
        bytecode.unpack(packed(**changed))


def test_no_truncation_and_no_missing_key_gets_through() -> None:
    document = packed()
    for length in range(0, len(document["content"]), 7):
        with pytest.raises(bytecode.Unfit):
            bytecode.unpack({**document, "content": document["content"][:length]})
    for key in ("format", "content", "sha256"):
        with pytest.raises(bytecode.Unfit):
            bytecode.unpack({k: v for k, v in document.items() if k != key})
    for key in unit():
        with pytest.raises(bytecode.Unfit):
            bytecode.unpack(bytecode.pack("2" * 64, "1" * 64, {k: v for k, v in unit().items() if k != key}))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (struct.pack("=BBhi", 0x85, 0, 0, 36) + EXIT, "function 36"),  # bpf_probe_write_user
        (struct.pack("=BBhi", 0x85, 0, 0, 109) + EXIT, "function 109"),  # bpf_send_signal
        (struct.pack("=BBhi", 0x85, 0x20, 0, 1) + EXIT, "function 1"),  # a kfunc
        (struct.pack("=BBhi", 0x18, 0x11, 0, 5) + bytes(8) + EXIT, "a map of its own"),
        (struct.pack("=BBhi", 0x18, 0x31, 0, 0) + bytes(8) + EXIT, "a map of its own"),  # an address in the kernel
        (b"", "no program"),
        (b"\x95\0\0", "no program"),
    ],
)
def test_a_program_that_does_more_than_count_is_refused_though_its_digest_is_right(code: bytes, why: str) -> None:
    with pytest.raises(bytecode.Unfit, match=why):
        bytecode.unpack(bytecode.pack("2" * 64, "1" * 64, unit(code)))


def test_a_bomb_is_not_unpacked_whole() -> None:
    with pytest.raises(bytecode.Unfit, match="damaged"):
        bytecode.unpack(bytecode.pack("2" * 64, "1" * 64, {**unit(), "filling": "x" * (bytecode.MOST_BYTES + 1)}))


def test_programs_are_told_apart_by_everything_that_is_compiled() -> None:
    """Another port, table size, choice of plugins or header is another unit; where it is compiled isn't."""
    variants: list[dict[str, Any]] = [
        {}, {"dns_ports": [53, 5353]}, {"flow_entries": 4096}, {"plugins": ["dropreason"]}, {"plugins": ["dns"]},
    ]  # fmt: skip
    digests = set()
    for changed in variants:
        options = {**OPTIONS, **changed}
        (group,) = compiling.groups(compiling.chosen(options["plugins"], options), options)
        digests.add(compiling.digest_of(group, options))
        request = compiling.request_of(group, options)
        assert bytecode.programs_digest({**request, "answer": "/a"}, {}) == bytecode.programs_digest(
            {**request, "answer": "/b"}, {}
        )
        digests.add(bytecode.programs_digest(request, {"include/x.h": b""}))
    assert len(digests) == 2 * len(variants)


def absent(name: str) -> Any:
    raise ImportError(name)


@pytest.mark.parametrize("built_without", [False, True])
def test_digests_are_those_of_hashlib_whatever_the_interpreter_was_built_with(
    built_without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if built_without:
        monkeypatch.setattr(importlib, "import_module", absent)
    for data in (b"", b"a" * 100_000):
        assert digests.sha256(data).hexdigest() == hashlib.sha256(data).hexdigest()
        same = hashlib.sha256(data) if built_without else hashlib.blake2b(data, digest_size=32)
        assert digests.quick(data).hexdigest() == same.hexdigest()


def test_kernels_are_told_apart_by_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, and the same types are the same kernel."""
    found = []
    for last in (b"\0", b"\1", b"\0"):
        monkeypatch.setattr(bytecode, "BTF", str(tmp_path / "vmlinux"))
        (tmp_path / "vmlinux").write_bytes(bytes(3 * bytecode.READ_BYTES) + last)
        found.append(bytecode.kernel_digest())
    assert found[0] == found[2] != found[1]
    assert all(len(digest) == 64 for digest in found)


def plan() -> dict[str, Any]:
    return {"collectors": [{"id": "iptables", "name": "iptables", "options": {}},
                           {"id": "ebpf", "name": "ebpf", "options": OPTIONS}]}  # fmt: skip


def programs() -> str:
    (group,) = compiling.groups(compiling.chosen(OPTIONS["plugins"], OPTIONS), OPTIONS)
    return compiling.digest_of(group, OPTIONS)


def supplied(store: Store) -> list[dict[str, Any]]:
    first, second = json.loads(store.supply(plan()))["collectors"]
    assert "bytecode" not in first["options"]
    found: list[dict[str, Any]] = second["options"].get("bytecode", [])
    return found


def test_a_plan_takes_along_what_could_serve_it_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert supplied(store) == []
    fitting = packed(programs=programs())
    store.keep([fitting, packed(), packed(programs=programs(), kernel="3" * 64, sha256="0" * 64)])
    assert supplied(store) == [fitting]
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "cache").iterdir()} == {0o600}


def test_the_newest_kernels_are_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(MOST_KERNELS + 3):
        store.keep([packed(programs=programs(), kernel=f"{number:032x}" + "0" * 32)])
        for path in tmp_path.glob(f"*-{number:032x}.json"):
            os.utime(path, (number, number))
    kernels = [u["kernel"] for u in supplied(store)]
    assert kernels == [f"{n:032x}" + "0" * 32 for n in range(MOST_KERNELS + 2, 2, -1)]


def test_a_store_that_can_not_be_used_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache")
    store.keep([packed(programs=programs())])
    assert supplied(store) == []
    kept = Store(tmp_path / "cache")
    kept.keep([packed(programs=programs())])
    for path in (tmp_path / "cache").glob("*.json"):
        path.write_text("{")
    assert supplied(kept) == []


@pytest.mark.parametrize("names", [{"programs": "../../etc/x"}, {"kernel": "../x"}, {"kernel": 7}])
def test_no_node_chooses_where_its_unit_is_written(tmp_path: Path, names: dict[str, Any]) -> None:
    Store(tmp_path / "cache").keep([packed(**names)])
    assert not list(tmp_path.rglob("*.json"))
