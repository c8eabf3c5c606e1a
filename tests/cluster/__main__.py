"""`python -m tests.cluster up|down|status|kubectl …|node N …`: the test cluster by hand."""

from __future__ import annotations

import argparse
import os
import sys

from tests.cluster import image, programs, runner_image
from tests.cluster.cluster import Cluster
from tests.cluster.places import CLUSTER_NAME


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--name", default=CLUSTER_NAME, help="the cluster's name (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build programs and images only")
    verbs.add_parser("up", help="bring up what isn't up")
    verbs.add_parser("down", help="stop everything and remove the cluster's state")
    verbs.add_parser("state", help="nodes, pods, events and the ends of all logs")
    verbs.add_parser("kubectl", help="kubectl as the cluster's administrator, with what follows")
    node = verbs.add_parser("node", help="run what follows in the namespaces of the node of that number")
    node.add_argument("number", type=int)
    given, rest = parser.parse_known_args()
    if rest and given.verb not in ("kubectl", "node"):
        parser.error(f"unknown: {' '.join(rest)}")
    if given.verb == "build":
        print(programs.kubernetes(), programs.runtime(), image.pause_archive(), image.node_archive(),
              runner_image.runner_archive(), sep="\n")  # fmt: skip
        return
    cluster = Cluster(given.name)
    if given.verb == "up":
        cluster.up()
    elif given.verb == "down":
        cluster.down()
    elif given.verb == "state":
        print(cluster.state())
    elif given.verb == "kubectl":
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
        os.execv(programs.kubernetes() / "kubectl", ["kubectl", *rest])
    else:
        argv = [*cluster.on_node(given.number), *rest]
        os.execvp(argv[0], argv)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()
