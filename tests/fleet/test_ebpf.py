"""Plugins on nodes that only sshd reaches: their agents begin without what is installed beside the standard library, which
BCC is part of. The second run brings what the first has compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ebpf.counting import Counted
from tests.fleet.fleet import Fleet
from tests.fleet.test_faults import begin
from tests.fleet.test_ssh import gone

pytestmark = [pytest.mark.root, pytest.mark.fleet]

PLUGINS = """name: plugins
duration: 3s
limits: {disk_free_percent: 0, disk_free_bytes: 10MB}
captures: [{nodes: {hosts: nodes}, collect: [{ebpf: {plugins: [packetforward, tcpconnect]}}]}]
"""


def test_plugins_count_on_a_node_over_ssh(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, why in enumerate(("", "bytecode that the runner brought")):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = begin(fleet, folder, PLUGINS, [1])
        assert run.end() == 0, run.events
        counted = Counted(run.archive())
        hooks = counted.hooks()
        assert {plugin for plugin, _ in hooks} == {"packetforward", "tcpconnect"}
        assert set(hooks.values()) == {("ok", why)}
        # The runner's own connection to the node goes on in the window.
        assert counted.total("networkobservability_forward_count") > 0
    gone(fleet, 1)
