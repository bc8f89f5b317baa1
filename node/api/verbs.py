"""What the HTTP faces ask of the node, and the settings that are theirs.

Declared here because it is used here: a test puts a small class in its place.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from ...replication.api import CheckView, MemberView
from ...replication.checks import State
from ...replication.commands import Submittable
from ...replication.front.networks import LOOPBACK, Network
from ...replication.log import LogStatus
from ...replication.records import Instance, Key
from ...replication.registry.changes import Changes
from ...replication.registry.registry import Outcome, Registry
from ..budget import Budget
from ..leader.eviction import ProtectionView
from ..leader.renewals import LeaseView, Renewal, Renewed
from ..position import Position


class ApiSettings(Struct, frozen=True, kw_only=True):
    """Limits and defaults of the HTTP faces. Sizes in bytes, times in seconds."""

    body_bytes_max: int = 256 * 1024
    batch_body_bytes_max: int = 1024 * 1024
    watch_wait_s_default: float = 30.0
    watch_wait_s_max: float = 600.0
    min_index_wait_s_default: float = 5.0
    lease_ttl_s: float = 90.0
    members: tuple[str, ...] = ()
    """Hosts of the cluster's own URLs, which this node answers to."""
    trusted: tuple[Network, ...] = LOOPBACK
    """Whose addresses stand for many clients (proxies, NAT): they are held to no share."""
    hosts: tuple[str, ...] = ()
    """Other names of this node."""
    dns_domain: str = ""
    """Of the node's own DNS; empty: it answers none."""
    write_timeout_s: float = 5.0


class Verbs(Protocol):
    """The node behind the faces. Every method that waits has a deadline of its own."""

    @property
    def node_id(self) -> str: ...
    @property
    def cluster_id(self) -> str: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def changes(self) -> Changes: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def draining(self) -> bool: ...

    def submit(self, command: Submittable, *, request_id: str = "") -> Outcome:
        """Makes the change, here or through the leader, and waits until this node has applied it."""
        ...

    def report(self, key: Key, check: str, state: State, note: str = "") -> Outcome:
        """Takes a service's own word on a check of its own."""
        ...

    def checks(self, instance: Instance) -> list[CheckView]:
        """How an instance's checks stand, and what the node that asks was answered last."""
        ...

    def hand_over(self, to: str = "") -> str:
        """Has leadership handed to a member; the new leader's id."""
        ...

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed]:
        """The leader's word on each heartbeat, in their order."""
        ...

    def catch_up(self, position: Position, deadline: float, left: Callable[[], bool]) -> None:
        """Waits until this node's copy is at ``position``; ``Gone`` if the registry never was there, ``NotCaughtUp``
        if it does not come there by ``deadline`` or nobody waits any more (``left``)."""
        ...

    def linearize(self) -> bool:
        """Makes this node's copy as new as every finished write; False if no leader could be asked."""
        ...

    def lease(self, key: Key) -> LeaseView | None: ...
    def status(self) -> LogStatus: ...
    def members(self) -> tuple[MemberView, ...]: ...
    def protection(self) -> ProtectionView: ...
    def complete(self) -> bool:
        """Whether this node has caught up, so that what it does not hold is not there."""
        ...

    def ready(self, write: bool) -> tuple[bool, str]:
        """Whether to send requests here, and why not."""
        ...
