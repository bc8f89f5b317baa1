"""Somebody who is no node takes the place of one on the nodes' own port, in plain TCP."""

import hashlib
import socket

import pytest
from harness.cluster import Cluster, StartCluster
from harness.waiting import wait_for
from rollcall.cluster.local.ports import HOST, RAFT_OFFSET
from rollcall.replication.network import wire

pytestmark = pytest.mark.integration

TERM_MAX = 2**63 - 1


def speak(cluster: Cluster, name: int, to: int, *messages: wire.Message) -> None:
    """Connects to node ``to`` in the name of the node ``name``, which is away, until it hangs up."""
    members = ",".join(sorted(cluster.node_id(i) for i in range(cluster.nodes)))
    digest = hashlib.sha256(members.encode()).hexdigest()[:16]
    level = cluster.view(to)["level"]
    hello = wire.Hello(wire.VERSION, "rollcall", cluster.node_id(name), digest, 1, {}, level, "a disk")
    with socket.create_connection((HOST, cluster.port + RAFT_OFFSET + to), timeout=10.0) as connection:
        connection.sendall(b"".join(map(wire.encode, (hello, *messages))))
        while connection.recv(65_536):
            pass


def test_a_term_that_cannot_be_outdone_leaves_the_cluster_its_leader(start_cluster: StartCluster) -> None:
    """Nodes 0 and 1 are up, and a stranger calls them as node 2; the greater name dials, so they listen to it."""
    cluster = start_cluster(3)
    cluster.kill(2)
    cluster.register(0, "kept", "before")

    for to in (0, 1):
        speak(cluster, 2, to, wire.RequestVote(TERM_MAX, TERM_MAX, TERM_MAX, True))
        speak(cluster, 2, to, wire.AppendEntries(TERM_MAX, 1, 0, 0, ()))
        wait_for(lambda to=to: f"of term {TERM_MAX}" in cluster.log(to), f"node {to} to say so")

    cluster.wait_for_leader()
    cluster.register(0, "kept", "after")
    for i in (0, 1):
        cluster.kill(i)
    for i in (0, 1, 2):
        cluster.start_node(i)
    cluster.wait_ready()
    cluster.register(0, "kept", "at last")
    cluster.wait_same()
    assert cluster.ids(2, "kept") == {"before", "after", "at last"}
