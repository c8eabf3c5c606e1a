"""How a store is reached, by runner and nodes alike: which authorities are trusted, and by way of which proxy.

`proxy` of a target is a URL without credentials, a reference to one (`env:NAME`, `file:PATH`), or `none`. Without it, each
machine goes by its own environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY). A proxy's credentials are as secret as a store's.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from retina_runner.secrets import Secret, SecretError, read_secret
from retina_runner.uploads import NotStored

NO_PROXY = "none"


@dataclass(frozen=True)
class Route:
    ca_file: str = ""
    proxy: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Route:
        """Of a target's options. Touches nothing."""
        return cls(str(options.get("ca_file") or ""), str(options.get("proxy") or ""))

    def pem(self) -> str:
        """The certificates of `ca_file`, for a node that hasn't got it; empty for none. Raises NotStored."""
        if not self.ca_file:
            return ""
        try:
            return Path(self.ca_file).expanduser().read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is no PEM file"
            raise NotStored(f"ca_file {self.ca_file}: {why}") from None

    def authorities(self) -> str | None:
        """The path of `ca_file` for an HTTP library; None for this machine's own authorities. Raises NotStored."""
        return str(Path(self.ca_file).expanduser()) if self.pem() else None

    def proxies(self) -> dict[str, str] | None:
        """Scheme to proxy for an HTTP library; None leaves it to the environment. Raises NotStored."""
        url = self._proxy_url()
        if not url:
            _note_environment()
            return None
        url = "" if url == NO_PROXY else url
        return {"http": url, "https": url}

    def for_node(self) -> dict[str, str]:
        """What a node has to know, by the names that its agent reads. Raises NotStored."""
        return {"ca_pem": self.pem(), "proxy": self._proxy_url()}

    def _proxy_url(self) -> str:
        """The proxy's URL, or `none`, or nothing for whatever the environment says. Raises NotStored."""
        if not self.proxy.startswith(("env:", "file:")):
            return self.proxy
        try:
            url = read_secret(self.proxy).reveal().strip()
        except SecretError as error:
            raise NotStored(f"proxy: {error}") from None
        _note(url)
        try:
            parts = urlsplit(url)
            usable = parts.scheme == "http" and parts.hostname and (parts.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise NotStored(f"proxy: {self.proxy} doesn't hold the URL of a proxy, http://[USER:PASSWORD@]HOST:PORT")
        return url


def _note(url: str) -> None:
    """Remember what is secret of a proxy's URL, so that no word of anybody's shows it."""
    _, at, _ = url.rpartition("@")
    if not at:
        return
    user, _, password = url.rpartition("@")[0].rpartition("//")[2].partition(":")
    for text in {f"{user}:{password}", password, unquote(password)}:
        Secret(text)


def _note_environment() -> None:
    for url in urllib.request.getproxies().values():
        _note(url)
