"""A container of Azure Blob Storage as somebody: its client, whatever the credential is, and what the credential may."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

from retina_runner.secrets import Secret, SecretError, read_secret, redact
from retina_runner.uploads import BLOCK_BYTES, SINGLE_MOST_BYTES, NotStored
from retina_runner.uploads.route import Route


class AzureContainer:
    """`url` has no signature. What goes wrong is told as NotStored, without secrets."""

    def __init__(self, options: Mapping[str, Any]):
        self.url = str(options["container_url"]).rstrip("/")
        self.route = Route.of(options)
        self._credential = str(options.get("credential") or "default")
        self._secret: Secret | None = None
        self._made: Any = None

    @property
    def origin(self) -> str:
        return "{0.scheme}://{0.netloc}".format(urlsplit(self.url))

    @property
    def _name(self) -> str:
        return urlsplit(self.url).path.strip("/").rpartition("/")[2]

    def client(self) -> Any:
        if self._made is None:
            for noisy in ("azure", "urllib3"):
                logging.getLogger(noisy).setLevel(logging.WARNING)  # at DEBUG they print signatures
            try:
                self._made = self._connect()
            except SecretError as error:
                raise NotStored(str(error)) from None
            except ValueError as error:
                raise NotStored(redact(str(error))) from None
        return self._made

    def settings(self) -> dict[str, Any]:
        from azure.storage.blob import ExponentialRetry

        settings: dict[str, Any] = {
            "max_single_put_size": SINGLE_MOST_BYTES, "max_block_size": BLOCK_BYTES,
            "retry_policy": ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=5),
            "connection_timeout": 20, "read_timeout": 120,
        }  # fmt: skip
        authorities, proxies = self.route.authorities(), self.route.proxies()
        if authorities:
            settings["connection_verify"] = authorities
        if proxies is not None:
            settings["proxies"] = proxies
        return settings

    def _connect(self) -> Any:
        from azure.storage.blob import ContainerClient

        settings = self.settings()
        if self._credential == "default":
            try:
                from azure.identity import DefaultAzureCredential
            except ImportError:
                raise NotStored("credential: default needs azure-identity: pip install 'retina-run[azure]'") from None
            return ContainerClient.from_container_url(self.url, credential=DefaultAzureCredential(), **settings)
        self._secret = read_secret(self._credential)
        text = self._secret.reveal()
        if "AccountKey=" in text or "SharedAccessSignature=" in text:
            for part in text.split(";"):  # each of them alone is as secret as the whole
                if part.startswith(("AccountKey=", "SharedAccessSignature=")):
                    Secret(part.partition("=")[2])
            return ContainerClient.from_connection_string(text, self._name, **settings)
        text = text.lstrip("?")
        if "sig" not in parse_qs(text):
            raise NotStored(f"{self._credential}: neither a SAS, which has a sig=, nor a connection string")
        Secret(parse_qs(text)["sig"][0])
        return ContainerClient.from_container_url(f"{self.url}?{text}", **settings)

    def trouble(self, error: Exception) -> NotStored:
        code = str(getattr(error, "error_code", "") or "")
        status = getattr(error, "status_code", None)
        if status == 404 and code in ("ContainerNotFound", ""):
            return NotStored(f"there is no container {self._name}")
        if status in (401, 403):
            return NotStored(f"refused ({code or status}): has the credential expired, or does it lack a right?")
        said = str(getattr(error, "message", "") or error).splitlines()[0] if str(error) else type(error).__name__
        return NotStored(redact(f"{said} {f'({code})' if code else ''}".strip()))

    def check_life(self, needed_s: float) -> None:
        """A SAS says itself how long it lives and what it may."""
        if self._secret is None:
            return
        text = self._secret.reveal()
        if "AccountKey=" in text:
            return
        given = parse_qs(text.partition("SharedAccessSignature=")[2] or text.lstrip("?"))
        expiry = given.get("se", [""])[0]
        if expiry:
            left = datetime.fromisoformat(expiry.replace("Z", "+00:00"))
            left = left if left.tzinfo else left.replace(tzinfo=timezone.utc)
            left_s = left.timestamp() - time.time()
            if left_s <= 0:
                raise NotStored(f"the SAS expired at {expiry}")
            if left_s < needed_s:
                raise NotStored(f"the SAS expires at {expiry}, and the run needs it for {needed_s:.0f} s")
        rights = given.get("sp", ["cw"])[0]
        if "w" not in rights:  # c alone takes single requests, and no blocks
            raise NotStored(f"the SAS may not write (sp={rights}); it needs c and w")

    def can_sign(self) -> bool:
        """Only an account's key or an identity can sign for one blob: a SAS can't sign a narrower one."""
        return self._credential == "default" or bool(self.account_key())

    def account_key(self) -> str:
        return str(getattr(getattr(self.client(), "credential", None), "account_key", None) or "")

    def signing(self, life_s: float) -> dict[str, Any]:
        """What `generate_blob_sas` signs with, for so long: the account's key, or one that it gives an identity."""
        if self._credential != "default":
            return {"account_key": self.account_key()}
        from azure.core.exceptions import AzureError
        from azure.storage.blob import BlobServiceClient

        now = datetime.now(timezone.utc)
        try:
            service = BlobServiceClient(self.origin, self.client().credential, **self.settings())
            key = service.get_user_delegation_key(now - timedelta(minutes=5), now + timedelta(seconds=life_s + 300))
        except AzureError as error:  # an identity whose rights are of the container alone gets none
            raise self.trouble(error) from None
        return {"user_delegation_key": key}
