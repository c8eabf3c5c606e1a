"""The client's side of RFC 6455, as far as Kubernetes' exec needs it: binary messages, ping, close. Standard library only."""

from __future__ import annotations

import base64
import os
import socket
import struct
import time

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RECEIVE_BYTES = 1 << 16


class Closed(Exception):
    """The other end closed, or the connection broke."""


class Refused(Exception):
    """The server answered the handshake with something else: `status` and the `body`."""

    def __init__(self, status: int, body: bytes):
        super().__init__(f"HTTP {status}")
        self.status, self.body = status, body


class WebSocket:
    """Over a connected socket. `receive` gives pieces of messages with whether they begin one."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._buffer = bytearray()
        self.protocol = ""
        self._begun = False

    def handshake(self, host: str, target: str, headers: dict[str, str], protocols: tuple[str, ...]) -> None:
        """Raises Refused, Closed, OSError."""
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {', '.join(protocols)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        status_line, *fields = head.decode("latin-1").split("\r\n")
        answer = {k.strip().lower(): v.strip() for k, _, v in (f.partition(":") for f in fields)}
        self._buffer = bytearray(rest)
        try:
            status = int(status_line.split()[1])
        except (ValueError, IndexError):
            raise Closed(f"no answer in HTTP: {status_line[:60]!r}") from None
        if status != 101:
            raise Refused(status, self._body(answer))
        self._begun, self.protocol = True, answer.get("sec-websocket-protocol", "")

    def send(self, data: bytes) -> None:
        """One binary message."""
        self._frame(BINARY, data)

    def receive(self, timeout_s: float) -> tuple[bool, bytes] | None:
        """(it begins a message, bytes), or None when nothing came in that time. Raises Closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._parse()
            if frame is None:
                self._socket.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    self._fill()
                except TimeoutError:
                    return None
                except OSError as error:
                    raise Closed(str(error)) from error
                continue
            code, data = frame
            if code == PING:
                self._frame(PONG, data)
            elif code == CLOSE:
                raise Closed(f"closed by the server {data[2:].decode('utf-8', 'replace')}".strip())
            elif code in (BINARY, TEXT, CONTINUATION):
                return code != CONTINUATION, data

    def close(self) -> None:
        try:
            if self._begun:
                self._frame(CLOSE, struct.pack(">H", 1000))
        except (OSError, Closed):
            pass
        self._socket.close()

    def _fill(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise Closed("the connection ended")
        self._buffer += data

    def _parse(self) -> tuple[int, bytes] | None:
        """The next whole frame of the buffer. Servers don't mask theirs (RFC 6455, 5.1)."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, at = buffer[1] & 0x7F, 2
        if length == 126:
            if len(buffer) < 4:
                return None
            length, at = struct.unpack_from(">H", buffer, 2)[0], 4
        elif length == 127:
            if len(buffer) < 10:
                return None
            length, at = struct.unpack_from(">Q", buffer, 2)[0], 10
        if len(buffer) < at + length:
            return None
        code, data = buffer[0] & 0x0F, bytes(buffer[at : at + length])
        del buffer[: at + length]
        return code, data

    def _frame(self, code: int, data: bytes) -> None:
        length = len(data)
        if length < 126:
            head = struct.pack(">BB", 0x80 | code, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack(">BBH", 0x80 | code, 0x80 | 126, length)
        else:
            head = struct.pack(">BBQ", 0x80 | code, 0x80 | 127, length)
        # The mask is against confused proxies between a browser and a server; one of zeros is a mask too.
        self._socket.settimeout(60.0)
        try:
            self._socket.sendall(head + b"\0\0\0\0" + data)
        except OSError as error:
            raise Closed(str(error)) from error

    def _body(self, answer: dict[str, str]) -> bytes:
        """What of a refusal's body comes soon: it is short, and only for a message."""
        wanted = min(int(answer.get("content-length", 1 << 16) or 0), 1 << 16)
        self._socket.settimeout(5.0)
        try:
            while len(self._buffer) < wanted:
                self._fill()
        except (OSError, Closed):
            pass
        body = bytes(self._buffer)
        if answer.get("transfer-encoding") == "chunked":
            body = b"".join(body.split(b"\r\n")[1::2])
        return body
