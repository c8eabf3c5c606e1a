"""A bucket as somebody: boto3's client for it, and its answers in our words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from retina_runner.secrets import Secret, SecretError, read_secret, redact
from retina_runner.uploads import Forgotten, NotStored
from retina_runner.uploads.route import Route

ATTEMPTS = 7
"""How often a call is tried, with pauses that double: for about half a minute, so that a store may start anew."""


class Bucket:
    """`options` are the target's; `credential` is `default` (boto3's own chain) or a secret `KEY_ID:SECRET[:TOKEN]`."""

    def __init__(self, options: Mapping[str, Any]):
        self.name = str(options["bucket"])
        self.route = Route.of(options)
        self._options = options
        self._made: Any = None

    def __str__(self) -> str:
        endpoint = self._options.get("endpoint_url")
        return f"s3://{self.name}" + (f" at {endpoint}" if endpoint else "")

    def client(self) -> Any:
        if self._made is None:
            self._made = self.connect(ATTEMPTS)
        return self._made

    def connect(self, attempts: int) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise NotStored("s3 needs boto3: pip install 'retina-run[s3]'") from None
        for noisy in ("boto3", "botocore", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.WARNING)  # at DEBUG they print signatures
        authorities, proxies = self.route.authorities(), self.route.proxies()
        endpoint = self._options.get("endpoint_url")
        path_style = self._options.get("path_style", bool(endpoint))
        config = Config(
            signature_version="s3v4", s3={"addressing_style": "path" if path_style else "auto"}, connect_timeout=20,
            read_timeout=120, retries={"total_max_attempts": attempts, "mode": "standard"}, proxies=proxies,
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        try:
            return boto3.client(
                "s3", region_name=self._options.get("region") or ("us-east-1" if endpoint else None),
                endpoint_url=endpoint, verify=authorities, config=config, **self._identity(),
            )  # fmt: skip
        except SecretError as error:
            raise NotStored(str(error)) from None
        except Exception as error:  # botocore's own, and ValueError for an endpoint that is none
            raise NotStored(redact(str(error))) from None

    def _identity(self) -> dict[str, str]:
        reference = str(self._options.get("credential") or "default")
        if reference == "default":
            return {}
        text = read_secret(reference).reveal()
        parts = text.split() if len(text.split()) > 1 else text.split(":", 2)  # blanks, for ids that hold colons
        if not 2 <= len(parts) <= 3:
            raise SecretError(
                f"{reference}: expected KEY_ID:SECRET or KEY_ID:SECRET:TOKEN, or blanks instead of the colons"
            )
        for part in parts[1:]:
            Secret(part)
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        return dict(zip(names, parts, strict=False))

    def call(self, what: str, client: Any = None, **arguments: Any) -> dict[str, Any]:
        """One call; a missing key is {"missing": True}, what is there already {"exists": True}. Raises NotStored."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = getattr(client or self.client(), what)(Bucket=self.name, **arguments)
            return answer
        except ClientError as error:
            said = error.response.get("Error", {})
            code = str(said.get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in ("404", "NoSuchKey", "NotFound"):
                return {"missing": True}
            if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return {"exists": True}
            if code == "NoSuchBucket":
                raise NotStored(f"there is no bucket {self.name}") from None
            if code in ("InvalidPart", "NoSuchUpload"):
                raise Forgotten(f"the store has forgotten parts that it had confirmed ({code})") from None
            if code == "RequestTimeTooSkewed":
                raise NotStored("this machine's clock is too far off the store's") from None
            if status in (401, 403):
                raise NotStored(
                    f"refused ({code or status}): has the credential expired, or does it lack a right?"
                ) from None
            raise NotStored(redact(f"{said.get('Message') or code or error} ({code or status})")) from None
        except BotoCoreError as error:
            raise NotStored(redact(str(error))) from None

    def presigned(self, what: str, life_s: int = 3600, **arguments: Any) -> str:
        """The URL of one call that whoever has it may make, for so long. Raises NotStored; nobody is asked."""
        from botocore.exceptions import BotoCoreError

        parameters = {"Bucket": self.name, **arguments}
        try:
            return str(self.client().generate_presigned_url(what, Params=parameters, ExpiresIn=life_s))
        except BotoCoreError as error:
            raise NotStored(redact(str(error))) from None
