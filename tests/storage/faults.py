"""A proxy that stands for a bad network and a bad store: real requests to a real store, and faults where a test says.

Each fault is spent on the first `times` requests that match, so a test can count. The `Host` header passes through
unchanged, so signatures stay valid.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import BinaryIO

WAIT_S = 120


@dataclass
class Fault:
    """What to do with a matching request. The first that applies:

    refuse (status, code): an error in the store's own form, after the whole body was read · cut_after: read that many
    bytes of the body, then break the connection · swallow: let the store have it, and break before its answer · shorten:
    let it have it, and send half of the answer · pause_s: wait before going on · skew_s: answer with another `Date`.
    """

    method: str = ""
    containing: str = ""
    times: int = 1
    refuse: tuple[int, str] | None = None
    cut_after: int | None = None
    swallow: bool = False
    shorten: bool = False
    pause_s: float = 0.0
    skew_s: float = 0.0
    before: Callable[[], None] | None = None
    spent: int = field(default=0)

    def takes(self, method: str, target: str) -> bool:
        return self.spent < self.times and self.method in ("", method) and self.containing in target


class FaultyProxy:
    """Listens before a store's port, at the same address. `seen` are the requests that came in, as `METHOD target`;
    `answered` those of them that the store itself took well."""

    def __init__(self, upstream: int, *faults: Fault, host: str = "127.0.0.1"):
        self.upstream, self.host, self.faults, self.seen = upstream, host, list(faults), list[str]()
        self.answered: list[str] = []
        self.body_bytes = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Closing alone doesn't end accept(2): it would be taken up again with the number, which is the next proxy's by then.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _break(connection)

    def count(self, containing: str) -> int:
        with self._lock:
            return sum(containing in request for request in self.seen)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(WAIT_S)
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        try:
            while self._one(connection, stream):
                pass
        except (OSError, http.client.HTTPException, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            stream.close()
            _break(connection)

    def _one(self, connection: socket.socket, stream: BinaryIO) -> bool:
        """Pass one request on; whether the connection can be used again."""
        line = stream.readline().decode("latin-1").split()
        if len(line) != 3:
            return False
        method, target, _ = line
        headers = http.client.parse_headers(stream)
        with self._lock:
            self.seen.append(f"{method} {target}")
            fault = next((f for f in self.faults if f.takes(method, target)), Fault(times=0))
            fault.spent += 1
        if headers.get("Expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            del headers["Expect"]
        length = int(headers.get("Content-Length") or 0)
        if fault.cut_after is not None:
            self._read(stream, min(length, fault.cut_after))
            if fault.before is not None:
                fault.before()
            return False
        if fault.before is not None:
            fault.before()
        time.sleep(fault.pause_s)
        if fault.refuse is not None:
            self._read(stream, length)
            status, code = fault.refuse
            body = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected by a test</Message></Error>".encode()
            )
            connection.sendall(
                f"HTTP/1.1 {status} Injected\r\nContent-Length: {len(body)}\r\nContent-Type: application/xml\r\n"
                f"x-ms-error-code: {code}\r\nDate: {formatdate(usegmt=True)}\r\n\r\n".encode()
                + (b"" if method == "HEAD" else body)
            )
            return True
        with_body = self._read(stream, length, keep=True)
        upstream = http.client.HTTPConnection(self.host, self.upstream, timeout=WAIT_S)
        try:
            upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() != "connection":
                    upstream.putheader(name, value)
            upstream.endheaders(with_body)
            answer = upstream.getresponse()
            content = answer.read()
            if answer.status < 300:
                with self._lock:
                    self.answered.append(f"{method} {target}")
            if fault.swallow:
                return False
            out = [f"HTTP/1.1 {answer.status} {answer.reason}"]
            for name, value in answer.getheaders():
                if name.lower() == "date" and fault.skew_s:
                    value = formatdate(time.time() + fault.skew_s, usegmt=True)
                if name.lower() not in ("connection", "keep-alive", "transfer-encoding", "content-length"):
                    out.append(f"{name}: {value}")
            announced = len(content)
            if fault.shorten:
                announced = max(len(content), 200)
                content = content[: len(content) // 2]
            if method == "HEAD":
                out.append(f"Content-Length: {answer.getheader('Content-Length', '0')}")
                content = b""
            elif answer.status != 204:
                out.append(f"Content-Length: {announced}")
            connection.sendall(("\r\n".join(out) + "\r\n\r\n").encode("latin-1") + content)
            return not fault.shorten
        finally:
            upstream.close()

    def _read(self, stream: BinaryIO, length: int, keep: bool = False) -> bytes:
        kept = []
        while length:
            piece = stream.read(min(length, 1 << 18))
            if not piece:
                raise ConnectionError("the client went away")
            length -= len(piece)
            with self._lock:
                self.body_bytes += len(piece)
            if keep:
                kept.append(piece)
        return b"".join(kept)


def _break(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
