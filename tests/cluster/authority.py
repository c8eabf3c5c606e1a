"""The cluster's certificates and kubeconfigs: one authority, a client certificate for each of Kubernetes' own users."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.cluster.places import call

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Signs certificates in a directory; what is there already stays. Files are only for root."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("ca", "front-proxy-ca"):
            if not self.certificate(name).exists():
                usage = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,digitalSignature,cRLSign,keyCertSign")
                more = [part for extension in usage for part in ("-addext", extension)]
                self._openssl("req", "-x509", *KEY, *self._out(name), "-days", "3650", "-subj", f"/CN={name}", *more)
        if not self.key("service-accounts").exists():
            self._openssl("genrsa", "-out", str(self.key("service-accounts")), "2048")

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def client(self, name: str, user: str, *groups: str, authority: str = "ca") -> None:
        """A certificate that says: this is `user`, of these groups."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        self._sign(name, subject, "clientAuth", "", authority)

    def server(self, name: str, user: str, *names: str, groups: tuple[str, ...] = ()) -> None:
        """A certificate for a server of these names, `DNS:…` or `IP:…`."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        self._sign(name, subject, "serverAuth", ",".join(names), "ca")

    def kubeconfig(self, path: Path, server: str, name: str, namespace: str = "default") -> Path:
        """A kubeconfig for the client certificate `name`, with everything in it."""
        cluster = {"server": server, "certificate-authority-data": _inline(self.certificate("ca"))}
        user = {
            "client-certificate-data": _inline(self.certificate(name)),
            "client-key-data": _inline(self.key(name)),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name, "namespace": namespace}}],
            "current-context": "tests",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(document, indent=1))
        return path

    def _sign(self, name: str, subject: str, usage: str, names: str, authority: str) -> None:
        if self.certificate(name).exists():
            return
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        lines = ["basicConstraints=CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
        extensions.write_text("\n".join([*lines, *([f"subjectAltName={names}"] if names else [])]) + "\n")
        self._openssl("req", *KEY, "-keyout", str(self.key(name)), "-out", str(request), "-subj", subject)
        signer = ("-CA", str(self.certificate(authority)), "-CAkey", str(self.key(authority)), "-CAcreateserial")
        made = ("-extfile", str(extensions), "-days", "3650", "-out", str(self.certificate(name)))
        self._openssl("x509", "-req", "-in", str(request), *signer, *made)
        request.unlink()
        extensions.unlink()

    def _out(self, name: str) -> tuple[str, ...]:
        return ("-keyout", str(self.key(name)), "-out", str(self.certificate(name)))

    def _openssl(self, *argv: str) -> None:
        call("openssl", *argv)


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
