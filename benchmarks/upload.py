#!/usr/bin/env python3
"""Uploads: a node's own uploader and the runner's, each beside the vendor's SDK, to the same real store in the same rounds.

    python benchmarks/upload.py [--quick] [--rounds N]      (npm and pip fetch Azurite and OpenStack Swift into a cache, once)

Random bytes go to Azurite and to Swift's S3 API on loopback: by the agent with a grant (`node`), by the runner's target
(`runner`), and by azure-storage-blob or boto3 with one connection and blocks of 8 MiB (`SDK`). Each is a fresh process,
with its imports, measured by wait4(2); the minimum of the rounds is compared. Peak RSS must not grow with the size. The
stores are emulators on the same processors, so ratios say what the clients cost, not what a network allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.storage.servers import Azurite, Server, Swift, install
from tests.storage.stores import MIB, AzureStore, Node, S3Store, target_of

REPOSITORY = Path(__file__).resolve().parent.parent
# A process inherits the peak RSS of the one that spawned it (until exec they share their memory): a small one does it.
LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
AZURE_SDK = """
import sys
from azure.storage.blob import BlobClient
connection, container, key, path = sys.argv[1:]
client = BlobClient.from_connection_string(connection, container, key, max_single_put_size=32 << 20, max_block_size=8 << 20)
with open(path, "rb") as file:
    client.upload_blob(file, max_concurrency=1)
"""
S3_SDK = """
import sys, boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
endpoint, access, secret, bucket, key, path = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=access, aws_secret_access_key=secret,
                      region_name="us-east-1", config=Config(signature_version="s3v4", s3={"addressing_style": "path"}))
client.upload_file(path, bucket, key, Config=TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=8 << 20,
                                                            use_threads=False))
"""
RUNNER = """
import json, sys
from pathlib import Path
from retina_runner.uploads import Parcel
from retina_runner.uploads.opening import open_target
kind, options, parcel = json.loads(sys.argv[1])
target = open_target(kind, options)
target.store(Parcel(parcel[0], parcel[1], Path(parcel[2]), parcel[3], parcel[4]))
"""


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    rss_bytes: int

    def best(self, other: Cost) -> Cost:
        return Cost(min(self.wall_s, other.wall_s), min(self.cpu_s, other.cpu_s), max(self.rss_bytes, other.rss_bytes))


def once(argv: list[str], stdin: bytes = b"") -> Cost:
    """What a fresh process costs."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *argv], input=stdin, stdout=subprocess.PIPE, cwd=REPOSITORY, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    return Cost(*json.loads(done.stdout))


def ways(store: AzureStore | S3Store, node: Node) -> dict[str, Callable[[str], Cost]]:
    """How to store the node's archive below a prefix."""

    def by_node(prefix: str) -> Cost:
        target = target_of(store, prefix=prefix, via="node")
        grant = target.grant(node.parcel, 3600.0)
        assert grant is not None
        return once(node.argv(3000), json.dumps(grant.document).encode())

    def by_runner(prefix: str) -> Cost:
        parcel = node.parcel
        told = [
            store.kind,
            store.options(prefix=prefix),
            [parcel.run, parcel.node, str(parcel.path), parcel.sha256, parcel.size_bytes],
        ]
        return once([sys.executable, "-c", RUNNER, json.dumps(told)])

    def by_sdk(prefix: str) -> Cost:
        key = f"{prefix}/sdk"
        if isinstance(store, AzureStore):
            given = [AZURE_SDK, store.server.connection_string(), store.name, key, str(node.path)]
        else:
            server = store.server
            given = [S3_SDK, server.url(), server.access_key, server.secret_key, store.name, key, str(node.path)]
        return once([sys.executable, "-c", *given])

    return {"node": by_node, "runner": by_runner, "SDK": by_sdk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 MB, one round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the best of so many (default: 3)")
    chosen = parser.parse_args()
    quick, rounds = chosen.quick, 1 if chosen.quick else chosen.rounds
    install()
    servers: tuple[type[Server], ...] = (Azurite, Swift)
    print(
        f"{'store':8} {'MB':>4} {'way':7} {'wall s':>7} {'MB/s':>6} {'CPU s':>6} {'RSS MB':>7}  of the SDK: wall, CPU"
    )
    for kind in servers:
        with tempfile.TemporaryDirectory() as scratch:
            server = kind(Path(scratch) / "server")
            server.start()
            try:
                store = AzureStore(server) if isinstance(server, Azurite) else S3Store(server)  # type: ignore[arg-type]
                os.environ.update(store.environment)
                for size in (40,) if quick else (40, 600):
                    node = Node(Path(scratch) / str(size), size * MIB)
                    best: dict[str, Cost] = {}
                    for number in range(rounds):
                        for way, store_it in ways(store, node).items():
                            cost = store_it(f"r{size}-{number}-{way}")
                            best[way] = cost.best(best[way]) if way in best else cost
                    for way, cost in best.items():
                        peer = best["SDK"]
                        print(
                            f"{kind.__name__:8} {size:4} {way:7} {cost.wall_s:7.2f} {size / cost.wall_s:6.0f} {cost.cpu_s:6.2f}"
                            f" {cost.rss_bytes / 1e6:7.1f}  {cost.wall_s / peer.wall_s:.2f}, {cost.cpu_s / peer.cpu_s:.2f}",
                            flush=True,
                        )
                    node.path.unlink()
            finally:
                server.kill()


if __name__ == "__main__":
    main()
