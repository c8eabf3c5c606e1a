"""From `upload` of a runbook, or what a run's record keeps of it, to targets. Imports only what is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retina_runner.uploads import Target


def open_target(kind: str, options: Mapping[str, Any]) -> Target | None:
    """The target; None for kinds that the node itself serves (`host_path`). Touches nothing. Raises KeyError."""
    if kind == "directory":
        from retina_runner.uploads.directory import DirectoryTarget

        return DirectoryTarget(str(options["path"]))
    if kind == "azure_blob":
        from retina_runner.uploads.azure_blob import AzureBlobTarget

        return AzureBlobTarget(options)
    if kind == "s3":
        from retina_runner.uploads.s3 import S3Target

        return S3Target(options)
    if kind == "host_path":
        return None
    raise KeyError(kind)
