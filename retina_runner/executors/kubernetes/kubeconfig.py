"""Where a cluster's API is and who we are there: a kubeconfig's context, or a pod's own service account.

Tokens are asked for when they are needed: exec plugins (client.authentication.k8s.io v1 and v1beta1) run again when
theirs expires, token files are read again. Nothing of them reaches a message.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from retina_runner.agent import process
from retina_runner.documents import Dialect, load_document, nearest
from retina_runner.errors import DocumentError, UsageError
from retina_runner.secrets import Secret

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLUGIN_LIMIT_S = 60.0
EARLY_S = 30.0
"""A token is renewed that long before it expires."""
MINIMUM_TLS = ssl.TLSVersion.TLSv1_2


@dataclass(frozen=True)
class Context:
    """One context of a kubeconfig; `cluster` and `user` are its own objects, `folder` is what its paths are relative to.

    `files` is what `find` takes to find it again from anywhere; empty in a pod.
    """

    files: str
    name: str
    namespace: str
    cluster: Mapping[str, Any]
    user: Mapping[str, Any]
    folder: Path


def find(kubeconfig: str, context: str) -> Context:
    """The context that is meant. Raises UsageError.

    `kubeconfig` is a path; empty for $KUBECONFIG (several files, the first word counts), ~/.kube/config, or, in a pod, its
    service account. `context` is empty for the current one.
    """
    given = kubeconfig or os.environ.get("KUBECONFIG", "")
    files = [Path(p).expanduser() for p in given.split(os.pathsep) if p]
    if not files:
        default = Path("~/.kube/config").expanduser()
        if (context == "in-cluster" or not default.exists()) and (SERVICE_ACCOUNT / "token").exists():
            return _of_the_pod()
        files = [default]
    parts: dict[str, dict[str, tuple[Any, Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = context
    for file in files:
        document = _read(file)
        current = current or str(document.get("current-context") or "")
        for kind, known in parts.items():
            for item in document.get(kind) or []:
                known.setdefault(str(item["name"]), (item.get(kind[:-1]) or {}, file.parent))
    shown = ", ".join(map(str, files))
    if current not in parts["contexts"]:
        hint = nearest(current, parts["contexts"])
        what = f"has no context {current}" if current else "has no current context"
        raise UsageError(f"{shown}: {what}" + (f"; {hint}" if hint else ""))
    chosen, _ = parts["contexts"][current]
    cluster, folder = parts["clusters"].get(str(chosen.get("cluster")), ({}, Path()))
    user, user_folder = parts["users"].get(str(chosen.get("user")), ({}, folder))
    if not cluster.get("server"):
        raise UsageError(f"{shown}: the cluster of context {current} has no server")
    if user_folder != folder:
        user = {k: str(user_folder / v) if k in ("client-certificate", "client-key", "tokenFile") else v
                for k, v in user.items()}  # fmt: skip
    absolute = os.pathsep.join(str(f.absolute()) for f in files)
    return Context(absolute, current, str(chosen.get("namespace") or "default"), cluster, user, folder)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        value = load_document(file, Dialect.ANSIBLE).value
    except DocumentError as error:
        problem = error.problems[0]  # without its excerpt: the line may hold a token
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        hint = "" if file.exists() else "; name one in $KUBECONFIG, or by `kubeconfig:` in the runbook"
        raise UsageError(f"kubeconfig {place}: {problem.message}{hint}") from None
    if not isinstance(value, dict):
        raise UsageError(f"kubeconfig {file}: isn't a kubeconfig")
    return value


def _of_the_pod() -> Context:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    cluster = {"server": server, "certificate-authority": str(SERVICE_ACCOUNT / "ca.crt")}
    user = {"tokenFile": str(SERVICE_ACCOUNT / "token")}
    namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    return Context("", "in-cluster", namespace, cluster, user, SERVICE_ACCOUNT)


@dataclass
class Access:
    """An address, a TLS context, and the headers that say who we are. Safe for several threads."""

    context: Context
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _token: str = ""
    _expires: float = 0.0
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        address = urlsplit(str(self.context.cluster["server"]))
        self.secure = address.scheme == "https"
        self.host = address.hostname or ""
        self.port = address.port or (443 if self.secure else 80)
        self.prefix = address.path.rstrip("/")
        self.server_name = str(self.context.cluster.get("tls-server-name") or self.host)
        self.proxy = _proxy_of(self.context)

    def tls(self) -> ssl.SSLContext:
        """Made once. Raises UsageError for certificates that can't be read."""
        with self._lock:
            if self._tls is None:
                try:
                    self._tls = self._make_tls()
                except (OSError, ValueError) as error:
                    raise UsageError(f"context {self.context.name}: its certificates can't be read: {error}") from None
            return self._tls

    def headers(self, renew: bool = False) -> dict[str, str]:
        """`Authorization`, where a token or a password is used; `renew` after the server has refused the last one."""
        user = self.context.user
        if user.get("username"):
            pair = f"{user['username']}:{user.get('password', '')}".encode()
            return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
        if user.get("exec"):
            with self._lock:
                if renew or time.time() > self._expires - EARLY_S:
                    self._run_plugin(user["exec"])
                return {"Authorization": f"Bearer {self._token}"} if self._token else {}
        token = str(user.get("token") or "")
        if not token and user.get("tokenFile"):
            try:
                token = (self.context.folder / str(user["tokenFile"])).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise UsageError(f"context {self.context.name}: {error.filename}: {error.strerror}") from None
        return {"Authorization": f"Bearer {token}"} if token else {}

    def identity(self) -> str:
        """Where the credential comes from, for people."""
        user = self.context.user
        if user.get("username"):
            return "the kubeconfig's username"
        if user.get("exec"):
            return f"exec plugin {user['exec'].get('command')}"
        if user.get("token"):
            return "the kubeconfig's token"
        if user.get("tokenFile"):
            return f"token file {self.context.folder / str(user['tokenFile'])}"
        return (
            "the kubeconfig's client certificate"
            if "client-certificate" in str(list(user))
            else "nobody: the user has none"
        )

    def _make_tls(self) -> ssl.SSLContext:
        cluster, user = self.context.cluster, self.context.user
        authorities: dict[str, str] = {}
        if cluster.get("certificate-authority-data"):
            authorities["cadata"] = base64.b64decode(cluster["certificate-authority-data"]).decode()
        elif cluster.get("certificate-authority"):
            authorities["cafile"] = str(self.context.folder / str(cluster["certificate-authority"]))
        made = ssl.create_default_context(**authorities)  # type: ignore[arg-type]  # of texts alone
        made.minimum_version = MINIMUM_TLS
        if cluster.get("insecure-skip-tls-verify"):
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if hasattr(ssl, "VERIFY_X509_STRICT"):
            made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' own authorities often lack a key identifier
        if user.get("client-certificate-data") and user.get("client-key-data"):
            _load_pair(
                made, base64.b64decode(user["client-certificate-data"]), base64.b64decode(user["client-key-data"])
            )
        elif user.get("client-certificate") and user.get("client-key"):
            folder = self.context.folder
            made.load_cert_chain(str(folder / str(user["client-certificate"])), str(folder / str(user["client-key"])))
        return made

    def _run_plugin(self, plugin: Mapping[str, Any]) -> None:
        """client-go credential plugins: a program that prints an ExecCredential with a token, or a certificate."""
        version = str(plugin.get("apiVersion"))
        information: dict[str, Any] = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if plugin.get("provideClusterInfo"):
            information["spec"]["cluster"] = {k: v for k, v in self.context.cluster.items() if k != "extensions"}
        extra = {str(e["name"]): str(e["value"]) for e in plugin.get("env") or []}
        environment = {**os.environ, **extra, "KUBERNETES_EXEC_INFO": json.dumps(information)}
        command = str(plugin["command"])
        if os.sep in command:
            command = str(self.context.folder / command)
        try:
            outcome = process.run(
                [command, *map(str, plugin.get("args") or [])], limit_s=PLUGIN_LIMIT_S, env=environment
            )
        except (process.MissingTool, OSError) as error:
            hint = str(plugin.get("installHint") or "").strip().splitlines()[:1]
            raise UsageError(f"context {self.context.name}: {error}" + (f"; {hint[0]}" if hint else "")) from None
        if not outcome.ok:
            raise UsageError(f"context {self.context.name}: {plugin['command']} gave no credential: {outcome.why()}")
        try:
            status = json.loads(outcome.stdout)["status"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"context {self.context.name}: {plugin['command']} printed no ExecCredential") from None
        self._token = str(status.get("token") or "")
        expires = str(status.get("expirationTimestamp") or "")
        self._expires = _unix(expires) if expires else float("inf")
        if status.get("clientCertificateData") and status.get("clientKeyData"):
            self._tls = self._tls or self._make_tls()
            _load_pair(self._tls, status["clientCertificateData"].encode(), status["clientKeyData"].encode())


def _proxy_of(context: Context) -> SplitResult | None:
    """The HTTP proxy that the cluster is reached by, if any; it may have a password. Raises UsageError for another kind."""
    proxy = urlsplit(str(context.cluster.get("proxy-url") or ""))
    if not proxy.scheme:
        return None
    if proxy.scheme != "http" or not proxy.hostname:
        raise UsageError(
            f"context {context.name}: proxy-url has the scheme {proxy.scheme}; only http://HOST:PORT can be gone through"
        )
    if proxy.password:
        Secret(unquote(proxy.password))
    return proxy


def _load_pair(into: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """`ssl` reads certificates from files only: a private one, for a moment."""
    descriptor, path = tempfile.mkstemp(prefix="retina-run-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + b"\n" + certificate)
        into.load_cert_chain(path)
    finally:
        os.unlink(path)


def _unix(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
