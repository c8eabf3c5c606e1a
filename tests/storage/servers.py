"""Real stores for tests: Azurite (SAS enforced) and OpenStack Swift's S3 API (signatures enforced), on free ports.

    python -m tests.storage.servers install     # what .ci/steps/30-storage calls first

Both live in a cache outside the repository: $RETINA_RUN_TEST_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/retina-run-tests.
Servers listen on loopback, keep their data in the test's own folder, and can be killed and started again on it.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

AZURITE = "azurite@3.35.0"  # the newest that runs on Node 20
SWIFT = "swift==2.38.*"
START_S = 90.0


CACHE = (
    Path(
        os.environ.get("RETINA_RUN_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retina-run-tests"
    )
    / "storage"
)
"""Said once: a test may have a cache folder of its own while it starts a server anew."""


def install() -> None:
    """Fetch both servers into the cache, unless they are there."""
    folder = CACHE
    folder.mkdir(parents=True, exist_ok=True)
    if not _azurite().exists():
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), AZURITE], check=True
        )
    if not _swift("swift-proxy-server").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "swift")], check=True)
        # liberasurecode comes with the wheel of pyeclib; setuptools has pkg_resources, which paste.deploy may ask for.
        subprocess.run(
            [
                str(folder / "swift/bin/pip"),
                "install",
                "--quiet",
                "--disable-pip-version-check",
                SWIFT,
                "setuptools<81",
            ],
            check=True,
        )


def _azurite() -> Path:
    return CACHE / "node_modules/.bin/azurite-blob"


def _swift(program: str) -> Path:
    return CACHE / "swift/bin" / program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Processes that serve one port. `start` returns when it answers; `kill` is SIGKILL, data stay."""

    def __init__(self, folder: Path, host: str = "127.0.0.1"):
        self.folder, self.host, self.port = folder, host, free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def commands(self) -> list[list[str]]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def ports(self) -> list[tuple[str, int]]:
        return [(self.host, self.port)]

    def start(self) -> None:
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115 - the processes hold it
        for command in self.commands():
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    start_new_session=True,
                    cwd=self.folder,
                )
            )
        log.close()
        deadline = time.monotonic() + START_S
        for address in self.ports():
            while not _listens(address):
                dead = [p.args for p in self._processes if p.poll() is not None]
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                assert not dead, f"{dead} ended: {tail}"
                assert time.monotonic() < deadline, f"{address} doesn't listen after {START_S} s: {tail}"
                time.sleep(0.1)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, so that everything is on disk."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        for process in self._processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                pass
            process.wait(60)
        self._processes.clear()


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(address) == 0


class Azurite(Server):
    """An emulator of Azure Blob Storage with one account of our own and its random key."""

    account = "capturetests"

    def __init__(self, folder: Path, host: str = "127.0.0.1"):
        super().__init__(folder, host)
        self.key = base64.b64encode(secrets.token_bytes(48)).decode()

    def commands(self) -> list[list[str]]:
        return [[
            str(_azurite()), "--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.folder / "data"),
            "--disableTelemetry", "--skipApiVersionCheck", "--silent",
        ]]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {**os.environ, "AZURITE_ACCOUNTS": f"{self.account}:{self.key}"}

    def url(self, port: int = 0) -> str:
        return f"http://{self.host}:{port or self.port}/{self.account}"

    def connection_string(self, port: int = 0) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.url(port)};"
        )


class Swift(Server):
    """OpenStack Swift, one replica, with its S3 API: the proxy and the account, container and object servers."""

    access_key = "test:tester"  # tempauth's keys are account:user

    def __init__(self, folder: Path, host: str = "127.0.0.1"):
        super().__init__(folder, host)
        self.secret_key = secrets.token_urlsafe(24)
        self._behind = {kind: free_port() for kind in ("account", "container", "object")}
        self._configure()

    def ports(self) -> list[tuple[str, int]]:
        return [*(("127.0.0.1", port) for port in self._behind.values()), (self.host, self.port)]

    def commands(self) -> list[list[str]]:
        etc = self.folder / "etc"
        return [
            [str(_swift(f"swift-{kind}-server")), str(etc / f"{kind}-server.conf")]
            for kind in ("account", "container", "object", "proxy")
        ]  # fmt: skip

    def _configure(self) -> None:
        etc, devices = self.folder / "etc", self.folder / "devices"
        etc.mkdir()
        (devices / "d1").mkdir(parents=True)
        (etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = tests\n"
            "[storage-policy:0]\nname = only\ndefault = yes\n"
        )
        for kind, port in self._behind.items():
            builder = str(etc / f"{kind}.builder")
            for arguments in (
                ["create", "1", "1", "1"],
                ["add", f"r1z1-127.0.0.1:{port}/d1", "1"],
                ["rebalance"],
            ):
                subprocess.run(
                    [str(_swift("swift-ring-builder")), builder, *arguments], check=True, capture_output=True
                )
            (etc / f"{kind}-server.conf").write_text(
                f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = root\nswift_dir = {etc}\n"
                f"devices = {devices}\nmount_check = false\nlog_level = WARNING\n"
                f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
            )
        (etc / "proxy-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = {self.host}\nbind_port = {self.port}\nworkers = 0\nuser = root\nswift_dir = {etc}\n"
            "log_level = WARNING\n"
            "[pipeline:main]\npipeline = catch_errors cache listing_formats s3api tempauth bulk slo proxy-server\n"
            "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
            "[filter:catch_errors]\nuse = egg:swift#catch_errors\n"
            "[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:9\n"
            "[filter:listing_formats]\nuse = egg:swift#listing_formats\n"
            "[filter:s3api]\nuse = egg:swift#s3api\nlocation = us-east-1\n"
            f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = {self.secret_key} .admin\n"
            "[filter:bulk]\nuse = egg:swift#bulk\n[filter:slo]\nuse = egg:swift#slo\n"
        )

    def url(self, port: int = 0) -> str:
        return f"http://{self.host}:{port or self.port}"


if __name__ == "__main__":
    assert sys.argv[1:] == ["install"], __doc__
    install()
    print(f"the stores are in {CACHE}")
