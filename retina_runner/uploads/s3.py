"""A bucket of S3 or of a store compatible with it, by boto3: Signature Version 4 always, nothing overwritten.

The pre-flight begins a multipart upload and aborts it: that takes a valid signature, the bucket and the right to write,
and leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from retina_runner.secrets import Secret
from retina_runner.uploads import (
    SINGLE_MOST_BYTES,
    Forgotten,
    Grant,
    Item,
    NotStored,
    Parcel,
    alien,
    block_bytes,
    check_clock,
    content_type,
)
from retina_runner.uploads.blocks import Block, md5_header, md5_of, send_blocks
from retina_runner.uploads.keys import Keyed
from retina_runner.uploads.s3_bucket import Bucket

READ_BYTES = 1 << 20
ATTEMPTS_BEFORE_A_RUN = 2
"""How often a call is tried in the pre-flight, where somebody waits."""


class S3Target(Keyed):
    """See `uploads.Target`. `credential` is `default` (boto3's own chain) or a secret `KEY_ID:SECRET[:TOKEN]`."""

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._bucket = Bucket(options)
        self.via = str(options.get("via") or "auto")
        self._begun: dict[str, str] = {}
        """Key to the multipart upload that is under way: what can't be listed can be gone on with all the same."""

    def describe(self) -> str:
        return str(self._bucket)

    # -- before a run ----------------------------------------------------------------------------------------------------

    def preflight(self, needed_s: float) -> None:
        key = f"{self._below}/retina-run-preflight".lstrip("/")
        client = self._bucket.connect(ATTEMPTS_BEFORE_A_RUN)
        begun = self._bucket.call("create_multipart_upload", client, Key=key)
        if begun.get("missing"):
            raise NotStored(f"there is no bucket {self._bucket.name}")
        self._bucket.call("abort_multipart_upload", client, Key=key, UploadId=begun["UploadId"])
        check_clock(str(begun.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")))

    # -- storing ---------------------------------------------------------------------------------------------------------

    def store(self, parcel: Parcel) -> str:
        key = self.key_for(parcel)
        if self._compare(key, parcel):
            return self._location(key)
        size = parcel.path.stat().st_size
        try:
            if size <= SINGLE_MOST_BYTES:
                body = parcel.path.read_bytes()
                done = self._bucket.call(
                    "put_object", Key=key, Body=body, ContentMD5=md5_header(md5_of(body)), IfNoneMatch="*",
                    Metadata=parcel.metadata, ContentType=content_type(key),
                )  # fmt: skip
            else:
                done = self._in_parts(key, parcel, size)
        except OSError as error:
            raise NotStored(f"{parcel.path}: {error.strerror}") from None
        if done.get("exists") and not self._compare(key, parcel):
            raise NotStored(f"{self._location(key)} was written by somebody else meanwhile")
        if not self._compare(key, parcel):
            raise NotStored(f"{self._location(key)} isn't there, though the store took it")
        if size > SINGLE_MOST_BYTES:
            self._sweep(key)
        return self._location(key)

    def _in_parts(self, key: str, parcel: Parcel, size: int, afresh: bool = False) -> dict[str, Any]:
        """Go on with the unfinished upload of this archive, a killed runner's or a node's, or begin one.

        One that fails is left for the next try: `retina-run upload`.
        """
        upload = self._begin(key, parcel) if afresh else self._unfinished(key, parcel)
        try:
            there = {} if afresh else self._parts(key, upload)

            def known(block: Block) -> str | None:
                # The ETag of a part is its MD5, but where the bucket encrypts by a key of its own: then it is sent again.
                tag, length = there.get(block.number + 1, ("", 0))
                return tag if (tag.strip('"'), length) == (block.md5.hex(), len(block.content)) else None

            def put(block: Block) -> str:
                done = self._bucket.call(
                    "upload_part", Key=key, UploadId=upload, PartNumber=block.number + 1, Body=block.content,
                    ContentMD5=md5_header(block.md5),
                )  # fmt: skip
                return str(done["ETag"])

            tags, _ = send_blocks(parcel.path, block_bytes(size), known, put)
            done = self._complete(key, upload, tags)
        except Forgotten:
            self._begun.pop(key, None)
            if self._compare(key, parcel):
                return {}  # it had been completed, and the answer was lost
            if afresh:
                raise
            return self._in_parts(key, parcel, size, afresh=True)
        if done.get("exists"):
            self._abort(key, upload)
        return done

    def _complete(self, key: str, upload: str, tags: Sequence[str]) -> dict[str, Any]:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        return self._bucket.call(
            "complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )

    def _parts(self, key: str, upload: str) -> dict[int, tuple[str, int]]:
        """Number to (ETag, size) of the parts that the store has; nothing where it isn't ours to ask."""
        found: dict[int, tuple[str, int]] = {}
        marker: dict[str, int] = {}
        try:
            while True:
                page = self._bucket.call("list_parts", Key=key, UploadId=upload, **marker)
                found |= {int(p["PartNumber"]): (str(p["ETag"]), int(p["Size"])) for p in page.get("Parts", ())}
                if not page.get("IsTruncated"):
                    return found
                marker = {"PartNumberMarker": int(page["NextPartNumberMarker"])}
        except Forgotten:
            raise
        except NotStored:
            return {}

    def _sweep(self, key: str) -> None:
        """Abort uploads of this key that nobody will complete: a node's that was given up."""
        try:
            for upload in self._bucket.call("list_multipart_uploads", Prefix=key).get("Uploads", ()):
                if upload["Key"] == key:
                    self._abort(key, str(upload["UploadId"]))
        except NotStored:
            pass  # it isn't everybody's right to list them

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._bucket.call("abort_multipart_upload", Key=key, UploadId=upload)
        except NotStored:
            pass  # the store's own rules for unfinished uploads take it

    def _compare(self, key: str, parcel: Parcel) -> bool:
        found = self._bucket.call("head_object", Key=key)
        if found.get("missing"):
            return False
        size = parcel.size_bytes or (parcel.path.stat().st_size if parcel.path.exists() else found["ContentLength"])
        if found["ContentLength"] != size or found.get("Metadata", {}).get("sha256") != parcel.sha256:
            raise NotStored(f"{self._location(key)} is there already, with other content; it is not overwritten")
        return True

    def _location(self, key: str) -> str:
        return f"s3://{self._bucket.name}/{key}"

    def note(self, parcel: Parcel, name: str, content: bytes) -> None:
        key = self.key_for(parcel, name)
        self._bucket.call("put_object", Key=key, Body=content, Metadata=parcel.metadata, ContentType="application/json")

    # -- nodes that store themselves -----------------------------------------------------------------------------------

    def place(self) -> dict[str, Any] | None:
        # A bucket's own host name is told by what is signed for it.
        signed = urlsplit(self._bucket.presigned("head_bucket"))
        return {"url": f"{signed.scheme}://{signed.netloc}", **self._bucket.route.for_node()}

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        key = self.key_for(parcel)
        if self._compare(key, parcel):
            return Grant(key, {"kind": "there"})
        life, size = int(life_s), parcel.size_bytes
        document: dict[str, Any] = {"sha256": parcel.sha256, **self._bucket.route.for_node()}
        if size <= SINGLE_MOST_BYTES:
            url = self._bucket.presigned(
                "put_object", life, Key=key, Metadata=parcel.metadata, ContentType=content_type(key), IfNoneMatch="*"
            )
            headers = {f"x-amz-meta-{k}": v for k, v in parcel.metadata.items()}
            document |= {
                "kind": "s3", "url": url,
                "headers": {**headers, "Content-Type": content_type(key), "If-None-Match": "*"},
            }  # fmt: skip
            return Grant(key, _secretive(document))
        upload = self._unfinished(key, parcel)
        length = block_bytes(size)
        urls = [
            self._bucket.presigned("upload_part", life, Key=key, UploadId=upload, PartNumber=number)
            for number in range(1, -(-size // length) + 1)
        ]
        document |= {"kind": "s3-parts", "parts": urls, "block_bytes": length, "upload": upload}
        return Grant(key, _secretive(document))

    def _unfinished(self, key: str, parcel: Parcel) -> str:
        """The multipart upload of this archive that was begun earlier, by this runner or another, or a new one."""
        if key not in self._begun:
            try:
                for upload in self._bucket.call("list_multipart_uploads", Prefix=key).get("Uploads", ()):
                    if upload["Key"] == key:
                        self._begun[key] = str(upload["UploadId"])
            except NotStored:
                pass  # it isn't everybody's right to list them
        return self._begun.get(key) or self._begin(key, parcel)

    def _begin(self, key: str, parcel: Parcel) -> str:
        begun = self._bucket.call(
            "create_multipart_upload", Key=key, Metadata=parcel.metadata, ContentType=content_type(key)
        )
        if begun.get("missing"):
            raise NotStored(f"there is no bucket {self._bucket.name}")
        self._begun[key] = str(begun["UploadId"])
        return self._begun[key]

    def confirm(self, parcel: Parcel, answer: Mapping[str, Any]) -> str:
        key = self.key_for(parcel)
        if answer.get("parts") and not self._compare(key, parcel):
            try:
                done = self._complete(key, answer["upload"], answer["parts"])
            except Forgotten:
                self._begun.pop(key, None)
                raise
            if done.get("exists"):
                raise NotStored(f"{self._location(key)} was written by somebody else meanwhile")
        if not self._compare(key, parcel):
            raise NotStored(f"{self._location(key)} isn't there, whatever the node says")
        return self._location(key)

    # -- getting back ----------------------------------------------------------------------------------------------------

    def listing(self, below: str) -> Iterator[tuple[str, int]]:
        token: dict[str, str] = {}
        while True:
            page = self._bucket.call("list_objects_v2", Prefix=below, **token)
            for entry in page.get("Contents", ()):
                yield str(entry["Key"]), int(entry["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, key: str) -> Iterator[bytes]:
        found = self._bucket.call("get_object", Key=key)
        if found.get("missing"):
            raise NotStored(f"{self._location(key)} isn't there")
        yield from found["Body"].iter_chunks(READ_BYTES)

    # -- forgetting ------------------------------------------------------------------------------------------------------

    def find(self, parcel: Parcel, name: str = "") -> Item | None:
        key = self.key_for(parcel, name)
        found = self._bucket.call("head_object", Key=key)
        if found.get("missing"):
            return None
        strange = alien(parcel, found.get("Metadata") or {}, bool(name))
        return Item(key, int(found["ContentLength"]), strange, str(found.get("ETag", "")))

    def remove(self, item: Item) -> None:
        # A condition (If-Match) is refused by most stores that speak S3: what is there is looked at once more instead.
        found = self._bucket.call("head_object", Key=item.key)
        if found.get("missing"):
            return
        if str(found.get("ETag", "")) != item.version:
            raise NotStored(f"{self._location(item.key)} was written anew meanwhile; it stays")
        self._bucket.call("delete_object", Key=item.key)


def _secretive(document: dict[str, Any]) -> dict[str, Any]:
    """Remember the signatures, so that no word of anybody's shows them."""
    for url in [document.get("url", ""), *document.get("parts", ())]:
        for pair in urlsplit(url).query.split("&"):
            name, _, value = pair.partition("=")
            if name.lower() in ("x-amz-signature", "x-amz-credential", "x-amz-security-token"):
                Secret(value)
    return document
