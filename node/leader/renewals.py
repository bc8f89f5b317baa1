"""Heartbeats as values: what an instance asks, what the leader says to it, and a lease as others see it."""

from hashlib import blake2b
from typing import Literal

from msgspec import Struct

from ...replication.records import Key

Word = Literal["ok", "unknown", "ahead", "behind"]


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

    status: Word
    ttl_s: float | None = None
    next_heartbeat_ms: int | None = None


class LeaseView(Struct, frozen=True, gc=False):
    """A lease as this node sees it: exact on the leader, approximate elsewhere."""

    ttl_s: float | None
    renewed_ms_ago: int | None
    overdue: bool


def phase(key: Key) -> float:
    """From 0 to 1, by the key and not by chance, so that an instance keeps its own with every leader."""
    digest = blake2b(f"{key.env}\0{key.service}\0{key.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 1000 / 1000
