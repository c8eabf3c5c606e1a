"""The exporter where it runs always: a systemd service on a machine, or a DaemonSet on a cluster's nodes. Pure."""

from __future__ import annotations

from typing import Any

from retina_runner.schedule import MARK, Schedule
from retina_runner.schedule.systemd import CACHE, bounds, hardening, quoted

CAPABILITIES = ("BPF", "PERFMON", "NET_ADMIN", "NET_RAW")
PORT = 10093


def service(schedule: Schedule, listen: str) -> str:
    """<unit>-exporter.service: restarted when it fails."""
    words = (schedule.program, "exporter", "--listen", listen, *schedule.arguments, schedule.runbook)
    return "\n".join(
        (
            f"# {MARK} for {schedule.name}",
            "[Unit]",
            f"Description=retina-run exporter of {schedule.name}",
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            f"ExecStart={' '.join(quoted(word) for word in words)}",
            "UMask=0077",
            "Restart=on-failure",
            "RestartSec=10",
            *CACHE,
            *bounds(schedule),
            # Its scratch folder goes with the service, however it ends. (A /tmp of its own could hide the runbook.)
            f"RuntimeDirectory={schedule.unit}-exporter",
            "RuntimeDirectoryMode=0700",
            f"Environment=TMPDIR=/run/{schedule.unit}-exporter",
            *hardening((), schedule.tunables),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        )
    )


def daemon_set(schedule: Schedule, text: str, namespace: str, image: str) -> list[dict[str, Any]]:
    """ConfigMap and DaemonSet: the node's network, the capabilities of BPF, no service account token, nothing writable."""
    unit = f"{schedule.unit}-exporter"
    labels = {"app.kubernetes.io/name": "retina-run-exporter", "app.kubernetes.io/instance": unit}
    probe = {"httpGet": {"path": "/healthz", "port": PORT}}
    container = {
        "name": "exporter",
        "image": image,
        "command": [schedule.program, "exporter", "--listen", f":{PORT}", *schedule.arguments, schedule.runbook],
        "ports": [{"name": "metrics", "containerPort": PORT, "hostPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {**probe, "periodSeconds": 10},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 3},
        # Compiling BPF programs takes its time on a small node.
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": 60},
        "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "resources": {"requests": {"cpu": "20m", "memory": "128Mi"},
                      "limits": {"cpu": f"{schedule.cpu_percent * 10}m", "memory": str(schedule.memory_bytes)}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"},
                         {"name": "runbook", "mountPath": "/etc/retina-run", "readOnly": True}],
    }  # fmt: skip
    pod = {
        "metadata": {
            "labels": labels,
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT)},
        },
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "runbook", "configMap": {"name": unit}}],
        },
    }
    meta = {"name": unit, "namespace": namespace, "labels": labels}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"runbook.yaml": text}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta,
         "spec": {"selector": {"matchLabels": labels}, "updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}},
                  "template": pod}},
    ]  # fmt: skip
