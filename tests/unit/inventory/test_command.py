"""`retina-run inventory`, and what `-i`, `--limit` and `--list-hosts` make of a runbook. No host is spoken to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retina_runner.cli import main

CANARY = "canary-71c2f0"
HOSTS = f"""all:
  vars: {{ansible_user: ops, app_password: {CANARY}, api_token: {CANARY}, url: "https://u:{CANARY}@h/"}}
  children:
    web: {{hosts: {{"w[1:3]": }}}}
    db: {{hosts: {{d1: {{ansible_host: 192.0.2.7, ansible_port: 2222, ansible_become: yes, ansible_become_password: "env:SUDO"}}}}}}
    eu: {{hosts: {{w1: , d1: }}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts.yaml").write_text(HOSTS)
    (tmp_path / "odd.ini").write_text("odd1 retina_connector=fax\nodd2 retina_connector=fax\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(words) == status
    out, err = capsys.readouterr()
    assert CANARY not in out + err
    return out + err


def test_hosts_and_how_each_is_reached(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inventory", "-i", f"{folder}/hosts.yaml", "web:db:!w3")
    assert [line.split() for line in text.splitlines()] == [
        ["w1", "ops@w1", "eu,", "web"], ["w2", "ops@w2", "web"], ["d1", "ops@192.0.2.7:2222,", "sudo", "db,", "eu"],
    ]  # fmt: skip


def test_every_value_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inventory", "-i", f"{folder}/hosts.yaml", "--explain", "d1")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"address 192.0.2.7 {folder}/hosts.yaml:5:37 ansible_host" in lines
    assert f"user ops {folder}/hosts.yaml:2:24 ansible_user" in lines
    assert "host_keys strict default" in lines
    assert f'app_password "(not shown)" {folder}/hosts.yaml:2:43' in lines
    assert any(line.startswith('ansible_become_password "env:SUDO"') for line in lines)


@pytest.mark.parametrize(
    ("word", "name", "fields"),
    [
        ("@docker/web,", "@docker/web", ["host", "address", "connector", "become", "become_user", "python"]),
        ("@chroot/srv/x,", "@chroot/srv/x", ["host", "address", "connector", "become", "become_user", "python"]),
        ("@local,", "@local", ["host", "connector"]),
        (
            "@dockerssh/w1:web,",
            "@dockerssh/w1:web",
            ["host", "address", "connector", "become", "become_user", "python"],
        ),
    ],
)
def test_only_what_applies_to_a_connection_is_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], word: str, name: str, fields: list[str]
) -> None:
    text = said(capsys, "inventory", "-i", word, "--explain", name)
    reached = text.partition("how it is reached\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in reached.splitlines()] == fields


def test_what_is_said_of_a_container_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.ini").write_text("web ansible_connection=docker ansible_user=app ansible_port=22\n")
    text = said(capsys, "inventory", "-i", f"{folder}/c.ini", "--explain", "web")
    reached, _, variables = text.partition("\nvariables\n")
    assert f"{folder}/c.ini:1:31 ansible_user" in next(line for line in reached.splitlines() if " user " in line)
    assert "port" not in reached
    assert "ansible_port" in variables


def test_everything_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "inventory", "-i", f"{folder}/hosts.yaml", "--json", "--limit", "eu"))
    assert [h["name"] for h in found] == ["w1", "d1"]
    assert found[1]["connection"]["port"] == 2222
    assert found[1]["variables"]["api_token"]["value"] == "(not shown)"
    assert found[1]["origins"]["port"] == f"{folder}/hosts.yaml:5:62 ansible_port"


def test_groups_as_a_tree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inventory", "-i", f"{folder}/hosts.yaml", "--graph", "eu")
    assert text.splitlines() == [
        "@all:", "  |--@ungrouped:", "  |--@web:", "  |  |--w1", "  |--@db:", "  |  |--d1", "  |--@eu:", "  |  |--w1", "  |  |--d1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "inventory: name one with -i"),
        (["-i", "hosts.yaml", "wbe"], "wbe is no host and no group; did you mean web?"),
        (["-i", "hosts.yaml", "--explain", "w9"], "--explain w9: no host of that name; there are w1"),
        (["-i", "host.yaml"], "host.yaml: no such inventory (did you mean hosts.yaml?)"),
        (["-i", "/dev/null"], "the inventory has no hosts"),
    ],
)
def test_words_that_mean_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], error: str
) -> None:
    monkeypatch.chdir(folder)
    assert error in said(capsys, "inventory", *words, status=2)


# -- check ----------------------------------------------------------------------------------------------------------------


def test_check_tells_what_is_wrong_with_hosts_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together with everything else that is wrong, and without -i: a runbook that leaves the inventory to that has none yet."""
    book = folder / "checked.yaml"
    captures = (
        "  - {name: a, nodes: {inventory: hosts.yaml, hosts: 'web:!cannary'}}\n  - {name: b, nodes: {inventory: host.yaml}}\n"
        "  - {name: c, nodes: {hosts: db}}\n  - {name: d, collect: [{tcpdump: {filter: tcp prot 80}}]}\n"
    )
    book.write_text(f"name: checked\ncaptures:\n{captures}")
    text = said(capsys, "check", str(book), status=2)
    assert f"{book}:3:53: captures[0].nodes.hosts: hosts web:!cannary: cannary is no host and no group" in text
    assert f"{folder}/host.yaml: no such inventory (did you mean hosts.yaml?)" in text
    assert "captures[3].collect[0].tcpdump.filter: tcpdump can't compile it" in text
    assert "3 problems found" in text
    book.write_text(
        "name: checked\ncaptures: [{nodes: {inventory: hosts.yaml, hosts: 'web:!w1'}, collect: [iptables]}]\n"
    )
    assert said(capsys, "check", str(book)) == f"{book}: ok\n"


# -- runbooks ----------------------------------------------------------------------------------------------------------


def listed(folder: Path, capsys: pytest.CaptureFixture[str], captures: str, *words: str, status: int = 0) -> str:
    (folder / "runbook.yaml").write_text(f"name: mixed\nduration: 1s\ncaptures:\n{captures}")
    return said(capsys, "run", "--list-hosts", *words, f"{folder}/runbook.yaml", status=status)


def test_several_inventories_and_this_machine_in_one_runbook(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "more.ini").write_text("[cache]\nc[1:2]\n")
    captures = (
        "  - {name: a, nodes: {inventory: hosts.yaml, hosts: web}}\n  - {name: b, nodes: {inventory: more.ini}}\n"
        "  - {name: c, nodes: {inventory: [hosts.yaml, more.ini], hosts: 'db,c1'}}\n  - {name: d, nodes: local}\n"
    )
    nodes = listed(folder, capsys, captures).split()
    assert nodes[:-1] == ["w1", "w2", "w3", "c1", "c2", "d1"]
    assert listed(folder, capsys, captures, "--limit", "eu").split() == ["w1", "d1"]
    assert listed(folder, capsys, captures, "--limit", "cache:local").split() == ["c1", "c2", nodes[-1]]
    assert listed(folder, capsys, captures, "--limit", "all:!web:!local").split() == ["c1", "c2", "d1"]
    assert "did you mean cache?" in listed(folder, capsys, captures, "--limit", "cach", status=2)


def test_where_the_command_line_says_the_inventory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("-i", f"{folder}/hosts.yaml")
    assert listed(folder, capsys, "  - {nodes: {hosts: db}}\n", *given).split() == ["d1"]
    assert listed(folder, capsys, "  - {collect: [iptables]}\n", *given).split() == ["w1", "w2", "w3", "d1"]
    assert listed(folder, capsys, "  - {nodes: local}\n", *given).split() == ["w1", "w2", "w3", "d1"]
    assert "names hosts and no inventory" in listed(folder, capsys, "  - {nodes: {hosts: db}}\n", status=2)
    unused = listed(folder, capsys, "  - {nodes: {inventory: hosts.yaml}}\n", *given, status=2)
    assert "-i: every capture of the runbook says its nodes itself" in unused


def test_what_is_wrong_with_hosts_has_its_place_in_the_runbook(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = listed(folder, capsys, "  - {nodes: {inventory: hosts.yaml, hosts: 'web:!cannary'}}\n", status=2)
    assert f"{folder}/runbook.yaml:4:44: captures[0].nodes.hosts: hosts web:!cannary: cannary is no host" in text
    text = listed(folder, capsys, "  - {nodes: {inventory: '@dockerssh/w1:nginx,'}}\n", status=2)
    assert f"{folder}/runbook.yaml:4:13: captures[0].nodes: @dockerssh/w1:nginx is reached by @dockerssh, which" in text
    assert "carries no plan out (name w1, the machine that the container runs on, or run there: " in text
    assert "retina-run … -i @docker/nginx,)" in text
    text = listed(folder, capsys, "  - {nodes: {inventory: 'odd.ini'}}\n", status=2)
    assert (
        "odd1 is reached by @fax, which carries no plan out; so are 1 more (leave it out; hosts are reached by " in text
    )
    assert listed(folder, capsys, "  - {nodes: {inventory: '@docker/nginx,'}}\n").split() == ["@docker/nginx"]
