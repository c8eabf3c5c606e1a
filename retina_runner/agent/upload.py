"""A node stores its archive itself: one grant, one object, blocks that are each confirmed by their MD5, and a memory.

The grant (JSON on stdin) holds signed URLs for this one object, and nothing else that opens anything. Which blocks the
store has confirmed is written beside the archive, without a URL: another grant continues where this one ended. What is
sent is hashed again on the way, and only committed when it is the archive that the grant speaks of.

    azure      {"url", "headers", "version", "content_type", "block_bytes", "single_most_bytes"}   Put Blob, or Put Block and Put Block List
    s3         {"url", "headers"}                                                  one presigned PUT
    s3-parts   {"parts": [url, ...], "block_bytes", "upload"}                      presigned UploadParts; the runner completes
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional
from urllib.parse import quote, urlsplit

from retina_runner.agent.web import Answered, Body, BodyError, Unreachable, Untrusted, Web
from retina_runner.agent.workspace import write_whole

PIECE_BYTES = 1 << 18
FORGOTTEN = frozenset({"InvalidBlockList", "InvalidBlockId", "NoSuchUpload", "InvalidPart"})
TAKEN = frozenset({"BlobAlreadyExists", "PreconditionFailed", "UnauthorizedBlobOverwrite"})
KINDS = ("azure", "s3", "s3-parts")


class GrantError(Exception):
    """The grant isn't one; the text says what it lacks, not what it holds."""


class _NotTheArchive(Exception):
    """What lies on the node isn't what the runner knows about."""


def upload(path: Path, grant: Mapping[str, Any], deadline_s: float) -> Dict[str, Any]:
    """Store the archive with this grant, giving up after about `deadline_s`. `state` of the answer says what comes next:

    stored (or, for s3-parts, all parts are there: `parts` has their ETags), exists (something is under that name; the
    runner compares), expired (401 or 403: a fresh grant continues), forgotten (the store has lost what it confirmed, a
    second time: begin anew), unreachable (this node never got through), later (it did, and gave up), refused (no retry
    helps). Raises GrantError, OSError.
    """
    if grant.get("kind") == "there":
        return {"ok": True, "state": "exists", "why": "it was there", "size_bytes": path.stat().st_size}
    if grant.get("kind") not in KINDS:
        raise GrantError(f"a grant of kind {grant.get('kind')!r}; this agent knows {', '.join(KINDS)}")
    try:
        errand = _Errand(path, grant, deadline_s)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GrantError(
            f"the grant lacks {error}" if isinstance(error, KeyError) else "the grant is malformed"
        ) from None
    with _Alone(errand.memory.with_suffix(".lock")):
        return errand.run()


class _Errand:
    def __init__(self, path: Path, grant: Mapping[str, Any], deadline_s: float):
        self.path, self.grant, self.kind = path, grant, str(grant["kind"])
        self.size = path.stat().st_size
        first = str(grant["parts"][0] if self.kind == "s3-parts" else grant["url"])
        where = urlsplit(first)
        self.block = int(grant.get("block_bytes") or 0) or (8 << 20)
        self.single = self.kind == "s3" or (
            self.kind == "azure" and self.size <= int(grant.get("single_most_bytes", 32 << 20))
        )
        if self.kind == "s3-parts" and len(grant["parts"]) != -(-self.size // self.block):
            raise ValueError("parts")
        # Blocks of another object, size or upload are of no use.
        self.identity = [
            self.kind, where.netloc, where.path, self.size, self.block, str(grant.get("upload", "")),
            str(grant.get("sha256", "")),
        ]  # fmt: skip
        tag = hashlib.sha256(f"{where.netloc}{where.path}".encode()).hexdigest()[:12]
        self.memory = path.parent.parent / f"upload-{tag}.json"
        self.web = Web(
            str(grant.get("ca_pem") or ""), str(grant.get("proxy") or ""), give_up_at=time.monotonic() + deadline_s
        )
        self.content_type = str(grant.get("content_type") or "application/octet-stream")
        self.buffer = bytearray(PIECE_BYTES)
        self.skipped = self.sent = 0

    def run(self) -> Dict[str, Any]:
        begun = time.monotonic()
        known = {} if self.grant.get("afresh") else self._known()
        try:
            if "stored" in known:  # by a call whose connection broke, and that went on alone
                answer: Dict[str, Any] = {"state": "exists", "why": "an earlier call stored it"}
            else:
                answer = self._single() if self.single else self._blocks(dict(known.get("done") or {}))
        except Answered as refusal:
            answer = self._told(refusal)
        except Untrusted as error:
            answer = {"state": "refused", "why": f"certificate: {error}"}
        except Unreachable as error:
            answer = {"state": "later" if self.web.reached else "unreachable", "why": str(error)}
        except (_NotTheArchive, BodyError) as error:
            answer = {"state": "refused", "why": str(error)}
        finally:
            self.web.close()
        answer["ok"] = answer["state"] in ("stored", "exists")
        return {
            **answer, "size_bytes": self.size, "blocks_sent": self.sent, "blocks_skipped": self.skipped,
            "repeats": self.web.repeats, "seconds": round(time.monotonic() - begun, 3),
        }  # fmt: skip

    def _told(self, refusal: Answered) -> Dict[str, Any]:
        why = f"{refusal.status} {refusal.code} {refusal.message}".replace("  ", " ").strip()
        if refusal.status == 412 or refusal.code in TAKEN:
            state = "exists"
        elif refusal.status in (401, 403) or refusal.code == "ExpiredToken":
            state = "expired"
        elif refusal.code in FORGOTTEN:
            state = "forgotten"
        elif refusal.status in (408, 429) or refusal.status >= 500:
            state = "later"
        else:
            state = "refused"
        return {"state": state, "why": why, "status": refusal.status, "code": refusal.code}

    # -- one request -------------------------------------------------------------------------------------------------

    def _single(self) -> Dict[str, Any]:
        md5, sha = _md5(), hashlib.sha256()
        for piece in self._pieces(0, self.size):
            md5.update(piece)
            sha.update(piece)
        self._must_be(sha.hexdigest())
        headers = {"Content-Length": str(self.size), "Content-MD5": _base64(md5.digest())}
        if self.kind == "azure":
            headers.update({
                "x-ms-version": str(self.grant["version"]), "x-ms-blob-type": "BlockBlob",
                "Content-Type": self.content_type, "If-None-Match": "*",
            })  # fmt: skip
        headers.update(self._given_headers())
        self.web.send("PUT", str(self.grant["url"]), lambda: self._pieces(0, self.size), headers)
        self.sent = 1
        self._remember(stored=True)
        return {"state": "stored", "md5": md5.hexdigest()}

    # -- many ----------------------------------------------------------------------------------------------------------

    def _blocks(self, done: Dict[str, Any], afresh: bool = False) -> Dict[str, Any]:
        whole, sha = _md5(), hashlib.sha256()
        ids: List[str] = []
        tags: List[str] = []
        for number, offset in enumerate(range(0, self.size, self.block)):
            length = min(self.block, self.size - offset)
            md5 = _md5()
            for piece in self._pieces(offset, length):
                md5.update(piece)
                whole.update(piece)
                sha.update(piece)
            ids.append(_base64(f"{number:06d}-{md5.hexdigest()}".encode()))  # Azure: all of one length
            known = done.get(str(number))
            if known is not None and known["block"] == ids[-1]:
                self.skipped += 1
                tags.append(known["etag"])
                continue
            answer = self._send_block(number, ids[-1], offset, length, md5.digest())
            self.sent += 1
            tags.append(answer.get("etag", ""))
            done[str(number)] = {"block": ids[-1], "etag": tags[-1]}
            self._remember(done=done)
        self._must_be(sha.hexdigest())
        if self.kind == "s3-parts":
            return {"state": "stored", "parts": tags, "upload": self.grant["upload"], "md5": whole.hexdigest()}
        try:
            self._commit(ids, whole.digest())
        except Answered as refusal:
            if refusal.code not in FORGOTTEN or afresh:
                raise
            # The store has lost blocks that it had confirmed (a crash, or their week is over): once more, all of them.
            return self._blocks({}, afresh=True)
        self._remember(stored=True)
        return {"state": "stored", "md5": whole.hexdigest()}

    def _send_block(self, number: int, block: str, offset: int, length: int, digest: bytes) -> Mapping[str, str]:
        headers = {"Content-Length": str(length), "Content-MD5": _base64(digest)}
        if self.kind == "azure":
            headers["x-ms-version"] = str(self.grant["version"])
            url = f"{self.grant['url']}&comp=block&blockid={quote(block, safe='')}"
        else:
            url = str(self.grant["parts"][number])
        return self.web.send("PUT", url, lambda: self._pieces(offset, length), headers).headers

    def _commit(self, ids: List[str], digest: bytes) -> None:
        listed = "".join(f"<Latest>{block}</Latest>" for block in ids)
        xml = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {
            "Content-Length": str(len(xml)), "Content-Type": "application/xml", "If-None-Match": "*",
            "x-ms-version": str(self.grant["version"]), "x-ms-blob-content-md5": _base64(digest),
            "x-ms-blob-content-type": self.content_type, **self._given_headers(),
        }  # fmt: skip
        self.web.send("PUT", f"{self.grant['url']}&comp=blocklist", lambda: [xml], headers)

    def _remember(self, **what: Any) -> None:
        write_whole(self.memory, {"of": self.identity, **what})

    def _known(self) -> Dict[str, Any]:
        """What earlier calls have written down of this object: the blocks that are `done`, or that all of it is `stored`."""
        try:
            known = json.loads(self.memory.read_bytes())
            return dict(known) if known["of"] == self.identity else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    # -- the file ------------------------------------------------------------------------------------------------------

    def _given_headers(self) -> Dict[str, str]:
        return {str(k): str(v) for k, v in dict(self.grant.get("headers") or {}).items()}

    def _must_be(self, sha256: str) -> None:
        wanted = str(self.grant.get("sha256") or "")
        if wanted and sha256 != wanted:
            raise _NotTheArchive(f"{self.path.name} on the node has another sha256 than when it was finished")

    def _pieces(self, offset: int, length: int) -> Body:
        """Views of one buffer: each is only good until the next."""
        view = memoryview(self.buffer)
        try:
            with open(str(self.path), "rb", buffering=0) as file:
                file.seek(offset)
                while length:
                    got = file.readinto(view[: min(len(view), length)])
                    if not got:
                        raise BodyError(f"{self.path.name} became shorter while it was sent")
                    yield view[:got]
                    length -= got
        except BodyError:
            raise
        except OSError as error:
            raise BodyError(f"{self.path}: {error.strerror}") from error


class _Alone:
    """One errand for an object at a time: a connection that broke may have left its upload running."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor: Optional[int] = None

    def __enter__(self) -> None:
        self._descriptor = os.open(str(self._path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)


def reach(places: List[Mapping[str, Any]], each_s: float = 5.0) -> List[Dict[str, Any]]:
    """Which of these origins (`url`, perhaps `ca_pem` and `proxy`) this node gets through to, all of them at once.

    Nothing but a handshake is sent. `why` is nothing, or what is in the way.
    """

    def one(place: Mapping[str, Any]) -> Dict[str, Any]:
        web = Web(str(place.get("ca_pem") or ""), str(place.get("proxy") or ""), timeout_s=each_s)
        try:
            web.reach(str(place["url"]))
            return {"ok": True, "why": ""}
        except (Unreachable, Untrusted) as error:
            return {"ok": False, "why": str(error)}

    with ThreadPoolExecutor(max(1, len(places))) as pool:
        return list(pool.map(one, places))


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # a FIPS kernel refuses it otherwise


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
