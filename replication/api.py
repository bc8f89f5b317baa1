"""What the HTTP API answers, declared once: by these shapes nodes write and the SDK reads.

Pure values. A field with a default may be missing in the answer of an older node, and what a newer one says besides
is passed over. Records (``Instance``, ``Event``, ``Override``) stand in ``records`` and ``policies``; ``docs/api.md``
shows all of them as JSON.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from .checks import State
from .policies import Policy, PolicyRecord
from .records import Instance, Status

INDEX = "X-Rollcall-Index"
"""The header with the index of the write, or of the copy that was read."""

HISTORY = "X-Rollcall-History"
"""The header with the name of the history that the index is of."""

COMPLETE = "X-Rollcall-Complete"
"""The header that says "true" where the node was up to date: only then is an empty list really empty."""

REQUEST_ID = "X-Request-Id"
"""The header with the id of a request, which its answer repeats."""

Word = Literal["pass", "warn", "fail"]
"""What a service may say of itself."""


class Listing(Struct, frozen=True, kw_only=True):
    """The instances of one service, as one node knew them at ``index``.

    ``complete`` is the node's word that it was up to date: only then is an
    empty list really empty. ``history`` names what ``index`` counts in. Both come in headers.
    """

    service: str
    env: str
    index: int
    instances: tuple[Instance, ...]
    complete: bool = False
    history: str = ""


class ServiceSummary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service in sums. ``serving`` is how many should get traffic."""

    name: str
    env: str
    instances: int
    serving: int
    health: dict[str, int]
    tags: tuple[str, ...]
    more_tags: bool = False
    """Whether there are more than ``tags`` names."""


class RenewalBody(Struct, frozen=True, kw_only=True):
    """The body that answers a heartbeat."""

    ttl_s: float | None = None
    next_heartbeat_ms: int | None = None


class Renewal(RenewalBody, frozen=True, kw_only=True):
    """The answer to a heartbeat: the lease's length (None: no lease), when to send the next, and how far the
    node that answered was."""

    index: int = 0


class CheckView(Struct, frozen=True, kw_only=True):
    """How one health check of an instance stands. ``since`` is the index that made it so; ``node`` asks it,
    and ``output``, ``latency_ms`` and ``asked_at`` (ns) are of its last answer, where that node can be asked."""

    name: str
    kind: str
    state: State
    since: int
    node: str = ""
    output: str = ""
    latency_ms: float | None = None
    asked_at: int | None = None


class OverrideView(Struct, frozen=True, kw_only=True):
    """What an operator says of an instance, ``registered`` or not. ``until`` (ns) None: until it is removed."""

    env: str
    service: str
    id: str
    status: Status
    reason: str = ""
    until: int | None = None
    set_at: int
    registered: bool
    index: int


class MemberView(Struct, frozen=True, kw_only=True):
    """One node of the cluster, as the node that was asked sees it: its id, its public URL, its address among the
    nodes."""

    id: str
    http: str
    raft: str
    role: str
    reachable: bool


class ClusterView(Struct, frozen=True, kw_only=True):
    """The cluster, as the node that was asked sees it. ``leader`` is a member's id or None."""

    node: str
    cluster: str = ""
    role: str = ""
    leader: str | None
    term: int
    history: str = ""
    applied_index: int
    commit_index: int
    level: int = 0
    standing: str = ""
    members: tuple[MemberView, ...]
    protection: dict[str, Any] = {}
    disk_error: str = ""
    snapshot_error: str = ""
    clock_error: str = ""
    """What is wrong with the wall clock of the node that was asked: it neither leads nor stamps writes."""
    clock_ahead_s: float | None = None
    """How far that clock is ahead of the other nodes'; None where that is not known."""


def policy_shown(record: PolicyRecord) -> dict[str, Any]:
    """A policy and who put it in force, on one level."""
    policy = {field: getattr(record.policy, field) for field in Policy.__struct_fields__}
    facts = {field: getattr(record, field) for field in PolicyRecord.__struct_fields__ if field != "policy"}
    return {**facts, **policy}


def policy_read(shown: dict[str, Any]) -> PolicyRecord:
    """What ``policy_shown`` made, as a record. Raises ``msgspec.ValidationError``."""
    policy = {field: shown[field] for field in Policy.__struct_fields__ if field in shown}
    facts = {field: shown[field] for field in PolicyRecord.__struct_fields__ if field != "policy" and field in shown}
    return msgspec.convert({**facts, "policy": policy}, PolicyRecord)
