"""The replicated log as the rest of the product sees it.

``Log`` is the whole face: propose a command, wait for an index, ask a peer.
Two things wear it: the Raft engine (``engine.py``) and ``LocalLog`` below, one
node in memory, for tests and for reading how little the rest depends on.

No method of ``Log`` blocks without a deadline. Deadlines are absolute, in
seconds of ``time.monotonic()``.
"""

import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from .commands import LEVEL, Command, decode, encode, sealed
from .errors import NotDone, RollcallError, Unknown
from .records import Event
from .registry.changes import Changes
from .registry.registry import Outcome, Registry, State

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


class Proposal:
    """One command on its way. Resolved exactly once, from the log's thread.

    ``result`` gives the ``Outcome``, or raises: an error that ``apply`` gave
    (``Conflict``, ``NotFound``), ``NotDone`` if it certainly did not happen,
    ``Unknown`` if the deadline passed while it was under way.
    """

    __slots__ = ("_callbacks", "_done", "_lock", "adds", "data", "error", "outcome", "taken")

    def __init__(self, data: bytes, *, adds: bool = False) -> None:
        self.data: bytes = data
        self.adds: bool = adds
        """Whether it may make the registry larger (``commands.adds``)."""
        self.outcome: Outcome | None = None
        self.error: RollcallError | None = None
        self.taken: bool = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._callbacks: list[Callable[[Proposal], None]] = []

    @property
    def settled(self) -> bool:
        return self._done.is_set()

    def take(self) -> bool:
        """The log takes it up; False if it was given up before."""
        with self._lock:
            if self._done.is_set():
                return False
            self.taken = True
            return True

    def resolve(self, outcome: Outcome | None, error: RollcallError | None = None) -> None:
        """Settles it; later calls are without effect."""
        with self._lock:
            callbacks = self._settle(outcome, error)
        for callback in callbacks:
            callback(self)

    def on_done(self, callback: Callable[["Proposal"], None]) -> None:
        """Calls ``callback`` when settled (at once if it is), from that thread."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def give_up(self, why: str) -> None:
        """Settles it as what can still be said: not done if never taken up, else unknown."""
        # Under one lock with ``take``: what was called not done must not be taken up after.
        with self._lock:
            callbacks = self._settle(None, Unknown(why) if self.taken else NotDone(why))
        for callback in callbacks:
            callback(self)

    def _settle(self, outcome: Outcome | None, error: RollcallError | None) -> list[Callable[["Proposal"], None]]:
        if self._done.is_set():
            return []
        self.outcome, self.error = outcome, error
        self._done.set()
        return self._callbacks

    def result(self, deadline: float) -> Outcome:
        """The outcome, or the error that says what became of it, by ``deadline``."""
        if not self._done.wait(max(0.0, deadline - time.monotonic())):
            self.give_up("the write was not settled before its deadline (write_timeout)")
        if self.error is not None:
            raise self.error
        if self.outcome is None:
            raise Unknown("the write was settled without an outcome")
        return self.outcome


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

    def read_index(self) -> Proposal:
        """An index not older than any write that has finished, once a quorum said that
        this node still leads: whoever has applied it may answer a linearizable read.
        The outcome holds it and nothing else. Elsewhere settled with ``NotLeader``."""
        ...

    def hand_over(self, to: str = "") -> Proposal:
        """Begins to hand leadership to the member ``to``, or to the one that has most of the
        log. Writes wait until it is over, or the chosen one did not take over in time. Settled
        when it has begun: ``wait_leadership`` tells the end. Elsewhere ``NotLeader``."""
        ...

    def wait_applied(self, index: int, deadline: float) -> bool:
        """Waits until this node has applied ``index``; False when the deadline passed."""
        ...

    def wait_leadership(self, seen: Leadership | None, deadline: float) -> Leadership:
        """Who leads: at once if that is not what the caller has ``seen``, else
        when it changes or the deadline has passed."""
        ...

    def listen(self, listener: Listener) -> None:
        """Calls ``listener(index, events)`` on the log's thread after each entry applied."""
        ...

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """One question to a peer over the nodes' own connection.

        Raises ``NotDone`` if it was certainly not delivered, ``Unknown`` if the
        answer did not come in time."""
        ...

    def serve(self, kind: str, handler: Handler) -> None:
        """Answers the peers' requests of that kind with ``handler``."""
        ...

    def close(self) -> None: ...


class LocalLog:
    """A log of one node that keeps nothing: what is proposed is applied at once.

    Commands go through the same encoding as on a real node, so a test on it
    sees the same values. It uses the feature level of this release, as a new cluster does.
    """

    def __init__(self, node_id: str = "local", *, changes: Changes | None = None) -> None:
        self.node_id: str = node_id
        self.registry: Registry = Registry()
        self.registry.replace(State.empty(level=LEVEL, history="0" * 16))
        self.changes: Changes = changes or Changes()
        self.term: int = 1
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._listeners: list[Listener] = []

    def status(self) -> LogStatus:
        index = self.registry.applied_index
        return LogStatus(
            node=self.node_id,
            leader=self.node_id,
            role="leader",
            term=self.term,
            commit_index=index,
            applied_index=index,
            leader_contact_s=0.0,
            serving_term=True,
            caught_up=True,
            peers=(),
        )

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        proposal = Proposal(encode(sealed(command, time_ns, request_id, level=self.registry.level)))
        proposal.take()
        with self._moved:
            index = self.registry.applied_index + 1
            applied = self.registry.apply(index, self.term, decode(proposal.data))
            if applied.anew:
                self.changes.reset(index)
            else:
                self.changes.publish(index, applied.events)
            for listener in self._listeners:
                listener(index, applied.events)
            self._moved.notify_all()
        proposal.resolve(applied.outcome, applied.error)
        return proposal

    def read_index(self) -> Proposal:
        read = Proposal(b"")
        read.resolve(Outcome(self.registry.applied_index, ()))
        return read

    def hand_over(self, to: str = "") -> Proposal:
        begun = Proposal(b"")
        begun.resolve(None, NotDone("there is no other node"))
        return begun

    def wait_applied(self, index: int, deadline: float) -> bool:
        with self._moved:
            return self._moved.wait_for(
                lambda: self.registry.applied_index >= index, max(0.0, deadline - time.monotonic())
            )

    def wait_leadership(self, seen: Leadership | None, deadline: float) -> Leadership:
        leadership = Leadership(self.term, self.node_id, True)
        if seen == leadership:
            time.sleep(max(0.0, deadline - time.monotonic()))
        return leadership

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        raise NotDone(f"no member is called {peer!r}")

    def serve(self, kind: str, handler: Handler) -> None:
        pass

    def close(self) -> None:
        self.changes.close()
