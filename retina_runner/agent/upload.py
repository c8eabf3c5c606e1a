"""One archive from the node straight to a store, by a grant: signed URLs, nothing else. Standard library only.

Blocks that the store has taken are remembered in a file beside the archive (no signature in it), so that a broken
connection, a restarted agent or an expired grant costs what was under way only. A store that has forgotten blocks it had
taken gets all of them again, once. Sources: Put Block and Put Block List (Azure Blob REST), UploadPart (S3 API).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import os
import random
import re
import ssl
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
FORGOTTEN = ("InvalidBlockList", "InvalidPart", "NoSuchUpload")
PIECE_BYTES = 1 << 18
ANSWER_BYTES = 1 << 16
TIMEOUT_S = 60.0
MOST_PAUSE_S = 30.0


class Refused(Exception):
    """The store says no, and will again. `status` is HTTP's, 0 for none; `code` and `message` hold no signature."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(f"{code or status}: {message}")
        self.status, self.code, self.message = status, code, message


class GaveUp(Exception):
    """No success in the time there was; trying again later may help."""


def upload(archive: Path, grant: Mapping[str, Any], deadline_s: float) -> Dict[str, Any]:
    """Store the archive. Returns what happened: ok, and size, blocks, skipped, retries; or code, message, `fresh`.

    `fresh`: the grant has expired; with a new one it goes on where it was. Never raises for what a store does.
    """
    state = archive.with_name(archive.name + ".upload")
    lock = os.open(str(archive.with_name(archive.name + ".upload.lock")), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that a lost connection left behind may still be at it
        sender = _Sender(grant.get("ca_file") or None, time.monotonic() + deadline_s)
        try:
            for last in (False, True):
                try:
                    return {**_store(archive, grant, sender, state), "ok": True, "retries": sender.retries}
                except Refused as no:
                    if last or no.code not in FORGOTTEN:
                        raise
                    _forget(state)
        finally:
            sender.close()
        raise AssertionError("unreachable")
    except Refused as no:
        return {"ok": False, "code": no.code or str(no.status), "message": no.message, "fresh": no.status in (401, 403)}
    except (GaveUp, OSError) as error:
        return {"ok": False, "code": type(error).__name__, "message": scrub(error), "fresh": False, "later": True}
    finally:
        os.close(lock)


def scrub(text: object) -> str:
    """A message without any query of a URL, where signatures stand, and without user information."""
    cleaned = re.sub(r"\?[^\s\"'<>]*", "?****", str(text))
    return re.sub(r"//[^/\s@]+@", "//****@", cleaned)[:300]


def _store(archive: Path, grant: Mapping[str, Any], sender: "_Sender", state: Path) -> Dict[str, Any]:
    size = archive.stat().st_size
    kind = grant["kind"]
    if kind == "there":
        return {"how": "it was there", "size_bytes": size}
    if kind == "s3" or (kind == "azure" and size <= int(grant["single_most_bytes"])):
        return _whole(archive, grant, sender, size)
    return _in_blocks(archive, grant, sender, state, size)


def _whole(archive: Path, grant: Mapping[str, Any], sender: "_Sender", size: int) -> Dict[str, Any]:
    digest = _md5()
    for piece in _pieces(archive, 0, size):
        digest.update(piece)
    headers = {"Content-Length": str(size), "Content-MD5": _text(digest.digest()), **grant.get("headers", {})}
    if grant["kind"] == "azure":
        headers.update({"x-ms-blob-type": "BlockBlob", "x-ms-version": grant["version"], "If-None-Match": "*",
                        "Content-Type": "application/gzip"})  # fmt: skip
    sender.send("PUT", grant["url"], lambda: _pieces(archive, 0, size), headers)
    return {"how": "one request", "size_bytes": size, "md5": digest.hexdigest()}


def _in_blocks(archive: Path, grant: Mapping[str, Any], sender: "_Sender", state: Path, size: int) -> Dict[str, Any]:
    azure = grant["kind"] == "azure"
    length = int(grant["block_bytes"])
    mine = [size, grant["sha256"], length, grant.get("upload") or urlsplit(grant["url"]).path]
    done = _remembered(state, mine)
    whole, names, tags, skipped = _md5(), [], [], 0
    for number, offset in enumerate(range(0, size, length)):
        count, digest = min(length, size - offset), _md5()
        for piece in _pieces(archive, offset, count):
            digest.update(piece)
            whole.update(piece)
        name = _text(f"{number:06d}-{digest.hexdigest()}".encode())  # all of one length, as Put Block wants it
        names.append(name)
        known = done.get(str(number))
        if known and known[0] == name:
            tags.append(known[1])
            skipped += 1
            continue
        headers = {"Content-Length": str(count), "Content-MD5": _text(digest.digest())}
        if azure:
            headers["x-ms-version"] = grant["version"]
            url = f"{grant['url']}&comp=block&blockid={quote(name, safe='')}"
        else:
            url = grant["parts"][number]
        answer = sender.send("PUT", url, lambda o=offset, c=count: _pieces(archive, o, c), headers)  # type: ignore[misc]
        tags.append(answer.get("etag", ""))
        done[str(number)] = [name, tags[-1]]
        _remember(state, mine, done)
    told: Dict[str, Any] = {
        "how": "blocks",
        "size_bytes": size,
        "blocks": len(names),
        "skipped": skipped,
        "md5": whole.hexdigest(),
    }
    if azure:
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {
            "Content-Length": str(len(body)), "x-ms-version": grant["version"], "If-None-Match": "*",
            "x-ms-blob-content-md5": _text(whole.digest()), "x-ms-blob-content-type": "application/gzip",
            **grant.get("headers", {}),
        }  # fmt: skip
        sender.send("PUT", grant["url"] + "&comp=blocklist", lambda: [body], headers)
        _forget(state)
    else:
        told.update(parts=tags, upload=grant["upload"])  # the runner completes it: that takes a credential
    return told


def _remembered(state: Path, mine: List[Any]) -> Dict[str, List[str]]:
    try:
        found = json.loads(state.read_bytes())
        return dict(found["done"]) if found["of"] == mine else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(state: Path, mine: List[Any], done: Mapping[str, List[str]]) -> None:
    from retina_runner.agent.workspace import write_whole

    try:
        write_whole(state, {"of": mine, "done": done})
    except OSError:
        pass  # a full disk: the upload goes on, and a break would cost more


def _forget(state: Path) -> None:
    try:
        state.unlink()
    except FileNotFoundError:
        pass


def _pieces(path: Path, offset: int, count: int) -> Iterator[memoryview]:
    view = memoryview(bytearray(min(PIECE_BYTES, max(count, 1))))
    with open(str(path), "rb", buffering=0) as file:
        file.seek(offset)
        while count:
            got = file.readinto(view[: min(len(view), count)])
            if not got:
                raise Refused(0, "FileShrank", "the archive became shorter while it was sent")
            yield view[:got]
            count -= got


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # a check sum here; FIPS hosts refuse it otherwise


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class _Sender:
    """Requests over one kept connection, each repeated while that may help. Proxies of the environment are honoured."""

    def __init__(self, ca_file: Optional[str], stop_at: float):
        self._context = ssl.create_default_context(cafile=ca_file)
        self._stop_at = stop_at
        self._connection: Optional[http.client.HTTPConnection] = None
        self._at: Tuple[str, str] = ("", "")
        self.retries = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def send(
        self, method: str, url: str, body: Callable[[], Iterable[Any]], headers: Mapping[str, str]
    ) -> Dict[str, str]:
        """The answer's headers, in lower case. Raises Refused, GaveUp."""
        pause = 0.5
        while True:
            after = ""
            try:
                status, answer, text = self._once(method, url, body(), headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if isinstance(error, (ssl.SSLCertVerificationError, http.client.InvalidURL)):
                    raise Refused(0, type(error).__name__, scrub(error)) from None
                why = f"{type(error).__name__}: {scrub(error)}"
            else:
                if status < 300:
                    return answer
                found = re.search(r"<Code>([^<]+)", text)
                code = answer.get("x-ms-error-code") or (found[1] if found else "")
                said = re.search(r"<Message>([^<]+)", text)
                message = scrub((said[1] if said else http.client.responses.get(status, "")).split("\n")[0])
                if status not in AGAIN or code in ("FeatureNotSupported", "BlobAlreadyExists"):
                    raise Refused(status, code, message)
                why, after = f"{status} {code} {message}", answer.get("retry-after", "")
            wait = min(MOST_PAUSE_S, float(after) if after.isdigit() else pause * random.uniform(0.7, 1.3))
            if time.monotonic() + wait > self._stop_at:
                raise GaveUp(why)
            sys.stderr.write(f"again in {wait:.1f} s after {why}\n")
            self.retries += 1
            time.sleep(wait)
            pause = min(MOST_PAUSE_S, pause * 2)

    def _once(
        self, method: str, url: str, body: Iterable[Any], headers: Mapping[str, str]
    ) -> Tuple[int, Dict[str, str], str]:
        parts = urlsplit(url)
        connection = self._open(parts.scheme, parts.netloc)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        target = path if parts.scheme == "https" or not self._proxied else f"{parts.scheme}://{parts.netloc}{path}"
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", parts.netloc.rpartition("@")[2])
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        broken: Optional[OSError] = None
        try:
            for piece in body:
                connection.send(piece)
        except OSError as error:
            broken = error  # the store may have answered, a 403 say, without waiting for the rest
        try:
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            self.close()
            if broken is not None:
                raise broken from None
            raise
        if broken is not None or response.will_close or response.read(1):
            self.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, text

    def _open(self, scheme: str, place: str) -> http.client.HTTPConnection:
        if self._connection is not None and self._at == (scheme, place):
            return self._connection
        self.close()
        timeout = max(1.0, min(TIMEOUT_S, self._stop_at - time.monotonic()))
        host = urlsplit(f"{scheme}://{place}")
        proxy = getproxies().get(scheme, "") if not proxy_bypass(host.hostname or "") else ""
        self._proxied = bool(proxy)
        at = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else host
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(at.hostname or "", at.port, timeout=timeout, context=self._context)
            if proxy:
                connection.set_tunnel(host.hostname or "", host.port or 443)
        else:
            connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=timeout)
        self._connection, self._at = connection, (scheme, place)
        return connection
