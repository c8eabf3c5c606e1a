"""deploy/: what is made by the code is as new as the code, and what isn't is read by it."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from retina_runner.documents import parse_document
from retina_runner.executors.kubernetes import krew
from retina_runner.runbook_reading import load_runbook
from retina_runner.schedule import in_cluster

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


def test_the_runner_in_the_cluster_is_as_new_as_what_it_is_made_from() -> None:
    assert (DEPLOY / "runner" / "cronjob.yaml").read_text() == in_cluster.text()


def test_kustomize_finds_what_the_runner_s_pod_asks_for() -> None:
    kustomization: Any = parse_document((DEPLOY / "runner" / "kustomization.yaml").read_bytes(), "k").value
    job: Any = parse_document((DEPLOY / "runner" / "cronjob.yaml").read_bytes(), "c").value
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert kustomization["resources"] == ["cronjob.yaml"]
    assert [i["name"] for i in kustomization["images"]] == [c["image"] for c in pod["containers"]]
    (generated,) = kustomization["configMapGenerator"]
    assert generated["name"] in [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    assert pod["containers"][0]["command"][-1].endswith("/" + generated["files"][0])
    assert job["spec"]["suspend"] is True
    rights: Any = (DEPLOY / "rbac.yaml").read_text()
    assert f"kind: ServiceAccount\nmetadata:\n  name: {pod['serviceAccountName']}\n" in rights
    load_runbook(str(DEPLOY / "runner" / generated["files"][0]), [])


def test_the_plugin_s_manifest_is_what_krew_takes() -> None:
    """Its rules, by krew's own source (internal/index/validation): version, names, digests, platforms."""
    path = DEPLOY / "krew" / "retina-run.yaml"
    assert path.read_text() == krew.text()
    plugin: Any = parse_document(path.read_bytes(), "plugin").value
    assert (plugin["apiVersion"], plugin["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert plugin["metadata"]["name"] == path.stem
    spec = plugin["spec"]
    assert re.fullmatch(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", spec["version"])
    assert 0 < len(spec["shortDescription"]) <= 50
    assert not spec["shortDescription"].endswith(".")
    content = krew.archive()
    with zipfile.ZipFile(io.BytesIO(content)) as made:
        members = {m.filename: stat.S_IMODE(m.external_attr >> 16) for m in made.infolist()}
    assert members == {"LICENSE": 0o644, "kubectl-retina_run": 0o755}
    assert [p["selector"]["matchLabels"]["os"] for p in spec["platforms"]] == ["linux", "darwin"]
    for platform in spec["platforms"]:
        assert platform["sha256"] == hashlib.sha256(content).hexdigest()
        assert platform["bin"] in members
        assert platform["uri"].endswith(f"/kubectl-retina_run-{spec['version']}.zip")


def test_the_archive_and_its_manifest_are_written_for_a_place(tmp_path: Path) -> None:
    krew.main(str(tmp_path / "dist"), "https://example.org/v1/")
    made = sorted(p.name for p in (tmp_path / "dist").iterdir())
    assert made == [krew.archive_name(), "retina-run.yaml"]
    assert f"https://example.org/v1/{krew.archive_name()}" in (tmp_path / "dist" / "retina-run.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "version"), [("1.2.3", "v1.2.3"), ("1.2.3.dev0", "v1.2.3-dev0"), ("1.2.3rc1", "v1.2.3-rc1")]
)
def test_versions_are_semantic(monkeypatch: pytest.MonkeyPatch, given: str, version: str) -> None:
    monkeypatch.setattr(krew, "__version__", given)
    assert krew.version() == version
