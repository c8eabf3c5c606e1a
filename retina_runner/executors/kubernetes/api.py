"""The few requests of Kubernetes' API that an executor needs: JSON over HTTPS, lists in pages, watches, exec.

What the server refuses is `Denied`, with its own words; what may work later (a broken connection, 429, 5xx) is LinkLost.
Each request has a limit, and a connection of its own: nothing is shared between threads but `Access`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlencode

from retina_runner.errors import UsageError
from retina_runner.executors import LinkLost
from retina_runner.executors.kubernetes.kubeconfig import Access
from retina_runner.executors.kubernetes.websocket import Closed, Refused, WebSocket

PAGE = 500
CONNECT_S, REQUEST_S = 10.0, 60.0
BUSY_TRIES = 6
EXEC_PROTOCOL = "v5.channel.k8s.io"
"""The first exec protocol that can close stdin (Kubernetes 1.29, KEP 4006)."""
STDIN, STDOUT, STDERR, STATUS, CLOSE_STREAM = 0, 1, 2, 3, 255


@dataclass(frozen=True)
class Right:
    """What a user needs: an API group ("" for the core), a resource, verbs, and what for."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


RIGHTS = (
    Right("", "nodes", ("get", "list"), "to choose nodes, and to say why one can't do it"),
    Right("", "namespaces", ("list",), "to choose pods of namespaces by label, and for the nearest name"),
    Right("", "pods", ("get", "list", "watch"), "to choose pods, and to see the Jobs' own"),
    Right("", "pods/exec", ("create", "get"), "to speak to the agent, and to fetch archives"),
    Right("", "services", ("get", "list"), "to choose the pods of a service"),
    Right("apps", "deployments", ("get", "list"), "to choose the pods of a deployment"),
    Right("apps", "replicasets", ("get", "list"), "to choose the pods of a replica set"),
    Right("apps", "statefulsets", ("get", "list"), "to choose the pods of a stateful set"),
    Right("apps", "daemonsets", ("get", "list"), "to choose the pods of a daemon set"),
    Right("batch", "jobs", ("get", "list", "create", "delete"), "a Job a node"),
    Right("", "configmaps", ("create", "patch", "delete"), "the agent"),
    Right("", "events", ("list",), "the scheduler's and the kubelet's own words on what went wrong"),
)
"""All that this package asks of the API. tests/cluster runs a capture as a user who may do this, and nothing else."""


class Denied(Exception):
    """The API server refused: `status` is HTTP's, `reason` Kubernetes' word for it, `message` its sentence."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message or reason or f"HTTP {status}")
        self.status, self.reason, self.message = status, reason, message


class NoCredential(LinkLost):
    """There is nothing good to show the API server: a plugin that fails, a file that isn't there. It may be mended meanwhile."""


class Pace:
    """At most `per_s` requests a second, all threads together, and `burst` of them at once after a quiet time: the API
    server is everybody's, and a run on thousands of nodes is not what it is there for."""

    def __init__(self, per_s: float = 50.0, burst: int = 100):
        self._per_s, self._burst = per_s, burst
        self._lock = threading.Lock()
        self._free_at = 0.0
        """When as many requests as have been let through would have been due, one after the other."""

    def wait(self) -> None:
        """Return when it is this request's turn."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - self._burst / self._per_s) + 1 / self._per_s
            wait_s = self._free_at - now
        if wait_s > 0:
            time.sleep(wait_s)


class Api:
    """One cluster, as one user. `pace` bounds what is asked of it; not what is said to agents, who all hear of T0 at once."""

    def __init__(self, access: Access, pace: Pace | None = None):
        self.access = access
        self.requests = 0
        self._pace = pace or Pace()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """One request; its JSON. Waits and asks again while the server says that it is too busy."""
        data = json.dumps(body).encode() if body is not None else None
        for left in range(BUSY_TRIES - 1, -1, -1):
            with self._response(method, path, data, query, content_type, REQUEST_S) as response:
                if response.status == 429 and left:
                    wait_s = float(response.headers.get("Retry-After") or 1)
                else:
                    content = response.read()
                    self._check(response.status, content)
                    return self._answer(content)
            time.sleep(min(wait_s, 30.0))
        raise AssertionError("the last try returns or raises")

    def pages(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """The items of a list, PAGE at a time."""
        wanted = {**(query or {}), "limit": PAGE}
        while True:
            page = self.call("GET", path, query=wanted)
            yield from page.get("items") or []
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return
            wanted["continue"] = more

    def listed(self, path: str, query: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
        """A whole list, and the version from which a watch goes on."""
        wanted: dict[str, Any] = {**query, "limit": PAGE}
        items: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", path, query=wanted)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            wanted["continue"] = metadata["continue"]

    def watch(
        self, path: str, query: Mapping[str, Any], version: str, stop: threading.Event, limit_s: int = 240
    ) -> Iterator[dict[str, Any]]:
        """Changes since that version, until the server ends it; `stop` is seen with the next one. Raises as `call`."""
        wanted = {
            **query,
            "watch": "1",
            "resourceVersion": version,
            "timeoutSeconds": limit_s,
            "allowWatchBookmarks": "true",
        }
        with self._response("GET", path, None, wanted, "application/json", limit_s + 30.0) as response:
            if response.status != 200:
                self._check(response.status, response.read())
            try:
                while line := response.readline():
                    if stop.is_set():
                        return
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise Denied(int(status.get("code", 0)), str(status.get("reason")), str(status.get("message")))
                    yield event
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise LinkLost(f"watch: {error}") from error

    def exec(self, namespace: str, pod: str, container: str, argv: Sequence[str], stdin: bool) -> Exec:
        """Start a program in a container. Raises Denied, LinkLost."""
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("stdin", "true")] if stdin else []
        query += [("command", word) for word in argv]
        target = f"{self.access.prefix}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(query)}"
        for renew in (False, True):
            try:
                connection = WebSocket(self._connect())
                host = f"{self.access.host}:{self.access.port}"
                connection.handshake(host, target, self._headers(renew), (EXEC_PROTOCOL,))
            except Refused as refused:
                connection.close()
                if refused.status == 401 and not renew:
                    continue
                self._check(refused.status, refused.body)
                raise LinkLost(f"exec: HTTP {refused.status}") from None
            except (OSError, Closed) as error:
                connection.close()
                raise LinkLost(f"exec: {error}") from error
            if connection.protocol != EXEC_PROTOCOL:
                connection.close()
                raise Denied(0, "NotSupported", "exec needs Kubernetes 1.30 or newer (the protocol v5.channel.k8s.io)")
            self.requests += 1
            return Exec(connection)
        raise AssertionError("the second try returns or raises")

    def _connect(self) -> socket.socket:
        access = self.access
        if access.proxy is None:
            plain = socket.create_connection((access.host, access.port), timeout=CONNECT_S)
        else:
            plain = _tunnel(access.proxy, access.host, access.port)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            return access.tls().wrap_socket(plain, server_hostname=access.server_name) if access.secure else plain
        except UsageError as error:
            plain.close()
            raise NoCredential(str(error)) from None

    def _headers(self, renew: bool) -> dict[str, str]:
        try:
            return self.access.headers(renew)
        except UsageError as error:
            raise NoCredential(str(error)) from None

    @contextlib.contextmanager
    def _response(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, Any] | None,
        content_type: str,
        limit_s: float,
    ) -> Iterator[http.client.HTTPResponse]:
        target = f"{self.access.prefix}{path}" + (f"?{urlencode(query)}" if query else "")
        self.requests += 1
        for renew in (False, True):
            self._pace.wait()
            connection = http.client.HTTPConnection(self.access.host, self.access.port, timeout=limit_s)
            try:
                headers = {"Accept": "application/json", "User-Agent": "retina-run", **self._headers(renew)}
                if data is not None:
                    headers["Content-Type"] = content_type
                try:
                    connection.sock = self._connect()
                    connection.sock.settimeout(limit_s)
                    connection.request(method, target, data, headers)
                    response = connection.getresponse()
                except (OSError, http.client.HTTPException) as error:
                    raise LinkLost(f"{self.access.host}:{self.access.port}: {error or type(error).__name__}") from error
                if response.status == 401 and not renew and self.access.context.user.get("exec"):
                    continue
                try:
                    yield response
                except (OSError, http.client.HTTPException) as error:
                    raise LinkLost(f"{self.access.host}:{self.access.port}: {error or type(error).__name__}") from error
                return
            finally:
                connection.close()

    def _answer(self, content: bytes) -> Any:
        with contextlib.suppress(ValueError):
            found = json.loads(content)
            if isinstance(found, dict):
                return found
        said = content[:60].decode("utf-8", "replace").strip()
        where = f"{self.access.host}:{self.access.port}"
        raise Denied(0, "NotAnApiServer", f"{where} doesn't answer like a Kubernetes API server: {said!r}")

    def _check(self, status: int, content: bytes) -> None:
        if status < 400:
            return
        try:
            said = json.loads(content)
            reason, message = str(said.get("reason") or ""), str(said.get("message") or "")
        except (ValueError, AttributeError):
            reason, message = "", content[:300].decode("utf-8", "replace").strip()
        if status in (408, 429) or (status >= 500 and reason != "NotFound"):
            raise LinkLost(message or f"HTTP {status}")
        if status == 401:
            message = (
                f"the API server doesn't accept the credential of {self.access.identity()} ({message or 'HTTP 401'})"
            )
        raise Denied(status, reason, message)


def _tunnel(proxy: SplitResult, host: str, port: int) -> socket.socket:
    """A connection by an HTTP proxy (CONNECT, RFC 9110, 9.3.6). Raises OSError, with the proxy's own word when it refuses."""
    headers = {}
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    connection = http.client.HTTPConnection(str(proxy.hostname), proxy.port or 80, timeout=CONNECT_S)
    connection.set_tunnel(f"[{host}]" if ":" in host else host, port, headers)
    try:
        connection.connect()
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"proxy {proxy.hostname}:{proxy.port or 80}: {error or type(error).__name__}") from error
    made: socket.socket = connection.sock
    return made


class Unsuccessful(Exception):
    """A program in a container has ended with another status than 0; the text is the end of what it said on stderr."""


class Exec:
    """A program in a container, started. Read it to its end, or close it: the program isn't ended by that."""

    def __init__(self, connection: WebSocket):
        self._connection = connection
        self._channel = STATUS
        self._status = bytearray()

    def write(self, data: bytes) -> None:
        """To its stdin."""
        try:
            for start in range(0, len(data), 1 << 16):
                self._connection.send(bytes([STDIN]) + data[start : start + (1 << 16)])
        except Closed as error:
            raise LinkLost(f"exec: {error}") from error

    def end_input(self) -> None:
        try:
            self._connection.send(bytes([CLOSE_STREAM, STDIN]))
        except Closed as error:
            raise LinkLost(f"exec: {error}") from error

    def read(self, timeout_s: float) -> tuple[int, bytes] | None:
        """(channel, bytes); None when nothing came in that time. After STATUS came, `exit_status` knows. Raises LinkLost."""
        try:
            found = self._connection.receive(timeout_s)
        except Closed as error:
            raise LinkLost(f"exec: {error}") from error
        if found is None:
            return None
        begins, data = found
        if begins and data:
            self._channel, data = data[0], data[1:]
        if self._channel == STATUS:
            self._status += data
        return self._channel, data

    def stdout(self, stall_s: float) -> Iterator[bytes]:
        """What it says there, to its end. Raises Unsuccessful, and LinkLost also when nothing came for so long.

        A stream that was cut short can look like one that has ended: whoever knows how much there is counts it.
        """
        said = bytearray()
        while (got := self.read(stall_s)) is not None:
            if got[0] == STDOUT:
                yield got[1]
            elif got[0] == STDERR:
                said += got[1]
            elif self.exit_status() != 0:
                raise Unsuccessful(said.decode("utf-8", "replace").strip()[-300:])
            else:
                return
        raise LinkLost(f"nothing came for {stall_s:.0f} s")

    def exit_status(self) -> int:
        """Of the program that has ended. Raises LinkLost when it was never started, or the node went away."""
        try:
            said = json.loads(bytes(self._status))
        except ValueError:
            raise LinkLost("exec: it ended without a status") from None
        if said.get("status") == "Success":
            return 0
        for cause in (said.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        raise LinkLost(f"exec: {said.get('message') or said.get('reason')}")

    def close(self) -> None:
        self._connection.close()
