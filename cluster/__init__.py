"""The cluster seen from outside: the SDK, the commands, and nodes started on this machine.

A service registers itself, keeps its lease, and finds others::

    with Client("http://10.0.0.1:8500,http://10.0.0.2:8500") as client:
        client.register("cart", address="10.0.0.7", port=8080, ttl_s=30)
        client.heartbeat("cart", "cart-10.0.0.7:8080")
        client.instances("cart").instances
"""

from .client import Client, ClusterView, Listing, MemberView, Renewal, ServiceSummary, Snapshot
from .members import DEFAULT_NODES, Members

__all__ = [
    "DEFAULT_NODES",
    "Client",
    "ClusterView",
    "Listing",
    "MemberView",
    "Members",
    "Renewal",
    "ServiceSummary",
    "Snapshot",
]
