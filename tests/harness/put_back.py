"""All disks of a cluster at once: lost, copied, and put back from the copies."""

import shutil
from pathlib import Path

from harness.cluster import Cluster

KEPT = ("node.toml", "log", "pid")
"""In a node's directory beside its data: of the launcher."""


def lose(cluster: Cluster) -> None:
    """As if all nodes stood on new machines under their old addresses: they begin a new cluster."""
    _kill(cluster)
    for i in range(cluster.nodes):
        _empty(cluster.node_dir(i))
    cluster.start()


def copy(cluster: Cluster, to: Path) -> None:
    """Copies all directories while all nodes are stopped, and starts them again."""
    _kill(cluster)
    for i in range(cluster.nodes):
        shutil.copytree(cluster.node_dir(i), to / cluster.node_id(i), ignore=shutil.ignore_patterns(*KEPT))
    cluster.start()


def put_back(cluster: Cluster, source: Path, *flags: str) -> None:
    """Puts the copies in place of what the nodes have, and starts all of them with ``flags``."""
    _kill(cluster)
    for i in range(cluster.nodes):
        _empty(cluster.node_dir(i))
        shutil.copytree(source / cluster.node_id(i), cluster.node_dir(i), dirs_exist_ok=True)
    for i in range(cluster.nodes):
        cluster.start_node(i, *flags)
    cluster.wait_ready()


def _kill(cluster: Cluster) -> None:
    for i in range(cluster.nodes):
        if cluster.pid(i) is not None:
            cluster.kill(i)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
