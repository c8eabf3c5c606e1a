"""A container of Azure Blob Storage: by a SAS, a connection string, or the platform's own identity.

With `If-None-Match: *` nothing is overwritten. The pre-flight writes with a condition that can't hold: a credential that
may write is told so by 412, one that may not by 403, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, quote

from retina_runner.secrets import Secret
from retina_runner.uploads import (
    SINGLE_MOST_BYTES,
    Grant,
    Item,
    NotStored,
    Parcel,
    alien,
    block_bytes,
    check_clock,
    content_type,
)
from retina_runner.uploads.azure_container import AzureContainer
from retina_runner.uploads.blocks import Block, md5_of, send_blocks
from retina_runner.uploads.keys import Keyed

GRANT_VERSION = "2021-12-02"
"""x-ms-version of the node's own requests: old enough for every store, new enough for blocks of 4,000 MiB."""


class AzureBlobTarget(Keyed):
    """See `uploads.Target`."""

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._container = AzureContainer(options)
        self.via = str(options.get("via") or "auto")

    def describe(self) -> str:
        return self._container.url

    # -- before a run ----------------------------------------------------------------------------------------------------

    def preflight(self, needed_s: float) -> None:
        from azure.core.exceptions import AzureError, HttpResponseError

        client = self._container.client()
        self._container.check_life(needed_s)
        dates: list[str] = []
        probe = client.get_blob_client("retina-run-preflight")
        try:
            probe.upload_blob(
                b"", overwrite=True, etag='"0x1"', match_condition=_only_if_unmodified(), retry_total=1,
                raw_response_hook=lambda response: dates.append(response.http_response.headers.get("Date", "")),
            )  # fmt: skip
        except HttpResponseError as error:
            headers: Any = getattr(error.response, "headers", {})
            dates.append(headers.get("Date", ""))
            if error.status_code in (401, 403):  # perhaps for no other reason than that
                check_clock(next((d for d in dates if d), ""))
            if error.status_code != 412:
                raise self._container.trouble(error) from None
        except AzureError as error:
            raise self._container.trouble(error) from None
        check_clock(next((d for d in dates if d), ""))

    # -- storing ---------------------------------------------------------------------------------------------------------

    def store(self, parcel: Parcel) -> str:
        from azure.core.exceptions import AzureError, ResourceExistsError, ResourceModifiedError

        key = self.key_for(parcel)
        blob = self._container.client().get_blob_client(key)
        location = f"{self._container.url}/{quote(key)}"
        if self._compare(blob, parcel, location):
            return location
        try:
            if parcel.path.stat().st_size <= SINGLE_MOST_BYTES:
                self._at_once(blob, parcel, content_type(key))
            else:
                self._in_blocks(blob, parcel, content_type(key))
        except (ResourceExistsError, ResourceModifiedError):
            if self._compare(blob, parcel, location):
                return location
            raise NotStored(f"{location} is there already, and the credential may not compare it") from None
        except AzureError as error:
            raise self._container.trouble(error) from None
        except OSError as error:
            raise NotStored(f"{parcel.path}: {error.strerror}") from None
        self._compare(blob, parcel, location)
        return location

    def _at_once(self, blob: Any, parcel: Parcel, media_type: str) -> None:
        from azure.storage.blob import ContentSettings

        content = parcel.path.read_bytes()
        settings = ContentSettings(media_type, content_md5=bytearray(md5_of(content)))
        blob.upload_blob(
            content, length=len(content), overwrite=False, metadata=parcel.metadata, validate_content=True,
            content_settings=settings,
        )  # fmt: skip

    def _in_blocks(self, blob: Any, parcel: Parcel, media_type: str, afresh: bool = False) -> None:
        """Send the blocks that the store hasn't got yet, of a killed runner or of a node, and have them be the archive."""
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import BlobBlock, ContentSettings

        there = {} if afresh else self._uncommitted(blob)

        def known(block: Block) -> str | None:
            return block.name if there.get(block.name) == len(block.content) else None

        def put(block: Block) -> str:
            blob.stage_block(block.name, block.content, length=len(block.content), validate_content=True)
            return block.name

        names, md5 = send_blocks(parcel.path, block_bytes(parcel.path.stat().st_size), known, put)
        try:
            blob.commit_block_list(
                [BlobBlock(name) for name in names], metadata=parcel.metadata, match_condition=MatchConditions.IfMissing,
                content_settings=ContentSettings(media_type, content_md5=bytearray(md5)),
            )  # fmt: skip
        except HttpResponseError as error:
            if getattr(error, "error_code", "") != "InvalidBlockList" or afresh:
                raise
            self._in_blocks(blob, parcel, media_type, afresh=True)  # it has forgotten what it had confirmed

    def _uncommitted(self, blob: Any) -> dict[str, int]:
        """Name to size of the blocks that the store has kept; nothing where the credential may not ask."""
        from azure.core.exceptions import HttpResponseError

        try:
            _, blocks = blob.get_block_list("uncommitted")
        except HttpResponseError:
            return {}
        return {str(block.id): int(block.size) for block in blocks}

    def _compare(self, blob: Any, parcel: Parcel, location: str) -> bool:
        """Whether the store has exactly this; False also where it can't be asked. Raises NotStored for something else."""
        from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError

        try:
            found = blob.get_blob_properties()
        except ResourceNotFoundError as error:
            if getattr(error, "error_code", "") == "ContainerNotFound":
                raise self._container.trouble(error) from None
            return False
        except HttpResponseError as error:
            if error.status_code == 403:
                return False  # a write-only SAS; each block was confirmed by its MD5
            raise self._container.trouble(error) from None
        except AzureError as error:
            raise self._container.trouble(error) from None
        size = parcel.size_bytes or (parcel.path.stat().st_size if parcel.path.exists() else found.size)
        if found.size != size or (found.metadata or {}).get("sha256") != parcel.sha256:
            raise NotStored(f"{location} is there already, with other content; it is not overwritten")
        return True

    def note(self, parcel: Parcel, name: str, content: bytes) -> None:
        from azure.core.exceptions import AzureError
        from azure.storage.blob import ContentSettings

        blob = self._container.client().get_blob_client(self.key_for(parcel, name))
        try:
            blob.upload_blob(
                content, overwrite=True, metadata=parcel.metadata, content_settings=ContentSettings("application/json")
            )
        except AzureError as error:
            raise self._container.trouble(error) from None

    # -- nodes that store themselves -----------------------------------------------------------------------------------

    def place(self) -> dict[str, Any] | None:
        if not self._container.can_sign():
            return None
        return {"url": self._container.origin, **self._container.route.for_node()}

    def grant(self, parcel: Parcel, life_s: float) -> Grant | None:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        if not self._container.can_sign():
            return None
        client = self._container.client()
        key = self.key_for(parcel)
        if self._compare(client.get_blob_client(key), parcel, f"{self._container.url}/{quote(key)}"):
            return Grant(key, {"kind": "there"})
        sas = generate_blob_sas(
            client.account_name, client.container_name, key, permission=BlobSasPermissions(create=True, write=True),
            expiry=datetime.now(timezone.utc) + timedelta(seconds=life_s), **self._container.signing(life_s),
        )  # fmt: skip
        Secret(parse_qs(sas).get("sig", [""])[0])
        size = parcel.size_bytes
        return Grant(key, {
            "kind": "azure", "url": f"{self._container.url}/{quote(key)}?{sas}", "version": GRANT_VERSION,
            "block_bytes": block_bytes(size), "single_most_bytes": SINGLE_MOST_BYTES,
            "content_type": content_type(key), **self._container.route.for_node(),
            "headers": {f"x-ms-meta-{k}": v for k, v in parcel.metadata.items()}, "sha256": parcel.sha256,
        })  # fmt: skip

    def confirm(self, parcel: Parcel, answer: Mapping[str, Any]) -> str:
        key = self.key_for(parcel)
        location = f"{self._container.url}/{quote(key)}"
        if not self._compare(self._container.client().get_blob_client(key), parcel, location):
            raise NotStored(f"{location} isn't there, whatever the node says")
        return location

    # -- getting back ----------------------------------------------------------------------------------------------------

    def listing(self, below: str) -> Iterator[tuple[str, int]]:
        from azure.core.exceptions import AzureError

        try:
            for blob in self._container.client().list_blobs(name_starts_with=below):
                yield blob.name, int(blob.size)
        except AzureError as error:
            raise self._container.trouble(error) from None

    def read(self, key: str) -> Iterator[bytes]:
        from azure.core.exceptions import AzureError

        try:
            yield from self._container.client().download_blob(key, max_concurrency=1).chunks()
        except AzureError as error:
            raise self._container.trouble(error) from None

    # -- forgetting ------------------------------------------------------------------------------------------------------

    def find(self, parcel: Parcel, name: str = "") -> Item | None:
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        key = self.key_for(parcel, name)
        try:
            found = self._container.client().get_blob_client(key).get_blob_properties()
        except ResourceNotFoundError as error:
            if getattr(error, "error_code", "") == "ContainerNotFound":
                raise self._container.trouble(error) from None
            return None
        except AzureError as error:
            raise self._container.trouble(error) from None
        return Item(key, int(found.size), alien(parcel, found.metadata or {}, bool(name)), str(found.etag))

    def remove(self, item: Item) -> None:
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        try:
            self._container.client().get_blob_client(item.key).delete_blob(
                etag=item.version, match_condition=_only_if_unmodified()
            )
        except ResourceNotFoundError:
            return
        except AzureError as error:
            raise self._container.trouble(error) from None


def _only_if_unmodified() -> Any:
    from azure.core import MatchConditions

    return MatchConditions.IfNotModified
