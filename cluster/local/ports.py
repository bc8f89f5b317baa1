"""Which ports the nodes of a cluster on this machine listen on, and whether they are free."""

import random
import socket

from .processes import LocalError

HOST = "127.0.0.1"
PORT = 8500
DNS_OFFSET = 100
RAFT_OFFSET = 1000
NODES_MAX = 7

PORTS = range(12_000, 31_000)
"""Below the range that systems give to outgoing connections."""


def ports_of(port: int, nodes: int) -> list[int]:
    """All ports of that many nodes whose base port is ``port``."""
    return [port + offset + i for offset in (0, DNS_OFFSET, RAFT_OFFSET) for i in range(nodes)]


def is_free(port: int) -> bool:
    """Whether nobody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(nodes: int = NODES_MAX) -> int:
    """A base port at which all ports of ``nodes`` nodes are free now, and within ``PORTS``.

    Random, so that runs beside each other rarely meet.
    """
    spread = max(ports_of(0, nodes))
    for _ in range(200):
        port = random.choice(PORTS[:-spread])
        if all(is_free(each) for each in ports_of(port, nodes)):
            return port
    raise LocalError(f"no free ports were found from {PORTS.start} to {PORTS.stop}")
