"""The replicated log and the other nodes, as the rest of the product sees them.

``Log`` is the whole face of consensus: propose a command, wait for an index, learn who leads.
Two things wear it: the Raft engine (``raft/engine.py``) and ``local_log.LocalLog``, one
node in memory, for tests and for reading how little the rest depends on.
``Peers`` asks another node and answers it, over the connections that the nodes have anyway:
that is the transport.

No method of either blocks without a deadline. Deadlines are absolute, in
seconds of ``time.monotonic()``.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from .commands import Command
from .proposal import Pending, Proposal
from .records import Event
from .registry.changes import Changes
from .registry.registry import Registry

Role = Literal["leader", "follower", "candidate"]


class PeerStatus(Struct, frozen=True, kw_only=True):
    """Another member, as this node sees it.

    ``contact_s`` is how long ago it was last heard (None: never).
    ``down`` means that its host answered that nothing listens there: the
    process is gone, as opposed to silent.
    """

    id: str
    reachable: bool
    contact_s: float | None
    down: bool = False


class LogStatus(Struct, frozen=True, kw_only=True):
    """Where this node's log stands.

    ``leader`` is a member's id or None. ``leader_contact_s`` is how long ago
    this node last held all that its leader had committed; on the leader itself, how
    long ago a quorum certainly followed it; None where that never was.
    ``serving_term`` is true on a leader that has applied its own term's first entry.
    ``caught_up`` turns true once, when this node has applied what was committed
    when it joined.
    """

    node: str
    leader: str | None
    role: Role
    term: int
    commit_index: int
    applied_index: int
    leader_contact_s: float | None
    serving_term: bool
    caught_up: bool
    peers: tuple[PeerStatus, ...]
    disk_error: str = ""
    """Why this node takes up nothing that adds to the registry, or nothing; or keeps no room (``reserve.py``)."""
    stores_nothing: bool = False
    """What ``disk_error`` says is that there is no room for anything: this node takes up nothing at all."""
    clock_error: str = ""
    """What is wrong with this node's wall clock: it neither leads nor stamps (``clocks.py``)."""
    clock_ahead_s: float | None = None
    """How far this node's wall clock is ahead of the others' (behind, if negative); None while nobody was heard."""
    standing: str = "member"
    """``member``; or ``new`` or ``rejoining``: this node does not vote (yet)."""
    level: int = 1
    """The feature level that the cluster uses."""
    snapshot_error: str = ""
    """Why this node has no newer state file, and so cannot cut its log; empty while all is well."""


Reply = Callable[[bytes], None]
Handler = Callable[[str, bytes, Reply], None]
"""``handler(peer_id, payload, reply)``: called on the log's thread, so it must
not wait; ``reply`` may be called later, from any thread, at most once."""


Listener = Callable[[int, tuple[Event, ...]], None]


class Leadership(NamedTuple):
    """Who leads which term, as one node knows it. ``serving``: it is this node,
    and its first entry is applied, so that what it knows is not older than the term."""

    term: int
    leader: str | None
    serving: bool


class Log(Protocol):
    """The log of one node, and the registry that it builds."""

    node_id: str
    registry: Registry
    changes: Changes

    def status(self) -> LogStatus: ...

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        """Hands a command to the log. Only a leader succeeds: elsewhere the
        proposal is settled with ``NotLeader``. Raises ``TooLarge``."""
        ...

    def read_index(self) -> Pending[int]:
        """An index not older than any write that has finished, once a quorum said that
        this node still leads: whoever has applied it may answer a linearizable read.
        Elsewhere settled with ``NotLeader``."""
        ...

    def hand_over(self, to: str = "") -> Pending[int]:
        """Begins to hand leadership to the member ``to``, or to the one that has most of the
        log. Writes wait until it is over, or the chosen one did not take over in time. Settled
        when it has begun, with what is applied then: ``wait_leadership`` tells the end. Elsewhere ``NotLeader``."""
        ...

    def wait_applied(self, index: int, deadline: float) -> bool:
        """Waits until this node has applied ``index``; False when the deadline passed."""
        ...

    @property
    def leadership(self) -> Leadership:
        """Who leads now, as far as this node knows."""
        ...

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        """Who leads: at once if that is not what the caller has ``seen``, else
        when it changes or the deadline has passed."""
        ...

    def listen(self, listener: Listener) -> None:
        """Calls ``listener(index, events)`` on the log's thread after each entry applied."""
        ...

    def close(self) -> None: ...


class Peers(Protocol):
    """The other nodes, to be asked and answered."""

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """One question to a peer over the nodes' own connection.

        Raises ``NotDone`` if it was certainly not delivered, ``Unknown`` if the
        answer did not come in time."""
        ...

    def serve(self, kind: str, handler: Handler) -> None:
        """Answers the peers' requests of that kind with ``handler``."""
        ...
