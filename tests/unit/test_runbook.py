"""Runbook documents: everything that is wrong is told at once, in its place, with the next step; secrets never are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retina_runner import planning
from retina_runner.errors import DocumentError, UsageError
from retina_runner.runbook import Runbook
from retina_runner.runbook_reading import load_runbook, parse_runbook

CANARY = "canary-5e1f0d"


def problems(text: str, *extra: str) -> list[str]:
    """`line:column: path: message (hint)` of everything that is wrong."""
    with pytest.raises(DocumentError) as raised:
        parse_runbook(text.encode(), "r.yaml", extra)
    assert all(p.file == "r.yaml" for p in raised.value.problems)
    return [str(p).splitlines()[0].removeprefix("r.yaml:") for p in raised.value.problems]


def read(text: str, *extra: str) -> Runbook:
    return parse_runbook(text.encode(), "r.yaml", extra)


GOOD = "name: ok\ncaptures: [{collect: [iptables]}]\n"


def test_the_defaults_are_put_in() -> None:
    runbook = read("name: ok\ncaptures: [{}]\n")
    assert runbook.duration_s == 60
    assert [e.name for e in runbook.captures[0].collect] == ["tcpdump", "iptables", "network-state"]
    assert runbook.limits.node_bytes == 2 << 30
    assert runbook.captures[0].collect[0].options["interfaces"] == ["any"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("duration: 1:30", "base 60"),
        ("duration: 90", "expected text"),
        ("duration: 500ms", "1s"),
        ("duration: -5s", "negative"),
        ("duration: 8d", "7d"),
        ("fail_on_loss: yes", "boolean in YAML 1.1"),
        ("fail_on_loss: on", "boolean in YAML 1.1"),
        ("limits: {nice: 022}", "is 18 in YAML 1.1"),
        ("limits: {nice: 0x10}", "write it in decimal"),
        ("limits: {nice: 1_0}", "write it in decimal"),
        ("limits: {nice: 20}", "19"),
        ("summary: 2026-11-23", "date in YAML 1.1"),
        ("limits: {nice: 1, nice: 2}", "here twice"),
        ("limits: {node_byts: 1GB}", "did you mean node_bytes"),
        ("limits: {node_bytes: 1gb}", "did you mean 1GB"),
        ("compression: gzp", "did you mean gzip"),
        ("upload: [{s3: {bucket: ab}}]", "is shorter than 3 characters"),
        ("upload: [{s3: {bucket: ''}}]", "is empty"),
    ],
)
def test_a_trap_is_closed_where_it_stands(line: str, said: str) -> None:
    (problem,) = problems(GOOD + line + "\n")
    assert problem.startswith("3:")
    assert said in problem


def test_all_problems_are_told_at_once_in_the_order_of_their_places() -> None:
    found = problems("""\
name: Bad Name
duration: 1:30
captures:
  - nodes: local
    colect: [tcpdump]
    collect:
      - tcpdmp
      - tcpdump: {snaplen: 96, max_size: 200mb}
      - tcpdump: {filter: "port ${prot}"}
limits: {nice: 022}
""")
    assert [f.split(": ")[0] + " " + f.split(": ")[1] for f in found] == [
        "1:7 name",
        "2:11 duration",
        "5:5 captures[0].colect",
        "7:9 captures[0].collect[0]",
        "8:28 captures[0].collect[1].tcpdump.snaplen",
        "8:42 captures[0].collect[1].tcpdump.max_size",
        "9:27 captures[0].collect[2].tcpdump.filter",
        "10:16 limits.nice",
    ]


def test_all_keys_that_are_missing_or_unknown_are_told() -> None:
    found = problems("duratoin: 5s\nlimit: {}\nupload: [{directory: x, s3: {bucket: abc}}]\n")
    assert [f.partition(" (")[0] for f in found] == [
        "1:1: the key name is missing",
        "1:1: the key captures is missing",
        "1:1: duratoin: unknown key duratoin",
        "2:1: limit: unknown key limit",
        "3:10: upload[0]: at most 1 is possible here, found directory, s3",
    ]


@pytest.mark.parametrize("inventory", ["''", "['']", "[]"])
def test_an_inventory_of_no_name_is_refused(inventory: str) -> None:
    """Relative to the runbook it would be the runbook's own folder."""
    (problem,) = problems(f"name: ok\ncaptures: [{{nodes: {{inventory: {inventory}}}}}]\n")
    assert "is empty" in problem


def test_every_entry_of_a_filter_that_is_none_is_told() -> None:
    """Also on a machine without tcpdump, to which a filter's own text can't be put."""
    runbook = read(
        "name: ok\ncaptures: [{collect: [{tcpdump: {include: ['10.0.0.1:', 53, '*:0'], source: [web1]}}]}]\n"
    )
    paths = [p.path.rpartition(".")[2] for p in planning.compile_filters(runbook)]
    assert paths == ["include[0]", "include[2]", "source[0]"]


def test_the_excerpt_has_its_caret_under_the_place(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: ok\ncaptures:\n  - collect: [iptabels]\n")
    with pytest.raises(DocumentError) as raised:
        load_runbook(path)
    text = str(raised.value).splitlines()
    assert text[0].endswith("there is no collector iptabels (did you mean iptables?)")
    assert text[1].index("iptabels") == text[2].index("^")
    assert text[-1] == "1 problem found; nothing was touched"


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "packet-loss.yaml").write_text(GOOD)
    with pytest.raises(DocumentError, match=r"no such file \(did you mean packet-loss.yaml\?\)"):
        load_runbook(tmp_path / "packetloss.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"name: [", "1:8"),
        (b"name: \xff", "not UTF-8"),
        (b"name: a\n---\nname: b\n", "second document"),
        (b"name:\n\t- a\n", "tab"),
        (b"name: !!python/object/apply:os.system ['true']\n", "isn't known here"),
        (b"a: &a [*a]\n", "too many or too deeply|recursive|alias"),
    ],
)
def test_what_is_no_runbook_is_refused_in_words(content: bytes, said: str) -> None:
    with pytest.raises(DocumentError) as raised:
        parse_runbook(content, "r.yaml")
    assert re.search(said, str(raised.value)), str(raised.value)


def test_a_billion_laughs_are_cut_short() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))
    with pytest.raises(DocumentError, match="too many"):
        parse_runbook(f"l0: &l0 [lol]\n{levels}".encode(), "r.yaml")


# -- variables ---------------------------------------------------------------------------------------------------------


VARIED = """\
name: ok
vars: {port: 5432, nice: 3, host: 192.0.2.1}
limits: {nice: '${nice}'}
captures: [{collect: [{tcpdump: {filter: 'port ${port} and host ${host}'}}]}]
"""


def test_a_variable_keeps_its_type_and_can_be_overridden(tmp_path: Path) -> None:
    runbook = read(VARIED)
    assert runbook.limits.nice == 3
    assert runbook.captures[0].collect[0].options["filter"] == "port 5432 and host 192.0.2.1"
    (tmp_path / "more.yaml").write_text("host: 2001:db8::1\n")
    runbook = read(VARIED, "nice=7", f"@{tmp_path / 'more.yaml'}", '{"port": 80}')
    assert runbook.limits.nice == 7
    assert runbook.captures[0].collect[0].options["filter"] == "port 80 and host 2001:db8::1"


def test_a_variable_of_the_wrong_type_is_refused_where_it_is_used() -> None:
    (problem,) = problems(VARIED, "nice=lots")
    assert problem.startswith("3:16: limits.nice")


def test_paths_are_relative_to_the_runbook_wherever_it_is_called_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    book = tmp_path / "books" / "r.yaml"
    book.write_text(
        f"{GOOD}metrics: {{textfile: prom}}\nupload:\n  - directory: ../kept\n"
        "  - s3: {bucket: abc, credential: 'file:keys', proxy: 'file:/run/proxy', ca_file: ca.pem}\n"
        "  - s3: {bucket: abd, credential: 'env:KEYS', proxy: none}\n"
    )
    monkeypatch.chdir(tmp_path)
    runbook = load_runbook("books/r.yaml")
    monkeypatch.chdir("/")  # what is recorded of it means the same everywhere: `retina-run upload` is called later
    folder, store, other = (u.options for u in runbook.uploads)
    assert folder["path"] == str(tmp_path / "kept")
    assert [store[k] for k in ("credential", "proxy", "ca_file")] == [
        f"file:{tmp_path}/books/keys", "file:/run/proxy", f"{tmp_path}/books/ca.pem",
    ]  # fmt: skip
    assert (other["credential"], other["proxy"]) == ("env:KEYS", "none")
    assert runbook.metrics["textfile"] == f"{tmp_path}/books/prom"


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    (problem,) = problems(VARIED, "prot=80")
    assert "the runbook has no variable prot" in problem
    assert "did you mean port?" in problem


def test_a_literal_dollar_brace_can_be_written() -> None:
    runbook = read("name: ok\ncaptures: [{collect: [{command: {argv: [sh, -c, 'echo $${HOME}']}}]}]\n")
    assert runbook.captures[0].collect[0].options["argv"][2] == "echo ${HOME}"


@pytest.mark.parametrize("word", ["novalue", "=x", "1a=3", "{not yaml"])
def test_words_that_set_nothing_are_refused(word: str) -> None:
    with pytest.raises((UsageError, DocumentError)):
        read(VARIED, word)


# -- secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upload",
    [
        f"azure_blob: {{container_url: 'https://a.example/c?sv=1&sig={CANARY}'}}",
        f"azure_blob: {{container_url: 'https://a.example/c', credential: '{CANARY}'}}",
        f"s3: {{bucket: abc, endpoint_url: 'https://user:{CANARY}@s3.example'}}",
    ],
)
def test_a_secret_in_a_runbook_is_refused_and_not_shown(upload: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(f"{GOOD}upload: [{{{upload}}}]\n")
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(raised.value.problems)
    assert "env:" in str(raised.value)
