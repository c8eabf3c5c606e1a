"""`kubectl retina-run` by krew: the plugin's archive, and deploy/krew/retina-run.yaml, which says what must be in it.

    python -m retina_runner.executors.kubernetes.krew dist https://github.com/OWNER/REPOSITORY/releases/download/v1.2.3

writes both to `dist`. The archive holds a script that starts the retina-run of this machine: a Python program with compiled
dependencies isn't one file, and pip or pipx keep it up to date. The archive is stored, not compressed, so that its digest is
the same wherever it is made; a test fails when the manifest in deploy/ is older than this.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from retina_runner import __version__

PLUGIN = "kubectl-retina_run"
EXAMPLE = "https://releases.example/retina-run"
"""Where the archive of the manifest in deploy/ would be: whoever publishes one says where."""
SYSTEMS = ("linux", "darwin")
SCRIPT = b"""\
#!/bin/sh
# kubectl retina-run: the retina-run of this machine.
if ! command -v retina-run >/dev/null; then
    echo "kubectl retina-run: retina-run isn't installed here; pipx install retina-run, or pip install . in a checkout" >&2
    exit 127
fi
exec retina-run "$@"
"""
HEAD = "# Made by `python -m retina_runner.executors.kubernetes.krew`; edit that.\n"


def version() -> str:
    """As krew has it, a semantic version with a `v`: `1.2.3.dev0` is `v1.2.3-dev0`."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(?:[.-]?([a-z][a-z0-9]*))?", __version__)
    assert found, __version__
    return f"v{found[1]}.{found[2]}.{found[3]}" + (f"-{found[4]}" if found[4] else "")


def archive() -> bytes:
    """The plugin's archive: the script and the license."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as made:
        for name, mode, content in (
            ("LICENSE", 0o644, (Path(__file__).resolve().parents[3] / "LICENSE").read_bytes()),
            (PLUGIN, 0o755, SCRIPT),
        ):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (0o100000 | mode) << 16
            made.writestr(info, content)
    return buffer.getvalue()


def archive_name() -> str:
    return f"{PLUGIN}-{version()}.zip"


def manifest(place: str = EXAMPLE) -> dict[str, Any]:
    """The plugin as krew knows it; `place` is the URL of the folder with the archive."""
    uri, sha256 = f"{place.rstrip('/')}/{archive_name()}", hashlib.sha256(archive()).hexdigest()
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "retina-run"},
        "spec": {
            "version": version(),
            "homepage": place,
            "shortDescription": "Capture packets and network state on nodes",
            "description": "Carries a runbook out on nodes of the cluster: packets, iptables, eBPF counters and network state, all\n"
            "at one instant, one verified archive a node. A runbook names nodes, or the pods whose nodes are meant.\n",
            "caveats": "The plugin starts the command retina-run, which pipx or pip installs.\n",
            "platforms": [
                {"selector": {"matchLabels": {"os": system}}, "uri": uri, "sha256": sha256, "bin": PLUGIN}
                for system in SYSTEMS
            ],
        },
    }


def text(place: str = EXAMPLE) -> str:
    """The manifest's file."""
    from retina_runner.translate.yaml_text import lines

    return HEAD + "\n".join(lines(manifest(place))) + "\n"


def main(folder: str, place: str = EXAMPLE) -> None:
    """Write the archive and its manifest."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / archive_name()).write_bytes(archive())
    (Path(folder) / "retina-run.yaml").write_text(text(place))


if __name__ == "__main__":
    main(*sys.argv[1:])
