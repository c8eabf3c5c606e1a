"""The way to an API server: by an HTTP proxy (a real one, tinyproxy), and to what isn't an API server at all."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_runner.errors import UsageError
from retina_runner.executors import LinkLost
from retina_runner.executors.kubernetes import kubeconfig
from retina_runner.executors.kubernetes.api import Api, Denied
from retina_runner.secrets import redact
from tests.storage.servers import Identity, Tinyproxy, private_identity

PODS = "/api/v1/namespaces/shop/pods"


class Answers(http.server.BaseHTTPRequestHandler):
    """Not an API server; it answers as one would where a test asks."""

    def do_GET(self) -> None:
        status, said = 200, json.dumps({"items": [{"metadata": {"name": "web-0"}}], "metadata": {}})
        if "/exec" in self.path:
            status, said = 403, json.dumps({"reason": "Forbidden", "message": "you may not"})
        elif self.path != PODS + "?limit=500":
            said = {"/page": "<html>Sign in</html>", "/text": '"hello"'}[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return private_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def port(identity: Identity) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(identity.certificate, identity.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def api(folder: Path, identity: Identity, port: int, **cluster: str) -> Api:
    given = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(identity.authority), **cluster}
    (folder / "config").write_text(json.dumps({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": given}], "users": [{"name": "u", "user": {"token": "t"}}],
    }))  # fmt: skip
    return Api(kubeconfig.Access(kubeconfig.find(str(folder / "config"), "")))


def test_requests_and_exec_go_by_the_proxy(tmp_path: Path, identity: Identity, port: int) -> None:
    proxy = Tinyproxy(tmp_path / "proxy", [port])
    try:
        proxy.start()
        by_proxy = api(tmp_path, identity, port, **{"proxy-url": proxy.url()})
        assert [p["metadata"]["name"] for p in by_proxy.pages(PODS)] == ["web-0"]
        with pytest.raises(Denied, match="you may not"):
            by_proxy.exec("shop", "web-0", "main", ["true"], stdin=False)
        assert (tmp_path / "proxy" / "requests.log").read_text().count(f"CONNECT 127.0.0.1:{port} ") == 2
        wrong = api(tmp_path, identity, port, **{"proxy-url": proxy.url("wrong-canary")})
        with pytest.raises(LinkLost, match=f"proxy 127.0.0.1:{proxy.port}: .*(401|407)") as refused:
            list(wrong.pages(PODS))
        assert "canary" not in str(refused.value)
        assert "wrong-canary" not in redact(f"by {proxy.url('wrong-canary')}")
    finally:
        proxy.kill()
    with pytest.raises(LinkLost, match=f"proxy 127.0.0.1:{proxy.port}: .*refused"):
        list(by_proxy.pages(PODS))


@pytest.mark.parametrize("url", ["https://proxy.example:3128", "socks5://user:canary@proxy.example", "http://"])
def test_another_kind_of_proxy_is_refused(tmp_path: Path, identity: Identity, url: str) -> None:
    with pytest.raises(UsageError, match=r"context c: proxy-url .*only http://") as refused:
        api(tmp_path, identity, 1, **{"proxy-url": url})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(("path", "said"), [("/page", "<html>Sign in</html>"), ("/text", "hello")])
def test_what_is_not_an_api_server_is_told(tmp_path: Path, identity: Identity, port: int, path: str, said: str) -> None:
    with pytest.raises(Denied, match=f"doesn't answer like a Kubernetes API server: .*{said}"):
        api(tmp_path, identity, port).call("GET", path)


def test_a_kubeconfig_that_cannot_be_read_is_told_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "config"
    with pytest.raises(UsageError) as missing:
        kubeconfig.find(str(path), "")
    assert str(missing.value) == (
        f"kubeconfig {path}: no such file; name one in $KUBECONFIG, or by `kubeconfig:` in the runbook"
    )
    path.write_text("contexts: [\n")
    with pytest.raises(UsageError) as broken:
        kubeconfig.find(str(path), "")
    assert str(broken.value).startswith(f"kubeconfig {path}:2: ")
