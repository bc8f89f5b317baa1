"""The cluster seen from outside: the SDK, the commands, and nodes started on this machine.

A service registers itself and finds others::

    with Lease("http://10.0.0.1:8500,http://10.0.0.2:8500", service="cart", port=8080):
        discovery = Discovery("http://10.0.0.1:8500,http://10.0.0.2:8500")
        ServiceSession(discovery).get("service://users/42")

Or, with httpx (the extra ``httpx``)::

    async with httpx.AsyncClient(transport=AsyncServiceTransport(discovery)) as client:
        await client.get("service://users/42")

``Client`` has every call by itself: register, renew, list, watch, who leads. What goes wrong is a ``RollcallError``:
``NotDone`` certainly did not happen and may be sent again, ``Unknown`` perhaps did.
"""

from typing import TYPE_CHECKING, Any

from ..replication.api import CheckView, ClusterView, Listing, MemberView, OverrideView, Renewal, ServiceSummary
from ..replication.checks import Check, CheckState
from ..replication.errors import (
    AlreadyRegistered,
    Conflict,
    Damaged,
    DiskUnavailable,
    Draining,
    Fatal,
    Forbidden,
    Gone,
    Invalid,
    KeyReused,
    NoLeader,
    NotCaughtUp,
    NotDone,
    NotFound,
    NotLeader,
    Overloaded,
    Overwritten,
    RollcallError,
    StaleDirtyTimestamp,
    Superseded,
    TooLarge,
    TooSoon,
    Unknown,
    WrongDirectory,
)
from ..replication.policies import PolicyChange, PolicyRecord
from ..replication.records import Event, Instance, Key, Registration, RegistrationFields
from .adapter import ServiceAdapter, ServiceSession
from .async_discovery import AsyncDiscovery
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
from .client import Client
from .discovery import Discovery
from .frameworks import lifespan, wsgi
from .http import Session
from .lease import Lease
from .members import DEFAULT_NODES, Members
from .pool import Caution, NoInstances, Policy, Pool
from .watching import Changes, Snapshot

if TYPE_CHECKING:
    from .transports import AsyncServiceTransport as AsyncServiceTransport
    from .transports import ServiceTransport as ServiceTransport

__all__ = [
    "DEFAULT_NODES",
    "AlreadyRegistered",
    "AsyncDiscovery",
    "Balancer",
    "Caution",
    "Changes",
    "Check",
    "CheckState",
    "CheckView",
    "Client",
    "ClusterView",
    "Conflict",
    "ConsistentHash",
    "Damaged",
    "Discovery",
    "DiskUnavailable",
    "Draining",
    "Endpoint",
    "Event",
    "Fatal",
    "Forbidden",
    "Gone",
    "Instance",
    "Invalid",
    "Key",
    "KeyReused",
    "Lease",
    "LeastConnections",
    "Listing",
    "MemberView",
    "Members",
    "NoInstances",
    "NoLeader",
    "NotCaughtUp",
    "NotDone",
    "NotFound",
    "NotLeader",
    "Overloaded",
    "OverrideView",
    "Overwritten",
    "PeakEwma",
    "Policy",
    "PolicyChange",
    "PolicyRecord",
    "Pool",
    "Random",
    "Registration",
    "RegistrationFields",
    "Renewal",
    "RollcallError",
    "RoundRobin",
    "ServiceAdapter",
    "ServiceSession",
    "ServiceSummary",
    "Session",
    "Snapshot",
    "StaleDirtyTimestamp",
    "Superseded",
    "TooLarge",
    "TooSoon",
    "Unknown",
    "Weighted",
    "WrongDirectory",
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
