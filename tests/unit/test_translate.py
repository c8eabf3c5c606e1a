"""Manifests of Retina: every field carried over, noted or refused at its place; what comes out is a runbook."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_runner import schema
from retina_runner.cli import main
from retina_runner.documents import parse_document
from retina_runner.errors import DocumentError
from retina_runner.runbook import KubernetesNodes, LocalNodes
from retina_runner.runbook_reading import load_runbook, parse_runbook
from retina_runner.translate import Translated, translate
from retina_runner.translate.metrics import UNSERVED
from retina_runner.translate.yaml_text import lines

CAPTURE: dict[str, Any] = {
    "apiVersion": "retina.sh/v1alpha1",
    "kind": "Capture",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "captureConfiguration": {
            "captureTarget": {"podSelector": {"matchLabels": {"app": "web"}}},
            "captureOption": {"duration": "30s"},
        },
        "outputConfiguration": {"hostPath": "incidents"},
    },
}


def made(value: Mapping[str, Any], *given: str, on_hosts: bool = False) -> Translated:
    return translate(parse_document(json.dumps(value, indent=1).encode(), "capture.yaml"), given, on_hosts=on_hosts)


def changed(path: str, value: Any, base: Mapping[str, Any] = CAPTURE) -> dict[str, Any]:
    """The manifest with one value set; `~` removes it."""
    result: dict[str, Any] = copy.deepcopy(dict(base))
    *parents, last = path.split(".")
    inner = result
    for key in parents:
        inner = inner.setdefault(key, {})
    if value == "~":
        del inner[last]
    else:
        inner[last] = value
    return result


OPTION = "spec.captureConfiguration.captureOption"
TARGET = "spec.captureConfiguration.captureTarget"
OUTPUT = "spec.outputConfiguration"


def tcpdump(value: Mapping[str, Any], *given: str) -> Any:
    return made(value, *given).value["captures"][0]["collect"][0]["tcpdump"]


@pytest.mark.parametrize(
    ("path", "value", "option", "expected"),
    [
        (f"{OPTION}.interfaces", ["eth0", " eth1 ", ""], "interfaces", ["eth0", "eth1"]),
        (f"{OPTION}.pcapFilter", "tcp[tcpflags] & tcp-syn != 0", "filter", "tcp[tcpflags] & tcp-syn != 0"),
        (f"{OPTION}.pcapFilter", "host ${x}", "filter", "host $${x}"),
        ("spec.captureConfiguration.tcpdumpFilter", "udp", "filter", "udp"),
        (f"{OPTION}.sourceIPs", ["10.0.0.1", "fd00::1"], "source", ["10.0.0.1", "fd00::1"]),
        (f"{OPTION}.destinationIPs", ["10.0.0.1"], "destination", ["10.0.0.1"]),
        ("spec.captureConfiguration.filters.include", ["10.0.0.1:*", "*:53", "80"], "include", ["10.0.0.1", "*:53", "80"]),
        ("spec.captureConfiguration.filters.exclude", ["10.0.0.1:22"], "exclude", ["10.0.0.1:22"]),
        (f"{OPTION}.packetSize", 96, "snaplen", "96B"),
        (f"{OPTION}.packetSize", 0, "snaplen", "256KiB"),
        (f"{OPTION}.maxCaptureSize", 5, "max_size", "5MiB"),
        (f"{OPTION}.fileCount", 5, "ring", {"files": 5, "file_size": "100MB"}),
        (f"{OPTION}.noPromiscuous", True, "promiscuous", False),
    ],
)  # fmt: skip
def test_what_tcpdump_is_asked(path: str, value: Any, option: str, expected: Any) -> None:
    assert tcpdump(changed(path, value))[option] == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"nodeSelector": {"matchLabels": {"pool": "a"}}}, {"namespace": "shop", "node_selector": "pool=a"}),
        ({"nodeSelector": {}}, {"namespace": "shop", "nodes": "all"}),
        ({"podNames": ["web-0"]}, {"namespace": "shop", "pod_names": ["web-0"]}),
        ({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "a"]}]}},
         {"namespace": "shop", "pods": "app in (a,b)"}),
        ({"podSelector": {"matchLabels": {"app": "web"}}, "namespaceSelector": {"matchLabels": {"team": "x"}}},
         {"pods": "app=web", "namespaces": "team=x", "job": {"namespace": "shop"}}),
        ({"podSelector": {"matchLabels": {"app": "web"}}, "namespaceSelector": {}},
         {"pods": "app=web", "namespaces": "kubernetes.io/metadata.name", "job": {"namespace": "shop"}}),
    ],
)  # fmt: skip
def test_where(target: dict[str, Any], expected: dict[str, Any]) -> None:
    translated = made(changed(TARGET, target))
    assert translated.value["captures"][0]["nodes"] == {"kubernetes": expected}
    nodes = parse_runbook(translated.runbook_text.encode(), "made").captures[0].nodes
    assert isinstance(nodes, KubernetesNodes)
    assert dict(nodes.selection) | expected == dict(nodes.selection)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1m30s", "1m30s"), ("1.5m", "1m30s"), ("90s", "1m30s"), ("2500ms", "2s500ms"), ("1h", "1h"), ("1000000us", "1s")],
)
def test_durations_of_go(text: str, expected: str) -> None:
    assert made(changed(f"{OPTION}.duration", text)).value["duration"] == expected


REFUSED = [
    (f"{OPTION}.duration", "500ms", "0, which is no limit, to Retina"),
    (f"{OPTION}.duration", "0s", "no limit to Retina"),
    (f"{OPTION}.duration", "-1s", "doesn't have the form"),
    (f"{OPTION}.duration", "~", "has no duration"),
    (f"{OPTION}.maxCaptureSize", 0, "0 is no limit"),
    (f"{OPTION}.maxCaptureSize", -1, "at least 0"),
    (f"{OPTION}.maxCaptureSize", "5MB", "expected a whole number"),
    (f"{OPTION}.fileCount", 1, "a ring of one file"),
    (f"{OPTION}.noPromiscous", True, "did you mean noPromiscuous"),
    (f"{OPTION}.verbosity", "loud", "not one of the choices"),
    (f"{TARGET}.podNames", ["a"], "podNames with podSelector: Retina refuses that"),
    (TARGET, {"namespaceSelector": {}}, "namespaceSelector: Retina refuses that"),
    (TARGET, {"podSelector": {}}, "selects every pod"),
    (TARGET, {"podSelector": {"matchLabels": {"a b": "c"}}}, "no label's key"),
    (f"{OUTPUT}.hostPath", "/etc", "isn't a folder below"),
    (f"{OUTPUT}.hostPath", "../x", "isn't a folder below"),
    (f"{OUTPUT}.persistentVolumeClaim", "claim", "can't stand beside hostPath"),
    (f"{OUTPUT}.blobUpload", "sas", "the Secret sas holds a URL"),
    (f"{OUTPUT}.s3Upload", {"bucket": "captures"}, "secretName is missing"),
    (OUTPUT, {}, "is empty"),
    ("metadata.name", "Web", "doesn't have the form"),
    ("kind", "TracesConfiguration", "has no counterpart here"),
    ("apiVersion", "retina.sh/v1", "expected 'retina.sh/v1alpha1'"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_refused_at_its_place(path: str, value: Any, message: str) -> None:
    manifest = changed(path, value)
    with pytest.raises(DocumentError, match=message) as told:
        made(manifest)
    document = parse_document(json.dumps(manifest, indent=1).encode(), "capture.yaml")
    keys: list[str | int] = list(path.split("."))
    near = {document.place(keys[:n], key)[0] for n in (len(keys) - 1, len(keys)) for key in (False, True)}
    near |= set(range(document.place(keys)[0], document.place(keys)[0] + 6))
    assert [p.line in near for p in told.value.problems] == [True]


def test_old_and_new_filter_together() -> None:
    both = changed("spec.captureConfiguration.tcpdumpFilter", "udp", changed(f"{OPTION}.pcapFilter", "tcp"))
    with pytest.raises(DocumentError, match="pcapFilter is here too"):
        made(both)
    sourced = changed("spec.captureConfiguration.tcpdumpFilter", "udp", changed(f"{OPTION}.sourceIPs", ["10.0.0.1"]))
    with pytest.raises(DocumentError, match="can't be used with sourceIPs"):
        made(sourced)


def leaves(found: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every field of the schema that holds a value, with an example of it."""
    if "properties" in found and not path.endswith("Selector"):
        for key, inner in found["properties"].items():
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, found["examples"][0]


@pytest.mark.parametrize(
    ("path", "example"),
    list(leaves(schema.load("retina/capture")["properties"]["spec"], "spec")),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_no_field_is_without_an_effect_that_one_is_told(path: str, example: Any) -> None:
    """Set to a value that isn't the default, each field changes the runbook, or a note or a refusal names it."""
    other = {"includeMetadata": False, "cleanUpAfterUpload": False, "maxCaptureSize": 7, "duration": "7s", "path": "p"}
    key = path.rpartition(".")[2]
    base = CAPTURE
    if "s3Upload" in path:
        base = changed(f"{OUTPUT}.s3Upload", {"bucket": "bucket", "secretName": "secret"})
    elif key in ("podNames", "nodeSelector"):
        base = changed(TARGET, {})
    example = other.get(key, "different" if key in ("bucket", "secretName", "hostPath") else example)
    if key == "podSelector":
        example = {"matchLabels": {"other": "label"}}
    before = made(CAPTURE if base["spec"]["captureConfiguration"]["captureTarget"] == {} else base)
    told = ""
    try:
        after = made(changed(path, example, base))
    except DocumentError as error:
        told = str(error)
    if told:
        assert key in told
        return
    assert (after.value, after.notes) != (before.value, before.notes)


def test_a_bad_filter_is_told_at_its_place_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "capture.yaml"
    file.write_text(json.dumps(changed(f"{OPTION}.pcapFilter", "tcp prot 80"), indent=1))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "tcp prot" in text)
    assert main(["check", str(file)]) == 2
    assert f"{file}:{line}:" in capsys.readouterr().err


def test_on_hosts_of_an_inventory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What Retina can't: the same manifest over SSH; pods aren't there, and are refused by name."""
    by_node = changed(TARGET, {"nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}})
    file = tmp_path / "capture.yaml"
    file.write_text(json.dumps(by_node))
    assert isinstance(load_runbook(file, on_hosts=True).captures[0].nodes, LocalNodes)
    assert main(["run", "-i", "web1,web2,", "--list-hosts", str(file)]) == 0
    assert capsys.readouterr().out.split() == ["web1", "web2"]
    with pytest.raises(DocumentError, match="hosts of an inventory have no pods"):
        made(CAPTURE, on_hosts=True)


def test_translate_prints_a_runbook_that_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "capture.yaml"
    manifest = changed(f"{OUTPUT}.blobUpload", "sas", changed(f"{OPTION}.verbosity", "max"))
    file.write_text(json.dumps(manifest, indent=1))
    assert main(["translate", str(file), "-e", "container_url=https://acct.blob.core.windows.net/c"]) == 0
    told = capsys.readouterr()
    assert "verbosity: changes what tcpdump prints" in told.err
    made_file = tmp_path / "runbook.yaml"
    made_file.write_text(told.out)
    extra = ["container_url=https://acct.blob.core.windows.net/c"]
    direct, written = load_runbook(file, extra), load_runbook(made_file, extra)
    assert (direct.captures, direct.uploads, direct.duration_s, direct.limits) == (
        written.captures, written.uploads, written.duration_s, written.limits,
    )  # fmt: skip
    assert direct.uploads[1].options["container_url"] == "https://acct.blob.core.windows.net/c"


def test_a_claim_takes_the_place_of_the_nodes_disk() -> None:
    translated = made(changed(OUTPUT, {"persistentVolumeClaim": "captures"}))
    assert translated.value["captures"][0]["nodes"]["kubernetes"]["job"] == {"claim": "captures"}
    assert translated.value["upload"] == [{"host_path": {"path": "web"}}]
    parse_runbook(translated.runbook_text.encode(), "made")


def test_large_captures_get_the_room_that_they_ask_for() -> None:
    limits = made(changed(f"{OPTION}.maxCaptureSize", 4000)).value["limits"]
    assert limits == {"node_bytes": f"{2 * 4000 + 128}MiB"}


METRICS: dict[str, Any] = {
    "apiVersion": "retina.sh/v1alpha1",
    "kind": "MetricsConfiguration",
    "metadata": {"name": "metrics"},
    "spec": {"contextOptions": [{"metricName": "drop_count"}, {"metricName": "dns_request_count"}]},
}


def test_metrics_name_plugins() -> None:
    translated = made(METRICS)
    assert translated.value["captures"][0]["collect"] == [{"ebpf": {"plugins": ["dropreason", "dns"]}}]
    runbook = parse_runbook(translated.runbook_text.encode(), "made", ["duration=5m"])
    assert runbook.duration_s == 300


def test_every_metric_of_retina_has_a_plugin_or_a_reason() -> None:
    items = schema.load("retina/metricsconfiguration")["properties"]["spec"]["properties"]["contextOptions"]["items"]
    plugins = schema.load("collectors/ebpf")["properties"]["plugins"]["items"]["enum"]
    for metric in items["properties"]["metricName"]["enum"]:
        manifest = changed("spec.contextOptions", [{"metricName": metric}], METRICS)
        if metric in UNSERVED:
            with pytest.raises(DocumentError, match=f"{metric}: no plugin counts it: it needs"):
                made(manifest)
            continue
        (entry,) = made(manifest).value["captures"][0]["collect"]
        assert set(entry["ebpf"]["plugins"]) <= set(plugins)


def test_labels_that_no_plugin_has_and_namespaces_are_told() -> None:
    spec = {"contextOptions": [{"metricName": "tcp_state", "sourceLabels": ["podname"], "additionalLabels": ["state"]}],
            "namespaces": {"include": ["shop"]}}  # fmt: skip
    notes = "\n".join(made(changed("spec", spec, METRICS)).notes)
    assert "podname isn't a label of the plugin linuxutil" in notes
    assert "state isn't" not in notes
    assert "include: programs count for the whole node" in notes


_text = st.text(max_size=20)
_values = st.recursive(
    st.one_of(_text, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False).map(lambda f: round(f, 3))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["a", "yes", "1", "a b", "-", "${x}"]), st.lists(_text, max_size=4), min_size=1))
def test_written_yaml_reads_the_same_strictly(value: dict[str, Any]) -> None:
    assert parse_document("\n".join(lines(value)).encode(), "made").value == value


@pytest.mark.parametrize(
    "text", ["yes", "0o17", "1_000", "12:30:00", "2026-01-01", "~", "null", "=", ".5", "- x", "a: b", "a #b"]
)
def test_what_yaml_takes_for_something_else_is_quoted(text: str) -> None:
    value = {"key": text, "list": [text], "deep": [{"inner": {"x": text}}]}
    assert parse_document("\n".join(lines(value)).encode(), "made").value == value
