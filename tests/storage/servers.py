"""Real stores for tests: Azurite (SAS enforced) and OpenStack Swift's S3 API (signatures enforced), on free ports.

    python -m tests.storage.servers install     # what .ci/steps/30-stores-and-clusters calls first

Both live in a cache outside the repository: $RETINA_RUN_TEST_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/retina-run-tests.
Servers listen on loopback, keep their data in the test's own folder, and can be killed and started again on it.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


_mine: list[socket.socket] = []


def free_port() -> int:
    """One that nobody has now and that nobody is given: the kernel's own choices, for who connects or asks for any port,
    begin above (net.ipv4.ip_local_port_range), and would take it until, or while, the server isn't there. Nor is it given
    a second time, here or to another process of this network namespace, while this process lives."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(
                f"\0retina-run-tests/port/{port}"
            )  # an abstract name: there is no file, and it goes with the process
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _mine.append(claim)
        return port


@dataclass(frozen=True)
class Identity:
    """A server's certificate and key, and the authority, of the tests' own, that vouches for it."""

    certificate: Path
    key: Path
    authority: Path


def private_identity(folder: Path, host: str = "127.0.0.1") -> Identity:
    """A new authority, and a certificate of its for that address."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Identity(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    authority_key, request = folder / "authority.key", folder / "request.pem"
    for argv in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests", "-keyout", str(authority_key),
         "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign", "-out", str(made.authority)],
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=store", "-keyout", str(made.key),
         "-addext", f"subjectAltName=IP:{host}", "-out", str(request)],
        ["x509", "-req", "-in", str(request), "-CA", str(made.authority), "-CAkey", str(authority_key), "-CAcreateserial",
         "-days", "2", "-copy_extensions", "copy", "-out", str(made.certificate)],
    ):  # fmt: skip
        subprocess.run(["openssl", *argv], check=True, capture_output=True)
    return made


class Server:
    """Processes that serve one port. `start` returns when it answers; `kill` is SIGKILL, data stay."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", tls: Identity | None = None):
        self.folder, self.host, self.port, self.tls = folder, host, free_port(), tls
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

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

    def settle(self, place: str, blocks: int) -> None:
        """Wait until that many blocks of unfinished uploads into that container or bucket, which it has confirmed, would
        outlive a `kill`."""

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

    def __init__(self, folder: Path, host: str = "127.0.0.1", tls: Identity | None = None):
        super().__init__(folder, host, tls)
        self.key = base64.b64encode(secrets.token_bytes(48)).decode()

    def commands(self) -> list[list[str]]:
        return [[
            str(_azurite()), "--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.folder / "data"),
            "--disableTelemetry", "--skipApiVersionCheck", "--silent",
            *(["--cert", str(self.tls.certificate), "--key", str(self.tls.key)] if self.tls else []),
        ]]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {**os.environ, "AZURITE_ACCOUNTS": f"{self.account}:{self.key}"}

    def settle(self, place: str, blocks: int) -> None:
        """It writes its databases every 5 s: killed before, it has forgotten blocks that it had confirmed."""
        deadline = time.monotonic() + START_S
        while (written := self._written(place)) < blocks:
            assert time.monotonic() < deadline, f"Azurite has written {written} of {blocks} blocks"
            time.sleep(0.2)

    def _written(self, container: str) -> int:
        """Blocks in its files that are no blob's yet, and whose bytes are known there as well."""
        try:
            extents = {
                e["id"]: e["size"] for e in self._collection("__azurite_db_blob_extent__.json", "$EXTENTS_COLLECTION$")
            }
            blocks = self._collection("__azurite_db_blob__.json", "$BLOCKS_COLLECTION$")
        except (OSError, ValueError):
            return 0  # it is being written
        places = [b["persistency"] for b in blocks if b["containerName"] == container and not b["isCommitted"]]
        return sum(extents.get(p["id"], -1) >= p["offset"] + p["count"] for p in places)

    def _collection(self, file: str, name: str) -> list[dict[str, Any]]:
        collections = json.loads((self.folder / "data" / file).read_bytes())["collections"]
        return [row for c in collections if c["name"] == name for row in c["data"]]

    def url(self, port: int = 0) -> str:
        return f"{self.scheme}://{self.host}:{port or self.port}/{self.account}"

    def connection_string(self, port: int = 0) -> str:
        return (
            f"DefaultEndpointsProtocol={self.scheme};AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.url(port)};"
        )


class Swift(Server):
    """OpenStack Swift, one replica, with its S3 API: the proxy and the account, container and object servers."""

    access_key = "test:tester"  # tempauth's keys are account:user

    def __init__(self, folder: Path, host: str = "127.0.0.1", tls: Identity | None = None):
        super().__init__(folder, host, tls)
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
        tls = f"cert_file = {self.tls.certificate}\nkey_file = {self.tls.key}\n" if self.tls else ""
        (etc / "proxy-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = {self.host}\nbind_port = {self.port}\nworkers = 0\nuser = root\nswift_dir = {etc}\n"
            f"log_level = WARNING\n{tls}"
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
        return f"{self.scheme}://{self.host}:{port or self.port}"


class Tinyproxy(Server):
    """An HTTP proxy that wants a password, and passes CONNECT to the given ports only."""

    user, password = "storeuser", "proxy-canary-4f1d"

    def __init__(self, folder: Path, ports: Sequence[int], host: str = "127.0.0.1"):
        super().__init__(folder, host)
        self._log = folder / "requests.log"
        (folder / "tinyproxy.conf").write_text(
            f'Port {self.port}\nListen {host}\nTimeout 120\nMaxClients 50\nLogFile "{self._log}"\nLogLevel Connect\n'
            f"BasicAuth {self.user} {self.password}\n" + "".join(f"ConnectPort {port}\n" for port in ports)
        )

    def commands(self) -> list[list[str]]:
        return [["tinyproxy", "-d", "-c", str(self.folder / "tinyproxy.conf")]]

    def url(self, password: str = "") -> str:
        return f"http://{self.user}:{password or self.password}@{self.host}:{self.port}"

    def passed(self, to: Server) -> int:
        """How many requests for that server it has been sent."""
        return self._log.read_text().count(f"CONNECT {to.host}:{to.port} ") if self._log.exists() else 0


if __name__ == "__main__":
    assert sys.argv[1:] == ["install"], __doc__
    install()
    print(f"the stores are in {CACHE}")
