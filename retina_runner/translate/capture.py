"""A Capture of Retina as a runbook: target, filters, stop conditions, outputs.

Where Retina differs from what its field says (measured, and in its tracker), the field's meaning is kept: several
interfaces are all captured, a pod's addresses are AND-ed to filters, a failed upload fails the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retina_runner.documents import Path_
from retina_runner.label_selectors import Selector, SelectorError, from_mapping
from retina_runner.translate import Draft, literal
from retina_runner.units import format_duration, format_size, parse_size

CONFIGURATION: Path_ = ("spec", "captureConfiguration")
OPTION: Path_ = (*CONFIGURATION, "captureOption")
TARGET: Path_ = (*CONFIGURATION, "captureTarget")
OUTPUT: Path_ = ("spec", "outputConfiguration")
BASE_DIRECTORY = "/var/log/retina/captures/"
DISPLAY = (
    "noResolveDNS", "noResolvePort", "printLinkHeader", "quietOutput", "absoluteSeq", "dontVerifyChecksum",
    "verbosity", "printDataFormat", "timestampFormat",
)  # fmt: skip
URL_VARIABLE, SIGNATURE_VARIABLE = "container_url", "AZURE_STORAGE_SAS_TOKEN"
DEFAULT_MEGABYTES = 100
WHOLE_PACKETS = "256KiB"
_GO_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_CAPTURE: Path_ = ("captures", 0)


def translate(draft: Draft) -> dict[str, Any]:
    """The runbook's value; problems and notes are the draft's."""
    spec = draft.valid("retina/capture")
    if spec is None:
        return {}
    configuration = spec["captureConfiguration"]
    option = configuration.get("captureOption") or {}
    metadata = draft.document.value["metadata"]
    runbook: dict[str, Any] = {"name": metadata["name"]}
    draft.origins[("name",)] = ("metadata", "name")
    uploads = _uploads(draft, spec["outputConfiguration"])
    if any("azure_blob" in u for u in uploads):
        runbook["vars"] = {URL_VARIABLE: ""}
    runbook["duration"] = _duration(draft, option)
    tcpdump = _tcpdump(draft, configuration, option)
    room = _room(tcpdump)
    if room > parse_size("2GiB"):
        runbook["limits"] = {"node_bytes": format_size(room)}
    collect: list[Any] = [{"tcpdump": tcpdump}]
    if configuration.get("includeMetadata", True):
        collect += ["iptables", "network-state"]
    nodes = _nodes(draft, configuration["captureTarget"], metadata.get("namespace"))
    claim = spec["outputConfiguration"].get("persistentVolumeClaim")
    if claim and isinstance(nodes, dict):
        nodes["kubernetes"].setdefault("job", {})["claim"] = claim
    runbook["captures"] = [{"nodes": nodes, "collect": collect}]
    draft.origins[_CAPTURE] = CONFIGURATION
    draft.came((*_CAPTURE, "nodes"), TARGET)
    if uploads:
        runbook["upload"] = uploads
    if spec.get("cleanUpAfterUpload") is False:
        draft.note(
            ("spec", "cleanUpAfterUpload"), "Jobs are always removed when their archive is here (--keep leaves them)"
        )
    return runbook


def _duration(draft: Draft, option: Mapping[str, Any]) -> str:
    path = (*OPTION, "duration")
    draft.origins[("duration",)] = path
    if "duration" not in option:
        message = "has no duration: Retina would go on until a size is reached or the Capture is deleted"
        draft.refuse(
            OPTION, message, "captureOption: {duration: 60s}; whichever of duration and size comes first ends it"
        )
        return "60s"
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in _GO_PART.findall(option["duration"]))
    if seconds < 1:
        said = "no limit to Retina" if seconds == 0 else "0, which is no limit, to Retina"
        draft.refuse(path, f"{option['duration']} is {said}; a window is at least 1s long")
    return format_duration(seconds)


def _tcpdump(draft: Draft, configuration: Mapping[str, Any], option: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the collector tcpdump."""
    made: dict[str, Any] = {}
    place = (*_CAPTURE, "collect", 0, "tcpdump")

    def put(key: str, value: Any, origin: Path_) -> None:
        made[key] = value
        draft.came((*place, key), origin)
        if isinstance(value, list):
            draft.origins.update({(*place, key, i): (*origin, i) for i in range(len(value))})

    interfaces = [i for i in option.get("interfaces") or () if i.strip()]
    if interfaces:
        put("interfaces", [literal(i.strip()) for i in dict.fromkeys(interfaces)], (*OPTION, "interfaces"))
    _text_filter(draft, configuration, option, put)
    filters = configuration.get("filters") or {}
    for key in ("include", "exclude"):
        if filters.get(key):
            put(key, [literal(_endpoint(e)) for e in filters[key]], (*CONFIGURATION, "filters", key))
    for key, name in (("source", "sourceIPs"), ("destination", "destinationIPs")):
        if option.get(name):
            put(key, [literal(e) for e in option[name]], (*OPTION, name))
    size = option.get("packetSize", 0)
    put("snaplen", f"{size}B" if size else WHOLE_PACKETS, (*OPTION, "packetSize"))
    _sizes(draft, option, put)
    if option.get("noPromiscuous"):
        put("promiscuous", False, (*OPTION, "noPromiscuous"))
    for name in DISPLAY:
        if option.get(name):
            draft.note((*OPTION, name), "changes what tcpdump prints, and nothing in a pcap")
    if option.get("packetBuffered"):
        draft.note((*OPTION, "packetBuffered"), "packets are read while they come, whatever it says")
    if option.get("immediateMode"):
        draft.note((*OPTION, "immediateMode"), "isn't used: it costs packets and changes nothing in a file")
    return made


def _text_filter(draft: Draft, configuration: Mapping[str, Any], option: Mapping[str, Any], put: Any) -> None:
    new, old = option.get("pcapFilter", ""), configuration.get("tcpdumpFilter", "")
    if old and new:
        draft.refuse((*CONFIGURATION, "tcpdumpFilter"), "pcapFilter is here too, and wins: Retina ignores this one",
                     "leave one of them out", key=True)  # fmt: skip
    elif old and (option.get("sourceIPs") or option.get("destinationIPs")):
        draft.refuse((*CONFIGURATION, "tcpdumpFilter"), "can't be used with sourceIPs or destinationIPs",
                     "write it as captureOption.pcapFilter", key=True)  # fmt: skip
    elif new or old:
        put("filter", literal(new or old), (*OPTION, "pcapFilter") if new else (*CONFIGURATION, "tcpdumpFilter"))


def _endpoint(text: str) -> str:
    """Retina's `IP:*` is the address with any port."""
    return text.removesuffix(":*") if text != "*:*" else text


def _sizes(draft: Draft, option: Mapping[str, Any], put: Any) -> None:
    """Retina's sizes are MiB without a ring, which it polls for, and MB with one, which tcpdump -C counts."""
    path = (*OPTION, "maxCaptureSize")
    megabytes, files = option.get("maxCaptureSize", DEFAULT_MEGABYTES), option.get("fileCount")
    if files is None:
        if not megabytes:
            draft.refuse(path, "0 is no limit, and a node's disk has one", "for example maxCaptureSize: 10000")
        put("max_size", f"{megabytes}MiB", path)
    elif not megabytes:
        draft.refuse(path, "0 with fileCount: the files of a ring have a size", "for example maxCaptureSize: 100")
    elif files < 2:
        message = "a ring of one file forgets everything at each turn"
        draft.refuse(
            (*OPTION, "fileCount"), message, "fileCount: 2 or more, or none for one file that stops at its size"
        )
    else:
        put("ring", {"files": files, "file_size": f"{megabytes}MB"}, (*OPTION, "fileCount"))


def _room(tcpdump: Mapping[str, Any]) -> int:
    """What the packets may need on a node's disk, raw and packed, with a little for the rest."""
    ring = tcpdump.get("ring")
    size = (ring["files"] + 1) * parse_size(ring["file_size"]) if ring else parse_size(tcpdump.get("max_size", "0B"))
    whole = 2 * size * len(tcpdump.get("interfaces", "a"))
    return -(-whole // (1 << 20) << 20) + (128 << 20)


def _nodes(draft: Draft, target: Mapping[str, Any], namespace: str | None) -> Any:
    """`nodes`, of a cluster or, `on_hosts`, of the inventory that the command line names."""
    allowed = ({"nodeSelector"}, {"podSelector"}, {"podSelector", "namespaceSelector"}, {"podNames"})
    if set(target) not in allowed:
        message = f"{' with '.join(sorted(target))}: Retina refuses that"
        draft.refuse(TARGET, message, "nodeSelector, podSelector (with a namespaceSelector or without), or podNames")
        return "local"
    selectors = {k: _selector(draft, (*TARGET, k), v) for k, v in target.items() if k != "podNames"}
    if draft.on_hosts:
        return _hosts(draft, target)
    place = (*_CAPTURE, "nodes", "kubernetes")
    made: dict[str, Any] = {}
    if "nodeSelector" in target:
        if namespace:
            made["namespace"] = namespace
        text = selectors["nodeSelector"].text
        made.update({"node_selector": literal(text)} if text else {"nodes": "all"})
        draft.came((*place, "node_selector"), (*TARGET, "nodeSelector"))
        return {"kubernetes": made}
    if namespace and "namespaceSelector" not in target:
        made["namespace"] = namespace
    if "podNames" in target:
        made["pod_names"] = [literal(n) for n in target["podNames"]]
        draft.came((*place, "pod_names"), (*TARGET, "podNames"))
        return {"kubernetes": made}
    if not any((target["podSelector"] or {}).values()):
        draft.refuse((*TARGET, "podSelector"), "selects every pod", "name labels, or choose the nodes by nodeSelector")
    made["pods"] = literal(selectors["podSelector"].text)
    draft.came((*place, "pods"), (*TARGET, "podSelector"))
    draft.note(
        (*TARGET, "podSelector"),
        "the pods' addresses are AND-ed to the filters; Retina ORs them, so that neither works",
    )
    if "namespaceSelector" in target:
        # Every namespace has this label (Kubernetes 1.21): an empty selector means all of them.
        made["namespaces"] = literal(selectors["namespaceSelector"].text or "kubernetes.io/metadata.name")
        if namespace:
            made["job"] = {"namespace": namespace}
    else:
        said = (
            f"is looked for in the Capture's namespace, {namespace}" if namespace else "is looked for in your namespace"
        )
        draft.note(
            (*TARGET, "podSelector"), f"{said}; Retina looks in the namespace default, whatever the Capture's is"
        )
    return {"kubernetes": made}


def _selector(draft: Draft, path: Path_, given: Mapping[str, Any]) -> Selector:
    try:
        return from_mapping(given or {})
    except SelectorError as error:
        draft.refuse(path, str(error))
        return Selector()


def _hosts(draft: Draft, target: Mapping[str, Any]) -> str:
    for key in target:
        if key == "nodeSelector":
            draft.note((*TARGET, key), "hosts of an inventory have no labels: those of -i are taken, as --limit says")
        else:
            hint = "a nodeSelector, whose place -i takes; and the addresses as filters.include"
            draft.refuse((*TARGET, key), "hosts of an inventory have no pods", hint, key=True)
    return "local"  # which -i stands in for


def _uploads(draft: Draft, output: Mapping[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def put(kind: str, options: Any, origin: Path_) -> None:
        draft.origins[("upload", len(made))] = origin
        made.append({kind: options})

    if "hostPath" in output:
        path, text = (*OUTPUT, "hostPath"), output["hostPath"]
        below = text.removeprefix(BASE_DIRECTORY).rstrip("/")
        if below.startswith("/") or ".." in below.split("/") or below in ("", "."):
            draft.refuse(
                path,
                f"{text} isn't a folder below {BASE_DIRECTORY}, where nodes keep captures",
                "for example hostPath: incidents",
            )
        put("host_path", {"path": literal(below), "base": BASE_DIRECTORY.rstrip("/")}, path)
    if "persistentVolumeClaim" in output:
        path = (*OUTPUT, "persistentVolumeClaim")
        if draft.on_hosts:
            draft.refuse(path, "hosts of an inventory have no claims", "hostPath, blobUpload or s3Upload", key=True)
        if "hostPath" in output:
            draft.refuse(
                path, "can't stand beside hostPath, whose disk it takes the place of", "leave one of them out", key=True
            )
        put("host_path", {"path": draft.document.value["metadata"]["name"]}, path)
    if "blobUpload" in output:
        path = (*OUTPUT, "blobUpload")
        if URL_VARIABLE not in draft.given:
            message = f"the Secret {output['blobUpload']} holds a URL with its signature, and isn't read"
            hint = f"-e {URL_VARIABLE}=https://ACCOUNT.blob.core.windows.net/CONTAINER, the signature in ${SIGNATURE_VARIABLE}"
            draft.refuse(path, message, hint)
        put("azure_blob", {"container_url": f"${{{URL_VARIABLE}}}", "credential": f"env:{SIGNATURE_VARIABLE}"}, path)
    if "s3Upload" in output:
        path, given = (*OUTPUT, "s3Upload"), output["s3Upload"]
        options = {"bucket": literal(given["bucket"])}
        for key, name in (("endpoint_url", "endpoint"), ("region", "region")):
            if given.get(name):
                options[key] = literal(given[name])
        options["prefix"] = literal(given.get("path", "retina/captures").strip("/"))
        options["credential"] = "default"
        draft.note(
            (*path, "secretName"),
            f"the Secret {given['secretName']} isn't read: keys are the runner's own (AWS_ACCESS_KEY_ID …)",
        )
        put("s3", options, path)
    return made
