"""The cluster seen from outside: the SDK, the commands, and nodes started on this machine.

A service registers itself and finds others::

    with Lease("http://10.0.0.1:8500,http://10.0.0.2:8500", service="cart", port=8080):
        discovery = Discovery("http://10.0.0.1:8500,http://10.0.0.2:8500")
        session = requests.Session()
        session.mount("service://", ServiceAdapter(discovery))
        session.get("service://users/42")

``Client`` has every call by itself: register, renew, list, watch, who leads.
"""

from ..replication.records import Instance
from .adapter import ServiceAdapter
from .balancer import (
    Balancer,
    ConsistentHash,
    Endpoint,
    LeastConnections,
    PeakEwma,
    Random,
    RoundRobin,
    Weighted,
    ZoneFirst,
)
from .client import Changes, Client, ClusterView, Listing, MemberView, OverrideView, Renewal, ServiceSummary, Snapshot
from .discovery import AsyncDiscovery, Discovery
from .lease import Lease, lifespan, wsgi
from .members import DEFAULT_NODES, Members
from .pool import Caution, NoInstances, Policy, Pool

__all__ = [
    "DEFAULT_NODES",
    "AsyncDiscovery",
    "Balancer",
    "Caution",
    "Changes",
    "Client",
    "ClusterView",
    "ConsistentHash",
    "Discovery",
    "Endpoint",
    "Instance",
    "Lease",
    "LeastConnections",
    "Listing",
    "MemberView",
    "Members",
    "NoInstances",
    "OverrideView",
    "PeakEwma",
    "Policy",
    "Pool",
    "Random",
    "Renewal",
    "RoundRobin",
    "ServiceAdapter",
    "ServiceSummary",
    "Snapshot",
    "Weighted",
    "ZoneFirst",
    "lifespan",
    "wsgi",
]
