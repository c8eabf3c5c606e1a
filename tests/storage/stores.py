"""One shape for every store, so that one suite runs over all of them: what a runbook says of it, and a look inside."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from retina_runner.bundle import agent_bundle
from retina_runner.executors.local import LocalLink
from retina_runner.uploads import Parcel, Target
from retina_runner.uploads.opening import open_target
from tests.storage.servers import Azurite, Swift

MIB = 1 << 20


class Store(Protocol):
    """A container, bucket or folder of this test's own. `options` and `environment` are what a user would give."""

    kind: str
    name: str
    environment: dict[str, str]
    secret: str

    def options(self, port: int = 0, **more: Any) -> dict[str, Any]: ...

    def names(self) -> list[str]: ...

    def content(self, key: str) -> bytes: ...

    def metadata(self, key: str) -> dict[str, str]: ...

    def put(self, key: str, content: bytes) -> None:
        """Somebody else's object."""
        ...


@dataclass
class FolderStore:
    folder: Path
    kind: str = "directory"
    name: str = "folder"
    environment: dict[str, str] = field(default_factory=dict)
    secret: str = ""

    def options(self, port: int = 0, **more: Any) -> dict[str, Any]:
        return {"path": str(self.folder)}

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def content(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def metadata(self, key: str) -> dict[str, str]:
        return {}

    def put(self, key: str, content: bytes) -> None:
        (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / key).write_bytes(content)


class AzureStore:
    kind = "azure_blob"

    def __init__(self, server: Azurite):
        from azure.storage.blob import BlobServiceClient

        settings: dict[str, Any] = {"connection_verify": str(server.tls.authority)} if server.tls else {}

        self.server, self.name = server, f"c{secrets.token_hex(6)}"
        self._service = BlobServiceClient.from_connection_string(server.connection_string(), **settings)
        self._container = self._service.create_container(self.name)
        self.variable = f"RR_TEST_AZURE_{self.name.upper()}"
        self.environment = {self.variable: server.connection_string()}
        self.secret = server.key

    def options(self, port: int = 0, **more: Any) -> dict[str, Any]:
        if port:
            self.environment[self.variable] = self.server.connection_string(port)
            os.environ[self.variable] = self.environment[self.variable]
        return {
            "container_url": f"{self.server.url(port)}/{self.name}", "credential": f"env:{self.variable}", **more,
        }  # fmt: skip

    def sas(self, permission: str, expires_in_s: float = 3600.0) -> str:
        from datetime import datetime, timedelta, timezone

        from azure.storage.blob import generate_container_sas

        return generate_container_sas(
            self.server.account, self.name, account_key=self.server.key, permission=permission,
            expiry=datetime.now(timezone.utc) + timedelta(seconds=expires_in_s),
        )  # fmt: skip

    def names(self) -> list[str]:
        return sorted(blob.name for blob in self._container.list_blobs())

    def content(self, key: str) -> bytes:
        return bytes(self._container.download_blob(key).readall())

    def metadata(self, key: str) -> dict[str, str]:
        return dict(self._container.get_blob_client(key).get_blob_properties().metadata)

    def put(self, key: str, content: bytes) -> None:
        self._container.upload_blob(key, content)


class S3Store:
    kind = "s3"

    def __init__(self, server: Swift):
        import boto3
        from botocore.config import Config

        self.server, self.name = server, f"b{secrets.token_hex(6)}"
        self._client = boto3.client(
            "s3", endpoint_url=server.url(), aws_access_key_id=server.access_key, region_name="us-east-1",
            aws_secret_access_key=server.secret_key, verify=str(server.tls.authority) if server.tls else None,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )  # fmt: skip
        self._client.create_bucket(Bucket=self.name)
        self.variable = f"RR_TEST_S3_{self.name.upper()}"
        self.environment = {self.variable: f"{server.access_key} {server.secret_key}"}
        self.secret = server.secret_key

    def options(self, port: int = 0, **more: Any) -> dict[str, Any]:
        return {
            "bucket": self.name, "endpoint_url": self.server.url(port), "region": "us-east-1",
            "credential": f"env:{self.variable}", **more,
        }  # fmt: skip

    def names(self) -> list[str]:
        return sorted(entry["Key"] for entry in self._client.list_objects_v2(Bucket=self.name).get("Contents", ()))

    def content(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def metadata(self, key: str) -> dict[str, str]:
        return dict(self._client.head_object(Bucket=self.name, Key=key)["Metadata"])

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def unfinished(self) -> list[str]:
        found = self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())
        return [entry["UploadId"] for entry in found]


def target_of(store: Store, **options: Any) -> Target:
    found = open_target(store.kind, store.options(**options))
    assert found is not None
    return found


def write_random(path: Path, size: int) -> Parcel:
    """A file of random bytes, so that neither compression nor deduplication flatters anybody."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        left = size
        while left:
            chunk = os.urandom(min(left, MIB))
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    return Parcel("nightly-20261125030000UTC", "web1", path, digest.hexdigest(), size)


class Node:
    """A node with one finished archive, reached as the runner reaches it: through a link and the agent's verbs."""

    def __init__(self, folder: Path, size: int):
        self.directory = folder / "work" / "run-node"
        (self.directory / "archive").mkdir(parents=True)
        os.chmod(folder / "work", 0o700)
        self.parcel = write_random(self.directory / "archive" / "nightly-web1-20261125030000UTC.tar.gz", size)
        self.path = self.parcel.path
        self.link = LocalLink(str(folder / "work"))
        self.link.install(agent_bundle())
        self.agent = folder / "work" / agent_bundle().name

    def argv(self, deadline_s: float = 120) -> list[str]:
        """The command that the link runs, for tests that end it before it is done."""
        return [
            sys.executable, "-I", str(self.agent), "upload", str(self.directory), "--name", self.path.name,
            "--deadline", str(deadline_s),
        ]  # fmt: skip

    def call(self, *words: str, **options: Any) -> dict[str, Any]:
        return self.link.call(*words, **options)

    @property
    def archive(self) -> Mapping[str, Any]:
        """What the agent says of it."""
        return {"name": self.path.name, "sha256": self.parcel.sha256, "size_bytes": self.parcel.size_bytes}
