"""The same files and patterns mean the same to ansible-core and here: hosts, merged variables, patterns.

Needs a Python with ansible-core, which RETINA_TEST_ANSIBLE names; .ci/steps makes one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from retina_runner.inventory import Inventory, patterns, sources
from tests.unit.inventory.test_sources import PLACES, write

pytestmark = pytest.mark.ansible
ORACLE = Path(__file__).with_name("ansible_oracle.py")
GROUPS = ["web", "db", "eu", "us-west", "canary", "prod", "stage"]
HOSTS = ["a1", "a2", "a3", "b1.example", "b2.example", "c", "d01", "d02", "d03"]
VARIABLES = ["x", "y", "ansible_user", "port"]
VALUES: list[Any] = ["text", 7, True, "with blank", [1, 2], "0750", "no", 1.5]


def oracle(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    python = os.environ.get("RETINA_TEST_ANSIBLE", "")
    assert python, "RETINA_TEST_ANSIBLE must name a Python that has ansible-core"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_INVENTORY_ENABLED": "yaml,ini", "ANSIBLE_TRANSFORM_INVALID_GROUP_CHARS": "ignore",
    }  # fmt: skip
    done = subprocess.run(
        [python, str(ORACLE)], input=json.dumps(cases), capture_output=True, text=True, env=environment, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def ours(case: dict[str, Any]) -> tuple[Inventory, dict[str, dict[str, Any]]]:
    found = sources.read(case["sources"])
    return found, {h.name: {k: s.value for k, s in h.settings.items()} for h in found.hosts(found.names)}


class Made:
    """A random inventory: groups without circles, written as YAML or INI, with group_vars/ and host_vars/."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.groups = self.random.sample(GROUPS, self.random.randint(1, len(GROUPS)))
        self.hosts = {g: self._some(HOSTS, 4) for g in self.groups}
        self.hosts["all"] = self._some(HOSTS, 2)
        # Children only from those that come later: no circles.
        self.children = {g: self._some(self.groups[i + 1 :], 2) for i, g in enumerate(self.groups)}
        self.vars = {g: self._vars() for g in (*self.groups, "all")}
        for group in self.groups:
            if self.random.random() < 0.2:
                self.vars[group]["ansible_group_priority"] = self.random.randint(0, 9)

    def _some(self, of: list[str], most: int) -> list[str]:
        return self.random.sample(of, min(len(of), self.random.randint(0, most)))

    def _vars(self) -> dict[str, Any]:
        return {v: self.random.choice(VALUES) for v in self._some(VARIABLES, 2)}

    def write_yaml(self, path: Path) -> None:
        def group(name: str) -> dict[str, Any]:
            return {
                "hosts": {h: self._vars() or None for h in self.hosts[name]},
                "vars": self.vars[name],
                "children": dict.fromkeys(self.children.get(name, [])),
            }

        document = {g: group(g) for g in (*self.groups, "all")}
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def write_ini(self, path: Path) -> None:
        def words(values: dict[str, Any]) -> list[str]:
            return [f'{k}="{v}"' if isinstance(v, str) else f"{k}={str(v).replace(' ', '')}" for k, v in values.items()]

        lines = [" ".join([h, *words(self._vars())]) for h in self.hosts["all"]]
        for name in self.groups:
            lines += ["", f"[{name}]", *(" ".join([h, *words(self._vars())]) for h in self.hosts[name])]
            lines += [f"[{name}:vars]  # its own", *(f"{k} = {v}" for k, v in self.vars[name].items())]
            lines += [f"[{name}:children]", *self.children[name]] if self.children[name] else []
        lines += ["[all:vars]", *(f"{k}={v}" for k, v in self.vars["all"].items())]
        path.write_text("\n".join(lines) + "\n; the end\n")

    def write_variables(self, folder: Path) -> None:
        for kind, names in (("group_vars", ["all", *self.groups]), ("host_vars", HOSTS)):
            for name in names:
                if self.random.random() < 0.25:
                    suffix = self.random.choice(["", ".yml", ".yaml", "/one.yml"])
                    path = folder / kind / f"{name}{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(yaml.safe_dump(self._vars()) if self.random.random() < 0.9 else "---\n")

    def pattern(self) -> str:
        atoms = [
            *self.groups,
            "all",
            *HOSTS,
            "*",
            "a*",
            "~[ab].*",
            "d0?",
            "*.example",
            "web[0]",
            "d0[!3]",
            "b[0-9].example",
        ]
        parts = []
        for _ in range(self.random.randint(1, 4)):
            parts.append(self.random.choice(["", "", "!", "&"]) + self.random.choice(atoms))
        return self.random.choice([":", ","]).join(parts)


def differences(cases: list[dict[str, Any]], folder: Path) -> list[str]:
    found = []
    for case, theirs in zip(cases, oracle(cases, folder), strict=True):
        inventory, hosts = ours(case)
        if hosts != theirs["hosts"]:
            found.append(f"{case['sources']}: {hosts} != {theirs['hosts']}")
        for pattern, meant in theirs["patterns"].items():
            mine = patterns.select(inventory, patterns.split(pattern))
            # A slice beyond its group is Ansible's error, and ours where the pattern is checked (`patterns.match`).
            if meant is not None and set(mine) != set(meant):
                found.append(f"{case['sources']}: {pattern}: {mine} != {meant}")
    return found


@pytest.mark.parametrize("shape", ["yaml", "ini", "folder"])
def test_the_same_files_mean_the_same(tmp_path: Path, shape: str) -> None:
    cases = []
    for seed in range(60):
        made = Made(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        if shape == "yaml":
            made.write_yaml(folder / "hosts.yaml")
            words = [str(folder / "hosts.yaml")]
        elif shape == "ini":
            made.write_ini(folder / "hosts.ini")
            words = [str(folder / "hosts.ini")]
        else:
            made.write_ini(folder / "01-first")
            made.write_yaml(folder / "02-second.yml")
            words = [str(folder)]
        made.write_variables(folder)
        cases.append({"sources": words, "patterns": [made.pattern() for _ in range(12)]})
    found = differences(cases, tmp_path)
    assert not found, "\n".join([f"{len(found)} differences", *found[:5]])


def test_the_order_within_a_group_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text("[web]\nw3\nw1\nw2\n[db]\nd[1:3]\nw1\n[both:children]\nweb\ndb\n")
    wanted = ["web", "web[0]", "web[0:1]", "web[1:]", "web[-1]", "db", "db[2]", "both[0]", "db:web", "w2,w1", "web:!w1"]
    case = {"sources": [str(path)], "patterns": wanted}
    (theirs,) = oracle([case], tmp_path)
    inventory, _ = ours(case)
    assert {p: list(patterns.select(inventory, patterns.split(p))) for p in wanted} == theirs["patterns"]


def test_variables_are_read_from_the_same_files(tmp_path: Path) -> None:
    case: dict[str, Any] = {"sources": [str(write(tmp_path, **PLACES))], "patterns": ["web"]}
    (theirs,) = oracle([case], tmp_path)
    assert ours(case)[1] == theirs["hosts"] == {"w": {"a": 1, "b": 2, "c": 3}, "d": {"a": 1}}


def test_words_and_values_of_an_ini_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(
        "plain\nported:2222 a=1 b='two words' c=\"x=y\" # a comment\n[r]\nn[01:03].example d=[1,'2'] e=True f=yes g=0750\n"
        "x[a:c:2] h={'k':1} i=1.50 j=None\n[r:vars]\nk = 'quoted'\nl=  spaced out  \nm=a#b\nn=#c\no=\"\"\n[2nd]\nplain\n"
    )
    case: dict[str, Any] = {"sources": [str(path)], "patterns": ["r[0:2]"]}
    (theirs,) = oracle([case], tmp_path)
    assert ours(case)[1] == theirs["hosts"]
