"""Requests to a store over HTTP(S), each repeated until it is answered or refused: standard library only.

A URL here holds a signature. So no text that leaves this module holds a URL: errors name the host, the status and the
store's own code and first line, and words of others go through `scrub`.
"""

from __future__ import annotations

import base64
import http.client
import random
import re
import socket
import ssl
import time
import urllib.request
from typing import Callable, Dict, Iterable, Mapping, Optional, Tuple, Union
from urllib.parse import unquote, urlsplit

from retina_runner.agent.records import dataclass, field

Body = Iterable[Union[bytes, memoryview]]

REPEATED = frozenset({408, 425, 429, 500, 502, 503, 504})
REPEATED_CODES = frozenset({
    "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",  # S3, with statuses 400 and 409
    "Md5Mismatch", "BadDigest",  # broken on the way: the block is sent again
})  # fmt: skip
NEVER_REPEATED_CODES = frozenset({"FeatureNotSupported", "NotImplemented"})
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 20.0
UNREACHED_S = 45.0
"""How long a host that never answered is tried: then somebody else has to store it."""
ANSWER_BYTES = 1 << 16
_QUERY = re.compile(r"\?[^\s\"'<>]+")
_PAIR = re.compile(
    r"(?i)\b(sig|signature|x-amz-[a-z-]+|awsaccesskeyid|token|accountkey|signatureprovided)([=>])[^&\s\"'<>]+"
)
_USER = re.compile(r"//[^/@\s]+@")


class Answered(Exception):
    """The store answered, and not with success. `code` and `message` are its own words."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(f"{status} {code or message}".strip())
        self.status, self.code, self.message = status, code, message


class Unreachable(Exception):
    """No connection could be made, or every one broke, for as long as patience lasted."""


class NotPassed(Exception):
    """The proxy doesn't let this node through."""


class Untrusted(Exception):
    """The host's certificate isn't one that this node, or the given authority, vouches for."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Web:
    """Keeps one connection. `patience_s` is how long one request is repeated without an answer that counts, but not
    beyond `give_up_at` (monotonic seconds)."""

    ca_pem: str = ""
    proxy: str = ""
    """The proxy's URL, `none` for a direct way whatever the environment says, or nothing for the environment's."""
    patience_s: float = 300.0
    give_up_at: float = float("inf")
    timeout_s: float = 60.0
    repeats: int = 0
    reached: bool = False
    _connection: Optional[http.client.HTTPConnection] = field(default=None, repr=False)
    _at: Tuple[str, str] = field(default=("", ""), repr=False)
    _passing: Dict[str, str] = field(default_factory=dict, repr=False)
    """What a proxy that sees the requests (http) wants to be told with each."""

    def send(self, method: str, url: str, body: Callable[[], Body], headers: Mapping[str, str]) -> Answer:
        """Send until there is an answer; `body` is called for each try. Raises Answered, Unreachable, Untrusted, OSError.

        A body's own OSError (the file can't be read) is not repeated.
        """
        begun = time.monotonic()
        wait_s, give_up_at = FIRST_WAIT_S, min(self.give_up_at, begun + self.patience_s)
        while True:
            trouble: Exception
            hint_s = 0.0
            try:
                answer = self._once(method, url, body, headers)
                self.reached = True
                refusal = _refusal(answer)
                if refusal is None:
                    return answer
                if not _worth_repeating(refusal):
                    raise refusal
                trouble, hint_s = refusal, _seconds(answer.headers.get("retry-after", ""))
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise Untrusted(f"{urlsplit(url).hostname}: {error.verify_message}") from None
            except NotPassed as error:
                self.close()
                raise Unreachable(f"{urlsplit(url).hostname}: {error}") from None
            except BodyError:
                self.close()
                raise
            except (OSError, http.client.HTTPException) as error:
                self.close()
                trouble = error
            pause_s = min(MOST_WAIT_S, max(hint_s, wait_s * random.uniform(0.7, 1.3)))
            limit = give_up_at if self.reached else min(give_up_at, begun + UNREACHED_S)
            if time.monotonic() + pause_s > limit:
                if isinstance(trouble, Answered):
                    raise trouble
                raise Unreachable(f"{urlsplit(url).hostname}: {_named(trouble)}") from None
            time.sleep(pause_s)
            self.repeats += 1
            wait_s = min(MOST_WAIT_S, wait_s * 2)

    def _once(self, method: str, url: str, body: Callable[[], Body], headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        connection, path = self._open(url)
        connection.putrequest(method, path + (f"?{parts.query}" if parts.query else ""), skip_accept_encoding=True)
        for name, value in {**headers, **self._passing}.items():
            connection.putheader(name, value)
        connection.endheaders()
        broke: Optional[OSError] = None
        for piece in body():
            try:
                connection.send(piece)
            except OSError as error:  # the store may have answered early, with a refusal, and closed
                broke = error
                break
        try:
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES)
            if response.length:  # announced and not sent, or more than anything we need
                self.close()
                if response.length and len(content) < ANSWER_BYTES:
                    raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException):
            if broke is not None:
                raise broke from None
            raise
        if broke is not None or response.will_close:
            self.close()
        if broke is not None and response.status < 300:
            raise broke  # a success for a body that it hasn't got
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content)

    def _open(self, url: str) -> Tuple[http.client.HTTPConnection, str]:
        """The connection for this URL, and the request target without the query: absolute by way of an HTTP proxy."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        proxy = _proxy(parts.scheme, parts.netloc, self.proxy)
        target = parts.path or "/"
        self._passing = {}
        if proxy is not None and parts.scheme == "http":
            target, self._passing = f"http://{parts.netloc}{target}", proxy[2]
        if self._connection is not None and self._at == (parts.scheme, parts.netloc):
            return self._connection, target
        self.close()
        via_host, via_port, via_headers = proxy or (host, port, {})
        if parts.scheme == "https":
            context = trust(self.ca_pem)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                via_host, via_port, timeout=self.timeout_s, context=context
            )
            if proxy is not None:
                connection.set_tunnel(host, port, via_headers)
        else:
            connection = http.client.HTTPConnection(via_host, via_port, timeout=self.timeout_s)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if proxy is None:
                raise
            text = _named(error)
            # Not mended by trying again: it wants other credentials, or has a rule against this store.
            kind = NotPassed if text.startswith("Tunnel connection failed: 4") else OSError
            raise kind(f"the proxy {via_host}:{via_port}: {text}") from None
        if connection.sock is not None:
            # Headers and body are separate writes: without this, the last piece of each waits for an acknowledgement.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._at = connection, (parts.scheme, parts.netloc)
        return connection, target

    def reach(self, url: str) -> None:
        """Connect, and shake hands for https, once. Raises Unreachable, Untrusted."""
        host = urlsplit(url).hostname
        try:
            self._open(url)
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(f"{host}: {error.verify_message}") from None
        except NotPassed as error:
            raise Unreachable(f"{host}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{host}: {_named(error)}") from None
        finally:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class BodyError(OSError):
    """What is to be sent can't be read, or is no longer what it was."""


def trust(ca_pem: str) -> ssl.SSLContext:
    """The node's own authorities, and these besides (SSL_CERT_FILE and SSL_CERT_DIR are OpenSSL's own doing)."""
    context = ssl.create_default_context()
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
    return context


def scrub(text: str) -> str:
    """Words of others without queries, signatures and passwords, at most 300 characters."""
    return _USER.sub("//****@", _PAIR.sub(r"\1\2****", _QUERY.sub("?****", text)))[:300]


def _refusal(answer: Answer) -> Optional[Answered]:
    # S3 completes an upload with 200 and an <Error> in the body when it failed after the headers had gone.
    if answer.status < 300 and b"<Error>" not in answer.body[:400]:
        return None
    text = answer.body.decode("utf-8", "replace")
    code = answer.headers.get("x-ms-error-code") or _element(text, "Code")
    message = _element(text, "Message") or http.client.responses.get(answer.status, "")
    return Answered(answer.status, scrub(code), scrub(message.split("\n")[0]))


def _worth_repeating(refusal: Answered) -> bool:
    if refusal.code in NEVER_REPEATED_CODES:
        return False
    return refusal.status in REPEATED or refusal.code in REPEATED_CODES or refusal.status < 300


def _element(text: str, name: str) -> str:
    found = re.search(f"<{name}>([^<]*)", text)
    return found[1] if found else ""


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _named(error: Exception) -> str:
    """What broke, in words without a URL: http.client.InvalidURL, for one, quotes what it was given."""
    if isinstance(error, OSError):
        return scrub(error.strerror or (f"{error}" if str(error) else type(error).__name__))
    return type(error).__name__


def _proxy(scheme: str, netloc: str, given: str) -> Optional[Tuple[str, int, Dict[str, str]]]:
    """Host, port and headers of the proxy that was given, or else of https_proxy, http_proxy and no_proxy; None for none."""
    if given == "none":
        return None
    if not given:
        given = urllib.request.getproxies().get(scheme, "")
        if not given or urllib.request.proxy_bypass(netloc):
            return None
    parts = urlsplit(given if "//" in given else f"//{given}")
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return (parts.hostname or "", parts.port or 80, headers)
