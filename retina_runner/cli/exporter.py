"""`retina-run exporter RUNBOOK --listen :10093`: /metrics of the runbook's plugins, as long as it runs; /healthz."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from retina_runner.agent.metrics import text
from retina_runner.agent.metrics.model import OK
from retina_runner.bytecode import Store, default_directory
from retina_runner.errors import Exit, UsageError
from retina_runner.exporting import Exporter
from retina_runner.runbook_reading import load_runbook

REQUEST_LIMIT_S = 30


def main(chosen: argparse.Namespace) -> int:
    runbook = load_runbook(chosen.runbook, chosen.extra_vars)
    entries = [dict(e.options) for c in runbook.captures for e in c.collect if e.name == "ebpf"]
    if not entries:
        raise UsageError(f"{chosen.runbook}: no capture collects `ebpf`, so there is nothing to export")
    host, port = address(chosen.listen)
    exporter = Exporter(entries, chosen.most_series, Store(default_directory()))
    try:
        server = _Server((host, port), exporter)
    except OSError as error:
        raise UsageError(f"--listen {chosen.listen}: {error.strerror}") from None
    try:
        rows = exporter.open()
        for row in rows:
            if row.status != OK:
                print(f"{row.plugin}: {row.hook}: {row.status}: {row.why}" + (f" ({row.hint})" if row.hint else ""))
        if not any(r.status == OK for r in rows):
            raise UsageError("no plugin can be had here; retina-run doctor says what is missing")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, frame: _stop(server, n, frame))
        where, bound = server.server_address[:2]
        print(f"listening on {where!s}, port {bound}", flush=True)
        server.serve_forever(poll_interval=0.5)
    finally:
        exporter.close()
        server.server_close()
    return Exit.OK


def _stop(server: _Server, number: int, frame: types.FrameType | None) -> None:
    # serve_forever runs in this thread: shutdown waits for it, so that another has to ask.
    threading.Thread(target=server.shutdown, daemon=True).start()


def address(given: str) -> tuple[str, int]:
    """`:10093` (every address), `127.0.0.1:10093`, `[::1]:10093`. Raises UsageError."""
    host, colon, port = given.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise UsageError(f"--listen {given}: write [ADDRESS]:PORT, for example :10093 or 127.0.0.1:10093")
    return host, int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    exporter: Exporter

    def __init__(self, at: tuple[str, int], exporter: Exporter):
        host, port = at
        self.exporter = exporter
        self.address_family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
        super().__init__((host or "::", port), _Request)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_LIMIT_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "retina-run", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            openmetrics = "application/openmetrics-text" in self.headers.get("Accept", "")
            try:
                body = self.server.exporter.collect(openmetrics)
            except OSError as error:
                self._answer(503, f"a source can't be read: {error.strerror}\n")
                return
            self._answer(200, body, text.OPENMETRICS_TYPE if openmetrics else text.PROMETHEUS_TYPE)
        elif path == "/healthz":
            trouble = self.server.exporter.healthy
            self._answer(503 if trouble else 200, f"{trouble or 'ok'}\n")
        elif path == "/":
            self._answer(200, "retina-run exporter: /metrics, /healthz\n")
        else:
            self._answer(404, "there are /metrics and /healthz\n")

    do_HEAD = do_GET

    def _answer(self, status: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True  # whoever asked has gone

    def log_message(self, format: str, *args: object) -> None:
        """A line for each refusal; a scrape every few seconds is no news."""
        if args and len(args) > 1 and str(args[1]) >= "400":
            print(f"{self.address_string()}: {format % args}", file=sys.stderr, flush=True)
