"""The Raft library behind a small face: every private name of pysyncobj stands in this file.

What is the library's (pysyncobj 0.3.17, ``syncobj.py``): roles, terms, votes, election timeouts, the rule when an
entry is committed (Raft paper, 5.3 and 5.4.2), the fall-back of a leader that hears no quorum, and the tick that runs
them in this order: stand for election, advance the commit index, apply, send heartbeats, take up proposals, compact,
poll. What it would do to log, disk and network is replaced: ``_Library`` overrides those methods and calls the
``Handlers`` that it was given. Sections are those of the Raft paper, or of Ongaro's dissertation where it says so.

A trap for whoever changes ``_Library``: the library's constructor calls ``getattr`` on every name of ``dir(self)``,
so each property there is evaluated before the constructor is done.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import pysyncobj
from msgspec import Struct
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport as LibraryTransport

from ..errors import Fatal
from ..network import wire
from ..storage.journal import Journal
from .config import EngineConfig
from .gate import GatedPoller

# The library reads CLOCK_MONOTONIC_RAW, which a time service does not steer as it does the
# clock of the engine: the two part by what was corrected, and deadlines cross between them.
pysyncobj.syncobj.monotonicTime = time.monotonic  # pyright: ignore[reportAttributeAccessIssue]

FOLLOWER: Final = 0
CANDIDATE: Final = 1
LEADER: Final = 2


class Handlers(Struct, frozen=True, kw_only=True):
    """What a tick of the library calls, in place of its own doing. All on the thread that ticks."""

    asks_first: Callable[[], bool]
    """Whether an election timer that ran out waits for a pre-vote (dissertation 9.6) before an election begins."""
    standing: Callable[[], None]
    """A candidacy begins; votes of an earlier one count no more (5.2)."""
    may_lead: Callable[[], bool]
    """A quorum voted for this node. If it may not lead all the same it becomes a follower."""
    leading: Callable[[], None]
    """It leads, and the no-op entry of its term is in the log."""
    role_changed: Callable[[int, int], None]
    """From the first to the second role. A candidate counts its term up right after this call."""
    send: Callable[[Node, wire.Message], None]
    """A vote, a candidacy or a transfer is to be sent, once what it implies is on disk."""
    heartbeat: Callable[[], None]
    """On a leader: a heartbeat is due."""
    apply: Callable[[], None]
    """What is committed may be applied."""
    take_up: Callable[[], None]
    """Proposals may be taken up, and entries sent."""
    compact: Callable[[], None]
    """The log may be compacted."""
    flush: Callable[[], None]
    """Before and after each wait for the network: what was noted becomes durable, and what was held leaves."""
    run_posted: Callable[[], None]
    """Right after each wait: what other threads asked for."""


class Raft:
    """One node's part in Raft: its role, term and vote, and the indexes that move with them.

    Everything here is for the thread that ticks; other threads may read. Nothing
    is on disk before the journal that ``restore`` was given is synced.
    """

    def __init__(self, node_id: str, others: Iterable[Node], config: EngineConfig, handlers: Handlers) -> None:
        self._library: _Library = _Library(node_id, others, config, handlers)
        self.poller: GatedPoller = GatedPoller(self._library._poller, handlers.flush, handlers.run_posted)
        self._library._poller = self.poller  # pyright: ignore[reportAttributeAccessIssue]
        self.match: Final[dict[Node, int]] = self._library._SyncObj__raftMatchIndex
        """On a leader: up to which entry each other node certainly holds this log (figure 2, matchIndex)."""
        self.next: Final[dict[Node, int]] = self._library._SyncObj__raftNextIndex
        """On a leader: the entry that is sent to each other node next (figure 2, nextIndex)."""
        self.applied_term: int = 0
        """The term of the entry that was applied last."""
        self.agreed_index: int = 0
        """What a leader's words prove to be committed. The commit index follows with the sync (``Outbox.flush``)."""

    # -- state (figure 2) ------------------------------------------------------------

    @property
    def role(self) -> int:
        """``FOLLOWER``, ``CANDIDATE`` or ``LEADER`` (5.1)."""
        return self._library._SyncObj__raftState

    @property
    def term(self) -> int:
        """The latest term that this node has seen (5.1)."""
        return self._library._SyncObj__raftCurrentTerm

    @property
    def vote(self) -> str | None:
        """Whom this node voted for in this term, or None (5.2)."""
        return self._library._SyncObj__votedForNodeId

    @property
    def leader(self) -> Node | None:
        """The leader of this term, as far as this node has heard; itself if it leads (5.2)."""
        return self._library._SyncObj__raftLeader

    @property
    def commit_index(self) -> int:
        """Up to which entry the log is committed, and durable here as well (5.3)."""
        return self._library._SyncObj__raftCommitIndex

    @property
    def applied(self) -> int:
        """Up to which entry the log is applied (5.3)."""
        return self._library._SyncObj__raftLastApplied

    @property
    def committed(self) -> int:
        """Up to which entry this node knows that the log is agreed on, be it on its disk yet or not (5.3)."""
        return max(self._library._SyncObj__raftCommitIndex, self.agreed_index)

    @property
    def serving(self) -> bool:
        """Leads, and has applied its own term's first entry: what it knows is not older than its term (8)."""
        return self.role == LEADER and self.applied_term == self.term

    @property
    def others(self) -> Collection[Node]:
        """The other members; a quorum is counted from these and this node (5.2)."""
        return self._library._SyncObj__otherNodes

    @property
    def voters(self) -> int:
        """How many members the cluster has, this node included."""
        return len(self._library._SyncObj__otherNodes) + 1

    def is_quorum(self, count: int) -> bool:
        """Whether so many members, this node included, are a majority (5.2)."""
        return 2 * count > self.voters

    # -- time ------------------------------------------------------------------------

    @property
    def election_due(self) -> float:
        """When the election timer runs out; 0 if an election is to begin with the next tick (5.2)."""
        return self._library.election_due

    @election_due.setter
    def election_due(self, due: float) -> None:
        self._library.election_due = due

    @property
    def heartbeat_due(self) -> float:
        """On a leader: when the next heartbeat is due (5.2)."""
        return self._library._SyncObj__newAppendEntriesTime

    @heartbeat_due.setter
    def heartbeat_due(self, due: float) -> None:
        self._library._SyncObj__newAppendEntriesTime = due

    def election_timeout_s(self) -> float:
        """Another random election timeout (5.2)."""
        return self._library._SyncObj__generateRaftTimeout()

    def tick(self, pause_s: float) -> None:
        """Does what is due by calling the ``Handlers``, then waits for the network for ``pause_s`` at most."""
        self._library.doTick(pause_s)

    # -- messages --------------------------------------------------------------------

    def vote_asked(self, node: Node, message: wire.RequestVote) -> None:
        """RequestVote at the receiver: grants the vote if this node has given none in that term, and the candidate's
        log is at least as new as its own (5.2, 5.4.1)."""
        self._receive(
            node,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_log_index,
                "last_log_term": message.last_log_term,
            },
        )

    def vote_granted(self, node: Node, term: int) -> None:
        """One more vote for this candidate; with a majority it leads (5.2). Counts calls, not voters."""
        self._receive(node, {"type": "response_vote", "term": term})

    def led_by(self, node: Node, term: int) -> None:
        """A message of the leader of a term that is not older than this node's: it follows, and its timer begins
        anew (5.2)."""
        self._receive(node, {"type": "append_entries", "term": term, "commit_index": self.commit_index})

    def told_to_stand(self, node: Node, term: int) -> None:
        """TimeoutNow at the receiver: this node stands with the next tick if its leader asks for it
        (dissertation 3.10)."""
        self._library.forced_term = term + 1
        self._receive(node, {"type": "timeout_now", "term": term})

    def _receive(self, node: Node, message: dict[str, Any]) -> None:
        self._library._SyncObj__onMessageReceived(node, message)

    # -- changes ---------------------------------------------------------------------

    def restore(self, journal: Journal, applied: int, applied_term: int) -> None:
        """Begins with what is on disk: term and vote (5.2), the log, and what a state file holds (7)."""
        library = self._library
        library._SyncObj__raftLog = journal
        library._SyncObj__raftCurrentTerm = max(journal.getCurrentTerm(), journal[-1][2])
        library._SyncObj__votedForNodeId = journal.getVotedForNodeId()
        if journal.getCurrentTerm() < self.term:
            library._SyncObj__votedForNodeId = None
        library._SyncObj__raftLastApplied = applied
        self.applied_term = applied_term
        library._SyncObj__raftCommitIndex = max(journal.getRaftCommitIndex(), applied)
        journal.setRaftCommitIndex(self.commit_index)
        library._SyncObj__needLoadDumpFile = False

    def apply(self, index: int, term: int) -> None:
        """The entry at ``index``, of ``term``, is applied, and all before it (5.3)."""
        self._library._SyncObj__raftLastApplied = index
        self.applied_term = term

    def commit(self, index: int) -> None:
        """Moves the commit index up to ``index``, and makes what it covers durable (5.3; dissertation 10.2.1)."""
        library = self._library
        library._SyncObj__raftCommitIndex = max(library._SyncObj__raftCommitIndex, index)
        library._SyncObj__raftLog.setRaftCommitIndex(library._SyncObj__raftCommitIndex)

    def follow(self, term: int) -> None:
        """Follows in a newer term, in which nobody is known to lead (5.1)."""
        self._library._SyncObj__setCurrentTerm(term, None)
        self._library._SyncObj__setState(FOLLOWER)
        self._library._SyncObj__raftLeader = None

    def vote_for(self, node_id: str) -> None:
        """Counts this node's vote of this term as given to ``node_id`` (5.2)."""
        self._library._SyncObj__setCurrentTerm(self.term, node_id)

    def forget_leader(self) -> None:
        """Knows of no leader any more (5.2)."""
        self._library._SyncObj__raftLeader = None

    def heard(self, node: Node, now: float) -> None:
        """On a leader: ``node`` follows it. A leader that hears no quorum steps down (dissertation 6.2)."""
        self._library._SyncObj__lastResponseTime[node] = now

    def connected(self, node: Node) -> None:
        """There is a connection to ``node``. Without any this node does not stand for election."""
        self._library._SyncObj__onNodeConnected(node)

    def disconnected(self, node: Node) -> None:
        """And now there is none."""
        self._library._SyncObj__onNodeDisconnected(node)

    # -- leadership transfer (dissertation 3.10) -------------------------------------

    def transfer(self, node: Node) -> None:
        """Tells ``node`` to stand at once, if it has all of the log."""
        self._library.transferLeadership(node)

    def forget_transfer(self) -> None:
        """Lets the leader's messages hold off elections again, if it had handed over to this node."""
        self._library._SyncObj__transferInProgress = False

    @property
    def was_handed_over(self) -> bool:
        """Whether this node stood in this term because the leader before asked for it."""
        return self._library.forced_term == self.term


class _Library(SyncObj):
    """The library, with the methods overridden that touch log, disk and network."""

    _SyncObj__raftState: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__votedForNodeId: str | None
    _SyncObj__raftLeader: Node | None
    _SyncObj__raftLog: Journal
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__newAppendEntriesTime: float
    _SyncObj__raftNextIndex: dict[Node, int]
    _SyncObj__raftMatchIndex: dict[Node, int]
    _SyncObj__lastResponseTime: dict[Node, float]
    _SyncObj__otherNodes: set[Node]
    _SyncObj__needLoadDumpFile: bool
    _SyncObj__transferInProgress: bool
    _SyncObj__setCurrentTerm: Callable[[int, str | None], None]
    _SyncObj__generateRaftTimeout: Callable[[], float]
    _SyncObj__onMessageReceived: Callable[[Node, dict[str, Any]], None]
    _SyncObj__onNodeConnected: Callable[[Node], None]
    _SyncObj__onNodeDisconnected: Callable[[Node], None]

    def __init__(self, node_id: str, others: Iterable[Node], config: EngineConfig, handlers: Handlers) -> None:
        self._handlers: Handlers = handlers
        self.forced_term: int = 0
        """The term that a leader which handed over asked this node to stand in."""
        super().__init__(
            Node(node_id),
            others,
            SyncObjConf(
                autoTick=False,
                raftMinTimeout=config.election_timeout_s_min,
                raftMaxTimeout=config.election_timeout_s_max,
                appendEntriesPeriod=config.heartbeat_period_s,
                leaderFallbackTimeout=config.leader_fallback_s,
                connectionTimeout=max(3.5, config.election_timeout_s_max),
                commandsWaitLeader=False,
                dynamicMembershipChange=False,
                onStateChanged=handlers.role_changed,
            ),
            transport=_LibraryPort(self._send),
        )

    @property
    def _SyncObj__raftElectionDeadline(self) -> float:
        """The library's election timer. It sees only what has been asked for (``Handlers.asks_first``):
        it looks at the clock once more, later, and would find a time that nobody asked about."""
        return math.inf if self.election_due and self._handlers.asks_first() else self.election_due

    @_SyncObj__raftElectionDeadline.setter
    def _SyncObj__raftElectionDeadline(self, due: float) -> None:
        self.election_due: float = due

    def _SyncObj__setState(self, newState: int) -> None:
        if newState == CANDIDATE:
            self._handlers.standing()
        super()._SyncObj__setState(newState)  # pyright: ignore[reportAttributeAccessIssue]

    def _SyncObj__onBecomeLeader(self) -> None:
        if not self._handlers.may_lead():
            self._SyncObj__setState(FOLLOWER)
            return
        super()._SyncObj__onBecomeLeader()  # pyright: ignore[reportAttributeAccessIssue]
        self._handlers.leading()

    def _SyncObj__sendAppendEntries(self) -> None:
        """Called when a heartbeat is due. The library's own sender repeats itself when a follower
        refuses (D14), spins while a state file is written, and knows no flow control."""
        self._handlers.heartbeat()

    def _SyncObj__applyLogEntries(self) -> bool:
        """The library's own applies an entry again if a callback raises (D12, D13)."""
        self._handlers.apply()
        return False

    def _checkCommandsToApply(self) -> None:
        """The library's own sends once a command, forwards by itself (D20, D21) and keeps commands
        whose client has gone."""
        self._handlers.take_up()

    def _SyncObj__tryLogCompaction(self) -> None:
        """The library's own loses the log in a crash (D5, D6, D15, D18)."""
        self._handlers.compact()

    def _send(self, node: Node, message: dict[str, Any]) -> None:
        """What the library itself sends: votes and transfers. Its other messages are replaced above."""
        match message["type"]:
            case "request_vote":
                term, transfer = message["term"], message["term"] == self.forced_term
                last_index, last_term = message["last_log_index"], message["last_log_term"]
                self._handlers.send(node, wire.RequestVote(term, last_index, last_term, transfer))
            case "response_vote":
                self._handlers.send(node, wire.RequestVoteResponse(message["term"]))
            case "timeout_now":
                self._handlers.send(node, wire.TimeoutNow(message["term"]))
            case other:
                raise Fatal(f"the library sends {other!r}, which this engine replaces")


class _LibraryPort(LibraryTransport):
    """What the library takes for its transport: it only ever sends through it.

    What arrives comes from our ``Transport`` to the engine directly.
    """

    def __init__(self, send: Callable[[Node, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._send: Callable[[Node, dict[str, Any]], None] = send

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self._send(node, message)
        return True
