"""A grant that can't be made is told, so that the runner stores the archive itself: it ends nobody's run."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from retina_runner.uploads import NotStored
from retina_runner.uploads.azure_container import AzureContainer
from retina_runner.uploads.s3 import S3Target
from tests.storage.servers import private_identity


class Refusing(http.server.BaseHTTPRequestHandler):
    """What Azure answers an identity whose rights are of one container, when it asks the account for a key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.send_header("x-ms-error-code", "AuthorizationPermissionMismatch")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class MockIdentity:
    """In place of azure-identity, which takes Azure itself."""

    def get_token(self, *scopes: str, **more: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken("mock", int(time.time()) + 3600)


def test_an_identity_that_gets_no_key_to_sign_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.storage.blob import ContainerClient

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    identity = private_identity(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(identity.certificate, identity.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_address[1]}/account/captures"
        container = AzureContainer({"container_url": url, "ca_file": str(identity.authority)})
        container._made = ContainerClient.from_container_url(url, credential=MockIdentity())
        with pytest.raises(NotStored, match=r"refused \(AuthorizationPermissionMismatch\)"):
            container.signing(60)
        server.shutdown()


def test_a_bucket_without_credentials_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(NotStored, match="Unable to locate credentials"):
        S3Target({"bucket": "captures", "endpoint_url": "http://127.0.0.1:1"}).place()


def test_what_is_neither_a_sas_nor_a_connection_string_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAS", "canary-7f3a")
    container = AzureContainer({"container_url": "https://acct.blob.core.windows.net/c", "credential": "env:SAS"})
    with pytest.raises(NotStored, match="env:SAS: neither a SAS, which has a sig=, nor a connection string") as raised:
        container.client()
    assert "canary" not in str(raised.value)
