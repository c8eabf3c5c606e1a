"""Every plugin's description keeps to its schema and to the naming rules, and the options know exactly those plugins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retina_runner import schema
from retina_runner.agent.collectors import ebpf
from retina_runner.agent.metrics import plugins
from retina_runner.agent.metrics.model import Scope
from retina_runner.agent.metrics.sources import READERS, open_sources

OPTIONS = schema.normalise({}, schema.load("collectors/ebpf"))
CHOICES = schema.load("collectors/ebpf")["properties"]["plugins"]["items"]["enum"]
RETINA = "networkobservability_"


@pytest.mark.parametrize("name", plugins.names())
def test_a_description_keeps_to_its_schema_and_to_the_names(name: str) -> None:
    plugin = plugins.load(name)
    assert schema.violations("plugin", dict(plugin.document)) == []
    assert name in CHOICES
    for family in plugin.families:
        assert family.name.startswith((RETINA, "retinarun_")), family.name
        assert family.help.strip() == family.help
        if family.name.startswith("retinarun_"):
            assert family.name.endswith("_total") == (family.kind == plugins.COUNTER), family.name
            assert not re.search(r"_(bucket|sum|count)$", family.name), "a suffix of histograms"
    if plugin.kind == plugins.PROC:
        assert name in READERS
        assert plugin.document["maps"] == []
    else:
        assert plugins.shipped(f"{name}.c") is not None or any(h.get("program") for h in plugin.document["hooks"])


def test_families_that_two_plugins_share_mean_the_same() -> None:
    seen: dict[str, plugins.Family] = {}
    for name in plugins.names():
        for family in plugins.load(name).families:
            known = seen.setdefault(family.name, family)
            assert (known.kind, known.unit) == (family.kind, family.unit), family.name


def test_the_defaults_are_the_same_in_both_places() -> None:
    default = schema.load("collectors/ebpf")["properties"]["plugins"]["default"]
    shipped = {n for n in plugins.names() if plugins.load(n).default}
    assert shipped == set(default) & set(plugins.names())


def test_a_plugin_that_is_not_there_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    options = {**OPTIONS, "plugins": ["linuxutil", "nonsense"]}
    fatal, gaps = ebpf.problems(options)
    assert fatal == []
    assert [(g.what, g.whole) for g in gaps] == [("plugin nonsense", False)]
    assert [g.whole for g in ebpf.problems({**OPTIONS, "plugins": ["nonsense"]})[1]] == [True]
    opened, described = open_sources(options["plugins"], Scope(), options, tmp_path)
    assert [names for names, _ in opened] == [("linuxutil",), ("nonsense",)]
    assert [p.name for p in described] == ["linuxutil"]
    (row,) = opened[1][1].prepare()
    assert (row.plugin, row.status, row.why) == ("nonsense", "failed", "this agent has no such plugin")


def test_unknown_names_are_no_files() -> None:
    for name in ("../schemas/plugin", "nonsense", "include/x"):
        with pytest.raises(KeyError):
            plugins.load(name)
    assert plugins.shipped("nonsense.c") is None
