"""Where the cluster harness keeps things: a cache outside of the repository, and a directory a cluster.

`RETINA_RUN_CLUSTER_CACHE` names the cache; see tests/building.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.building import cache_of
from tests.building import call as call
from tests.building import digest as digest
from tests.building import making as making

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CLUSTER_NAME = os.environ.get("RETINA_RUN_CLUSTER_NAME") or "tests"


def cache() -> Path:
    """The cache directory, made if need be."""
    return cache_of("cluster")
