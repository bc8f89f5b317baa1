"""The cluster seen from outside: the SDK, the commands, and nodes started on this machine.

A service registers itself and finds others::

    with Lease("http://10.0.0.1:8500,http://10.0.0.2:8500", service="cart", port=8080):
        discovery = Discovery("http://10.0.0.1:8500,http://10.0.0.2:8500")
        ServiceSession(discovery).get("service://users/42")

Or, with httpx (the extra ``httpx``)::

    async with httpx.AsyncClient(transport=AsyncServiceTransport(discovery)) as client:
        await client.get("service://users/42")

``Client`` has every call by itself: register, renew, list, watch, who leads.
"""

from typing import TYPE_CHECKING, Any

from ..replication.records import Instance
from .adapter import ServiceAdapter, ServiceSession
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

if TYPE_CHECKING:
    from .transports import AsyncServiceTransport as AsyncServiceTransport
    from .transports import ServiceTransport as ServiceTransport

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
    "ServiceSession",
    "ServiceSummary",
    "Snapshot",
    "Weighted",
    "ZoneFirst",
    "lifespan",
    "wsgi",
]


def __getattr__(name: str) -> Any:
    """``ServiceTransport`` and ``AsyncServiceTransport``, for whoever has httpx. Not in ``__all__``: ``import *`` must
    not need it."""
    if name not in ("AsyncServiceTransport", "ServiceTransport"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import transports
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ImportError(f"{name} needs httpx: pip install 'rollcall-registry[httpx]'", name="httpx") from None
    return getattr(transports, name)
