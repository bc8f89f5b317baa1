"""The values that the node's parts hand to each other: plain, frozen, no behaviour."""

from typing import Literal

from msgspec import Struct

from ..replication.log import Role
from ..replication.records import Key

Answer = Literal["ok", "unknown", "ahead", "behind"]


class Renewal(Struct, frozen=True, gc=False):
    """One heartbeat. ``dirty_timestamp`` is only compared when the client sent one."""

    key: Key
    dirty_timestamp: int | None = None


class Renewed(Struct, frozen=True, gc=False):
    """What the leader said to one heartbeat.

    ``ok``: renewed; come back after ``next_heartbeat_ms``. ``unknown``: not
    registered. ``ahead``: the client's ``dirty_timestamp`` is newer than the
    stored one, so it must register again. ``behind``: it is older.
    """

    status: Answer
    ttl_s: float | None = None
    next_heartbeat_ms: int | None = None


class LeaseView(Struct, frozen=True, gc=False):
    """A lease as this node sees it: exact on the leader, approximate elsewhere."""

    ttl_s: float | None
    renewed_ms_ago: int | None
    overdue: bool


class CheckShown(Struct, frozen=True, kw_only=True):
    """One check of an instance, for people. ``since`` is the index that made it stand so; ``node``
    asks it, and said the rest: what it was answered last, how long that took, and when (ns). Empty and None
    where that node does not say."""

    name: str
    kind: str
    state: str
    since: int
    node: str = ""
    output: str = ""
    latency_ms: float | None = None
    asked_at: int | None = None


class Member(Struct, frozen=True, kw_only=True):
    """One node of the cluster: its id, its public URL, its address among the nodes."""

    id: str
    http: str
    raft: str
    role: Role | Literal["unknown"]
    reachable: bool
