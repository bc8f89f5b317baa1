"""Raft: the library's elections and commit rule (``library``), with every hole closed, around one thread.

What is ours: the log on disk (``journal``), state files (``snapshot``), the wire (``transport``), and how entries
are sent, matched, acknowledged and applied. "D3" and the like number the library's defects as ``DESIGN.md`` lists
them; "figure 2" and sections are those of the Raft paper and of Ongaro's dissertation.

One thread, the tick thread, owns everything here but ``propose``, ``request``,
``wait_applied`` and ``status``, which are for any thread. A tick is: advance the
commit index, apply, take up proposals and send, make the log durable, release
the messages that waited for that, then poll the network for what comes in.

The rule that makes durability hold: a message that implies something on disk
(a vote, a candidacy, an acknowledgement) goes through ``_hold`` and leaves only
after ``Journal.sync`` (D7). A leader's entries go out at once and reach its own
disk while they travel; ``Journal.setRaftCommitIndex`` stands between committed
and applied and syncs if that has not happened yet (dissertation 10.2.1).
"""

import contextlib
import heapq
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from msgspec import Struct
from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE

from ..commands import (
    KEEP_LEVEL,
    LEVEL,
    Begin,
    Command,
    Compare,
    Envelope,
    Raise,
    Readmit,
    adds,
    decode,
    encode,
    level_of,
    sealed,
)
from ..errors import (
    Damaged,
    DiskUnavailable,
    Fatal,
    Invalid,
    NotDone,
    NotLeader,
    Overloaded,
    Overwritten,
    RollcallError,
    TooSoon,
    Unknown,
)
from ..levels import PRE_VOTE_LEVEL
from ..log import Leadership, Listener, LogStatus, Role
from ..network import wire
from ..network.transport import Transport
from ..proposal import Pending, Proposal
from ..records import Event
from ..registry.changes import Changes
from ..registry.registry import Registry, State
from ..storage.disk import CHOICES, DirectoryLock, Disk, is_full
from ..storage.journal import NO_OP, REGULAR, Cut, Entry, Journal
from ..storage.peers import Peers
from ..storage.reserve import Reserve, ReservingDisk, lacking
from ..storage.snapshot import SnapshotHeader, Snapshots
from ..storage.standing import Standing
from ..storage.starts import Claims, Position
from .clocks import Clocks
from .compaction import Saving
from .library import CANDIDATE, FOLLOWER, LEADER, Handlers, Raft, Timing, check_library
from .snapshot_transfer import Incoming, Outgoing
from .transfers import GivingWay, Transfers

logger = logging.getLogger(__name__)

_ROLES: Mapping[int, Role] = {FOLLOWER: "follower", CANDIDATE: "candidate", LEADER: "leader"}

BATCH_BYTES = 1024 * 1024
"""Of entries in one message; a single larger entry travels alone."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Unsent to one follower before the leader stops adding to it."""
PROPOSALS_MAX = 20_000
"""Waiting to be taken up; past that a proposal is refused at once."""
BATCH_ENTRIES = 2_000
"""Of them, as many as are stored in a few milliseconds."""
DRAIN_BYTES = 1024 * 1024
DRAIN_S = 0.005
"""Of proposals taken up in one tick, and the time for it."""
APPLY_S = 0.005
"""Spent on applying in one tick, and on the entry that is applied then: a long backlog does not stop heartbeats."""
LOG_BYTES_MAX = 64 * 1024 * 1024
"""A log file that grew by so much is cut even if its entries are few."""
LOG_BYTES_SHORT = 1024 * 1024
"""The same where there is little room."""
LOG_BYTES_HARD = 4 * LOG_BYTES_MAX
"""A leader whose log grew by so much while a state file is written takes nothing up until that is done."""
KEEP_ENTRIES = 2_000
KEEP_BYTES = 4 * 1024 * 1024
"""Kept behind a state file, so that a follower that was briefly away needs no file."""
TICK_S = 0.05
TRANSFER_S = 1.0
DISK_RETRY_S = 1.0
READS_MAX = 20_000
"""Linearizable reads that wait for a round; each is usually many clients' at once."""
COMPARE_ENTRIES = 10_000
COMPARE_S = 60.0
"""The replicas' digests are compared after so many entries or so long, if anything changed (H10)."""
SAME_FAILURES_MAX = 3
_STOP_ALL = (
    "Stop all nodes before anything is overwritten; docs/operations.md (an older copy of a directory) says how to go on"
)
TERM_LEAP_MAX = 2**32
"""A peer may be ahead by so many terms. One election a millisecond takes seven weeks for that, and the highest
term that can be written is 2**31 such leaps away: nobody makes a term that no election can outdo."""
CLOCKS_S = 1.0
"""Between two pings that say what this node's clocks show."""
OTHERS_FIRST = 4.0
"""Longest election timeouts for which a node whose wall clock is off waits for another leader before it stands."""


class EngineConfig(Struct, frozen=True, kw_only=True):
    """What the engine must be told. Times in seconds."""

    directory: Path
    cluster: str
    election_timeout_s_min: float = 0.4
    election_timeout_s_max: float = 1.0
    heartbeat_period_s: float = 0.1
    leader_fallback_s: float = 1.5
    snapshot_entries: int = 10_000
    snapshot_interval_s: float = 300.0
    rejoin: bool = False
    """The operator's word that an empty directory comes in place of a lost disk (``standing.py``)."""
    accept_members: bool = False
    """The operator's word that the list of members is another one from here on."""
    restored: bool = False
    """The operator's word that all directories were put back from copies: the history gets a new id."""
    transfer_interval_s: float = 0.0
    """Between two hand-overs of leadership on request (``handing.py``). 0: no limit."""
    level: int = LEVEL
    """The feature level that this node understands; tests play an older or a newer node with it."""


class _Follower:
    """What a leader knows of one follower beside the library's two indexes.

    ``probing``: the follower refused, so one message at a time until it agrees
    (as in etcd's raft); otherwise messages are pipelined. ``held``: the last entry
    that it holds. The library's match index is the same, or 0 where the follower
    does not vote yet, so that it counts towards no commit.
    """

    def __init__(self) -> None:
        self.probing: bool = True
        self.probe_sent: bool = False
        self.held: int = 0
        self.votes: bool = True
        self.room: bool | None = None
        """Whether there is room on its disk; None until it has said so in this term."""
        self.sending: Outgoing | None = None
        self.at: float | None = None
        """Its clock in its newest answer on this connection."""


class _ReadRound:
    """Reads that wait for a quorum to say that this leader still leads (dissertation 6.4)."""

    def __init__(self, number: int, index: int, reads: list[Pending[int]], node_id: str) -> None:
        self.number: int = number
        self.index: int = index
        self.reads: list[Pending[int]] = reads
        self.said_yes: set[str] = {node_id}


class Engine:
    """The replicated log of one node (``log.Log``).

    The constructor opens and verifies the data directory and raises ``Damaged``,
    ``WrongDirectory`` or ``DiskUnavailable``; ``start`` begins to take part.
    ``on_fatal`` is called, once, when the tick thread cannot go on: the process
    must end, so that a supervisor starts it afresh.
    """

    def __init__(
        self,
        node_id: str,
        transport: Transport,
        config: EngineConfig,
        *,
        changes: Changes | None = None,
        disk: Disk | None = None,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        check_library()
        self.node_id: str = node_id
        self.registry: Registry = Registry()
        self.changes: Changes = changes or Changes()
        self._config: EngineConfig = config
        self._on_fatal: Callable[[BaseException], None] = on_fatal
        plain: Disk = disk or Disk()
        self._proposals: deque[Proposal] = deque()
        self._waiting: dict[int, tuple[int, Proposal]] = {}
        self._held: list[tuple[Node, wire.Message]] = []
        self._followers: dict[Node, _Follower] = {}
        self._votes: set[str] = set()
        self._pre_votes: set[str] = set()
        self._levels: dict[str, int] = {}
        self._disks: dict[str, tuple[str, str]] = {}
        self._own: dict[str, Proposal] = {}
        self._begin_anew: bool = config.restored
        """The history needs another id than it has, and no leader since this start has given it one."""
        self._reads: deque[Pending[int]] = deque()
        self._round: _ReadRound | None = None
        self._rounds: int = 0
        self._noted: dict[int, str] = {}
        self._compared_index: int = 0
        self._compared_at: float = 0.0
        self._changed_index: int = 0
        self._known_index: int = 0
        self._agreed_index: int = 0
        """What a leader's words prove to be committed. The commit index follows with the sync (``_flush``)."""
        self._verified: tuple[int, str, int] = (0, "", 0)
        self._send_now: bool = False
        self._commit_moved: bool = False
        self._receiving: Incoming | None = None
        self._receiving_from: tuple[int, str] = (0, "")
        self._installing: Future[tuple[SnapshotHeader, State]] | None = None
        self._saving: Future[SnapshotHeader] | None = None
        self._cutting: tuple[Cut, Future[None]] | None = None
        self._saved: SnapshotHeader | None = None
        self._pace: Saving = Saving(time.monotonic())
        self._transfer: tuple[Node, float] | None = None
        self._transfer_asked: bool = False
        self._transfers: Transfers = Transfers(config.transfer_interval_s)
        self._disk_error: str = ""
        self._disk_retry_at: float = 0.0
        self._short: str = ""
        """Why this node takes up nothing that adds to the registry, if it leads."""
        self._adds_not: str = ""
        """The same, and why it takes up nothing such as a leader of others that are short of room."""
        self._none_has_room: bool = False
        """And nobody will: there is no follower whom leadership could go to, or who could complete a quorum, soon."""
        self._giving_way: GivingWay = GivingWay()
        self._restore_at: float = 0.0
        self._wall_clocks: Clocks = Clocks()
        self._clocks_asked: dict[Node, float] = {}
        """The newest time that a peer put into a ping on this connection: it gets it back."""
        self._clocks_at: float = 0.0
        self._clock_off_at: float = 0.0
        """When this node's wall clock was found to be off; where it leads, when it tried to hand over."""
        self._leader_heard_at: float | None = None
        self._began_at: float = time.monotonic()
        self._heard: dict[Node, float] = {}
        """When a follower certainly followed this leader: it had read what was sent then."""
        self._asked_at: tuple[int, str, float | None] = (0, "", None)
        """Term, leader, and its clock when it sent the newest ``AppendEntries`` that was read."""
        self._named: tuple[int, float] | None = None
        """A commit index that a leader named, not applied here yet, and when no more than that was committed."""
        self._fresh_at: float | None = None
        """When this node last held all that was committed. None: not since it began."""
        self._applied_term: int = 0
        self._caught_up: bool = False
        self._joined_at: int | None = None
        self._listeners: list[Listener] = []
        self._leadership = Leadership(0, None, False)
        self._leadership_changed = threading.Condition()
        self._applied_lock = threading.Lock()
        self._applied_waiters: list[tuple[int, int, threading.Event]] = []
        self._waiter_count: int = 0
        self._stopping: bool = False
        self._thread: threading.Thread | None = None
        self._awake: bool = False
        self._pipe_read, self._pipe_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wire: Transport = transport
        with contextlib.ExitStack() as opened:
            opened.callback(self._close_pipe)
            opened.callback(transport.close)
            opened.callback(DirectoryLock(config.directory).release)
            opened.callback(self._abandon_cut)
            self.reserve: Reserve = Reserve(config.directory / "reserve", plain)
            self._disk: Disk = ReservingDisk(plain, self.reserve)
            self._large_files: Disk = ReservingDisk(plain, self.reserve, large=True)
            self.snapshots: Snapshots = Snapshots(config.directory, cluster=config.cluster, disk=self._large_files)
            opened.callback(self.snapshots.close)
            self.journal: Journal = Journal(
                config.directory / "journal",
                cluster=config.cluster,
                node=node_id,
                disk=self._disk,
                may_be_new=not self.snapshots.path.exists() and not (config.directory / "standing").exists(),
            )
            opened.callback(self.journal._destroy)
            self.raft: Raft = Raft(
                node_id,
                transport.nodes(),
                Timing(
                    election_timeout_s_min=config.election_timeout_s_min,
                    election_timeout_s_max=config.election_timeout_s_max,
                    heartbeat_period_s=config.heartbeat_period_s,
                    leader_fallback_s=config.leader_fallback_s,
                ),
                Handlers(
                    asks_first=self._asks_first,
                    standing=self._begin_candidacy,
                    may_lead=self._may_lead,
                    leading=self._begin_leading,
                    role_changed=self._role_changed,
                    send=self._hold,
                    heartbeat=self._send_heartbeat,
                    apply=self._apply_committed,
                    take_up=self._take_up,
                    compact=self._compact,
                    flush=self._flush,
                    run_posted=transport.run_posted,
                ),
            )
            self._restore()
            self.standing: Standing = Standing(
                config.directory,
                self._disk,
                [node.id for node in transport.nodes()],
                node=node_id,
                empty=self._saved is None and self.journal.last_index <= 1 and self.raft.term == 0,
                rejoin=config.rejoin,
                accept_members=config.accept_members,
            )
            self._peers: Peers = Peers(
                config.directory,
                self._disk,
                [node.id for node in transport.nodes()],
                node=node_id,
                at=self._position(),
                counted=self.standing.counted,
                hints=plain,
            )
            if self._claims() is not None:
                self.standing.count()
            self._introduce()
            self.raft.poller.subscribe(self._pipe_read, self._on_wake, POLL_EVENT_TYPE.READ)
            transport.attach(
                self.raft.poller,
                wake=self.wake,
                on_message=self._on_message,
                on_connected=self._on_connected,
                on_disconnected=self._on_disconnected,
                on_greeted=self._on_greeted,
                on_refused=self._on_refused,
            )
            self._opened: contextlib.ExitStack = opened.pop_all()

    # -- life ----------------------------------------------------------------------

    def start(self) -> None:
        """Starts the tick thread."""
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the tick thread and closes everything. What is under way becomes unknown."""
        self._stopping = True
        self.wake()
        with self._leadership_changed:
            self._leadership_changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.changes.close()
        for proposal in self._abandoned():
            proposal.give_up("this node is stopping")
        for follower in self._followers.values():
            self._stop_sending(follower)
        self._abort_receiving()
        self._opened.close()

    def wake(self) -> None:
        """Ends the wait of the tick thread. For any thread."""
        if not self._awake:
            self._awake = True
            # A full pipe means that the thread is about to wake anyway.
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._pipe_write, b"w")

    def _close_pipe(self) -> None:
        os.close(self._pipe_read)
        os.close(self._pipe_write)

    def _abandoned(self) -> list[Pending[Any]]:
        left: list[Pending[Any]] = [*self._proposals, *self._reads]
        left += [proposal for _, proposal in self._waiting.values()]
        if self._round is not None:
            left += self._round.reads
        self._proposals.clear()
        self._waiting.clear()
        self._reads.clear()
        self._round = None
        return left

    def _run(self) -> None:
        """The tick loop. One odd failure is survived; the same three times in a row is not."""
        failures: list[str] = []
        while not self._stopping:
            try:
                self.tick()
                failures.clear()
            except (Fatal, OSError, MemoryError) as error:
                self._fail(error)
                return
            except Exception as error:
                logger.exception("the tick thread failed")
                failures.append(repr(error))
                if failures[-SAME_FAILURES_MAX:].count(repr(error)) == SAME_FAILURES_MAX:
                    self._fail(error)
                    return

    def _fail(self, error: BaseException) -> None:
        logger.critical("this node cannot go on: %s", error)
        for proposal in self._abandoned():
            proposal.give_up(f"this node failed: {error}")
        self._on_fatal(error)

    def tick(self) -> None:
        """One round; waits for the network at most until something is due."""
        self._wire.tick()
        now = time.monotonic()
        self._note_freshness(now)
        self._mind_room(now)
        self._mind_clock(now)
        self._continue_transfer(now)
        self._continue_install()
        self._continue_election(now)
        self._note_leadership()
        self._peers.save(now, self.snapshots.run)
        self.raft.tick(self._pause_s(now))

    def _note_leadership(self) -> None:
        heard_at = self._leader_heard_at
        silent = heard_at is not None and time.monotonic() - heard_at > self._config.election_timeout_s_max
        if silent and self.raft.role != LEADER:
            # The library forgets a leader when it stands for election itself, and alone it never stands.
            self.raft.forget_leader()
        leader = self.raft.leader
        found = Leadership(self.raft.term, leader.id if leader is not None else None, self._serving)
        former = self._leadership.leader
        if former is not None and former not in (found.leader, self.node_id):
            # Nobody should wait for a leader that was given up. One that hands over in order still answers.
            self._wire.abandon(former, self._config.election_timeout_s_min / 2)
        if found != self._leadership:
            with self._leadership_changed:
                self._leadership = found
                self._leadership_changed.notify_all()

    def _pause_s(self, now: float) -> float:
        if self._held or self._send_now or self.raft.commit_index > self.raft.applied:
            return 0.0
        if self._proposals and self._transfer is None and self._log_has_room:
            return 0.0
        if self._reads and self._round is None and self._serving:
            return 0.0
        if self.raft.role == LEADER:
            return min(TICK_S, max(0.001, self.raft.heartbeat_due - now))
        remaining_s = self.raft.election_due - now
        return min(TICK_S, remaining_s) if remaining_s > 0 else TICK_S

    def _on_wake(self, descriptor: int, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._pipe_read, 4096)) == 4096:
                pass
        # Last: what was posted before this line is seen by the tick that follows.
        self._awake = False

    # -- for any thread ------------------------------------------------------------

    def status(self) -> LogStatus:
        now = time.monotonic()
        leader = self.raft.leader
        fresh_at = self._fresh_at
        return LogStatus(
            node=self.node_id,
            leader=leader.id if leader is not None else None,
            role=_ROLES[self.raft.role],
            term=self.raft.term,
            commit_index=self.raft.commit_index,
            applied_index=self.raft.applied,
            leader_contact_s=None if fresh_at is None else max(0.0, now - fresh_at),
            serving_term=self._serving,
            caught_up=self._caught_up,
            peers=self._wire.statuses(),
            disk_error=self._disk_error or self._short or self.reserve.error,
            stores_nothing=bool(self._disk_error),
            clock_error=self._wall_clocks.error,
            clock_ahead_s=self._wall_clocks.ahead_s(now, time.time_ns()),
            standing=self.standing.kind,
            level=self.registry.level,
            snapshot_error=self._pace.error,
        )

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        # Members of releases before the level say nothing of their clocks.
        needed = self.raft.voters // 2 if self.registry.level >= KEEP_LEVEL else 0
        objection = self._wall_clocks.objection(time_ns, time.monotonic(), needed) if self.raft.role == LEADER else ""
        return self._propose(command, time_ns, request_id, objection)

    def _propose(self, command: Command, time_ns: int, request_id: str, objection: str) -> Proposal:
        data = encode(sealed(command, time_ns, request_id, level=self.registry.level))
        proposal = Proposal(data, adds=adds(command))
        if level_of(command) > self.registry.level and not isinstance(command, Raise):
            refusal = NotDone("not every member understands this yet: upgrade them all", needs_level=level_of(command))
            proposal.resolve(None, refusal)
        elif self.raft.role != LEADER:
            proposal.resolve(None, NotLeader(f"{self.node_id} does not lead"))
        elif self._disk_error:
            proposal.resolve(None, DiskUnavailable(self._disk_error))
        elif objection:
            proposal.resolve(None, NotDone(objection))
        elif len(self._proposals) >= PROPOSALS_MAX:
            proposal.resolve(None, Overloaded(f"{PROPOSALS_MAX} writes wait already", limit=PROPOSALS_MAX))
        else:
            self._proposals.append(proposal)
            self.wake()
        return proposal

    def read_index(self) -> Pending[int]:
        read: Pending[int] = Pending()
        if self.raft.role != LEADER:
            read.resolve(None, NotLeader(f"{self.node_id} does not lead"))
        elif len(self._reads) >= READS_MAX:
            read.resolve(None, Overloaded(f"{READS_MAX} reads wait already", limit=READS_MAX))
        else:
            self._reads.append(read)
            self.wake()
        return read

    def wait_applied(self, index: int, deadline: float) -> bool:
        if self.raft.applied >= index:
            return True
        event = threading.Event()
        with self._applied_lock:
            self._waiter_count += 1
            heapq.heappush(self._applied_waiters, (index, self._waiter_count, event))
        # Applied between the look and the push: nobody would wake this waiter.
        if self.raft.applied >= index:
            return True
        if event.wait(max(0.0, deadline - time.monotonic())):
            return True
        with self._applied_lock:
            self._applied_waiters = [waiter for waiter in self._applied_waiters if waiter[2] is not event]
            heapq.heapify(self._applied_waiters)
        return self.raft.applied >= index

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    @property
    def leadership(self) -> Leadership:
        return self._leadership

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        with self._leadership_changed:
            self._leadership_changed.wait_for(
                lambda: self._leadership != seen or self._stopping, max(0.0, deadline - time.monotonic())
            )
            return self._leadership

    def hand_over(self, to: str = "") -> Pending[int]:
        return self._hand_over(lambda: self._begin_wanted_transfer(to))

    def _hand_over(self, begin_transfer: Callable[[], NotDone | None]) -> Pending[int]:
        begun: Pending[int] = Pending()

        def begin() -> None:
            error = begin_transfer()
            begun.resolve(self.raft.applied if error is None else None, error)

        self._wire.post(begin)
        return begun

    def transfer_leadership(self, deadline: float) -> bool:
        """Hands leadership over and waits. True once this node does not lead (any more);
        False if nobody took over by ``deadline``."""
        begun = self._hand_over(self._begin_transfer)
        while self.raft.role == LEADER and time.monotonic() < deadline:
            if begun.done() and self._transfer is None:
                break  # nobody is able, or who was chosen did not take over
            time.sleep(0.005)
        return self.raft.role != LEADER

    def drain(self) -> None:
        """Tells the peers that this node is about to stop."""
        self._wire.post(self._wire.set_draining)
        self._wire.post(self._save_words)

    def _save_words(self) -> None:
        """What the peers gave their word for, on disk soon: this node may be about to forget it."""
        self._peers.save(time.monotonic(), self.snapshots.run, at_once=True)

    # -- facts ---------------------------------------------------------------------

    @property
    def _committed(self) -> int:
        """Up to which entry this node knows that the log is agreed on, be it on its disk yet or not."""
        return max(self.raft.commit_index, self._agreed_index)

    @property
    def _serving(self) -> bool:
        """Leads, and has applied its own term's first entry."""
        return self.raft.role == LEADER and self._applied_term == self.raft.term

    @property
    def _log_has_room(self) -> bool:
        """False while writes come in faster than a state file is written: what the log takes is bounded."""
        return self.journal.growth < LOG_BYTES_HARD or not (self._saving or self._cutting)

    @property
    def _log_grew(self) -> bool:
        """By so much that a state file is due, however few the entries are."""
        return self.journal.growth > (LOG_BYTES_SHORT if self.reserve.short else LOG_BYTES_MAX)

    def _quorum_contact_s(self, now: float) -> float:
        """How long ago this leader last heard a quorum, itself included."""
        ages = sorted(now - heard for heard in self._heard.values())
        needed = self.raft.voters // 2
        return ages[needed - 1] if needed else 0.0

    # -- start-up ------------------------------------------------------------------

    def _restore(self) -> None:
        """State file, then log, into memory, and the library's state with them.

        The log may lie behind the state file (a crash between installing one and
        cutting the other): what follows the file's index is kept if it belongs
        there and dropped if it does not, never the reverse (D5).
        """
        journal = self.journal
        found = self.snapshots.load()
        if found is None:
            if journal.base_index > 1:
                raise Damaged(
                    f"{self.snapshots.path} is missing: the log beside it starts at entry {journal.base_index}, and "
                    f"the state file for what came before is gone. Put it back, or: {CHOICES}"
                )
            self.registry.skip(1, 0)
            applied = 1
        else:
            header, state = found
            if header.index < journal.base_index:
                raise Damaged(
                    f"{self.snapshots.path} ends at entry {header.index}, but the log beside it starts at entry "
                    f"{journal.base_index}: it is not the newest state file. Put that back, or: {CHOICES}"
                )
            if journal.term_at(header.index) != header.term:
                if journal.getRaftCommitIndex() >= header.index:
                    raise Damaged(
                        f"{self.snapshots.path} ends at entry {header.index} of term {header.term}, which "
                        f"contradicts the log beside it: they do not belong together. {CHOICES}"
                    )
                journal.reset((NO_OP, header.index, header.term))
            self._check_level(state.facts.level)
            self.registry.replace(state)
            self._saved = header
            applied = header.index
        self.changes.reset(applied)
        self._applied_term = found[0].term if found else 0
        self.raft.restore(journal, applied)
        self._known_index = self.raft.commit_index

    def _check_level(self, level: int) -> None:
        if level > self._config.level:
            raise Fatal(
                f"the cluster uses feature level {level}, and this release understands {self._config.level}: "
                "start this node with the release that the others run"
            )

    # -- proposals (figure 2, rules for leaders) -----------------------------------

    def _take_up(self) -> None:
        """Takes up proposals and sends."""
        taken = 0
        until = time.monotonic() + DRAIN_S
        while self._proposals and taken < DRAIN_BYTES and self._transfer is None and self._log_has_room:
            if time.monotonic() > until:
                break
            proposal = self._proposals.popleft()
            if self.raft.role != LEADER:
                proposal.resolve(None, NotLeader(f"{self.node_id} does not lead any more"))
                continue
            if proposal.adds and self._adds_not:
                facts = {"nearly_full": True} if self._none_has_room else {}
                proposal.resolve(None, DiskUnavailable(self._adds_not, **facts))
                continue
            try:
                self.journal.check_room(len(proposal.data) + 64)
            except DiskUnavailable as error:
                proposal.resolve(None, error)
                self._disk_failed(error)
                continue
            if not proposal.take():
                continue
            index = self.journal.last_index + 1
            self.journal.add(REGULAR + proposal.data, index, self.raft.term)
            self._expect(index, proposal)
            taken += len(proposal.data)
            self._send_now = True
        self._begin_read_round()
        if self.raft.role == LEADER and (self._send_now or self._commit_moved):
            self._replicate(heartbeat=False)
        self._send_now = False
        self._commit_moved = False

    def _expect(self, index: int, proposal: Proposal) -> None:
        before = self._waiting.pop(index, None)
        if before is not None:
            # Of an earlier leadership: gone from this log, but another node may hold and commit it.
            before[1].resolve(None, Unknown("leadership was lost before the write was committed"))
        self._waiting[index] = (self.raft.term, proposal)

    # -- sending entries (figure 2, AppendEntries) ---------------------------------

    def _send_heartbeat(self) -> None:
        """On a leader, when a heartbeat is due."""
        now = time.monotonic()
        self.raft.heartbeat_due = now + self._config.heartbeat_period_s
        self._replicate(heartbeat=True)
        self._probe_again()
        if self._serving:
            self._propose_own(now)

    def _replicate(self, *, heartbeat: bool) -> None:
        encoded: dict[tuple[int, int], bytes] = {}
        for node in self._wire.nodes():
            if not self._wire.connected(node):
                continue
            follower = self._followers.setdefault(node, _Follower())
            if self.raft.next[node] <= self.journal.base_index or follower.sending is not None:
                self._send_state(node, follower)
                if heartbeat:
                    self._send_append(node, 0, 0, encoded)
            elif follower.probing:
                if heartbeat or not follower.probe_sent:
                    follower.probe_sent = True
                    self._send_entries(node, encoded, once=True)
            else:
                self._send_entries(node, encoded, once=False, even_none=heartbeat or self._commit_moved)

    def _send_entries(
        self, node: Node, encoded: dict[tuple[int, int], bytes], *, once: bool, even_none: bool = True
    ) -> None:
        last = self.journal.last_index
        start = self.raft.next[node]
        sent = False
        while start <= last and self._wire.backlog(node) < WINDOW_BYTES:
            count = self._count_from(start)
            self._send_append(node, start, count, encoded)
            sent = True
            if once:
                return
            start += count
            self.raft.next[node] = start
        if even_none and not sent:
            self._send_append(node, start, 0, encoded)

    def _count_from(self, start: int) -> int:
        """How many entries from ``start`` fit in one message; at least one."""
        size = count = 0
        first = start - self.journal.base_index
        for position in range(first, len(self.journal)):
            size += len(self.journal[position][0]) + 16
            if count and (size > BATCH_BYTES or count == BATCH_ENTRIES):
                break
            count += 1
        return count

    def _send_append(self, node: Node, start: int, count: int, encoded: dict[tuple[int, int], bytes]) -> None:
        """Entries ``start`` to ``start + count``; the bytes are made once for all followers.

        ``start`` 0 is a heartbeat that claims nothing about the follower's log.
        """
        frame = encoded.get((start, count))
        if frame is None:
            now = time.monotonic()
            contact_s = self._quorum_contact_s(now)
            previous = max(0, start - 1)
            frame = encoded[start, count] = wire.encode(
                wire.AppendEntries(
                    self.raft.term,
                    self.raft.commit_index,
                    previous,
                    (self.journal.term_at(previous) or 0) if start else 0,
                    tuple(self.journal.from_index(start, count)) if count else (),
                    contact_s > self._config.election_timeout_s_min,
                    now,
                    contact_s,
                    self._clocks() if self._serving else {},
                )
            )
        self._wire.broadcast([node], frame)

    def _clocks(self) -> dict[str, float]:
        return {node.id: follower.at for node, follower in self._followers.items() if follower.at is not None}

    # -- receiving -----------------------------------------------------------------

    def _on_message(self, node: Node, message: wire.Message) -> None:
        """The gate: everything from a peer enters here, and only what is proven passes.

        Votes go on to the library; appends, acknowledgements and state files are
        handled here. Commands, membership changes and utility messages of the
        library's own protocol do not exist on our wire (D19, D20, D24).
        """
        term: int = getattr(message, "term", 0)
        # Who does not vote has no term to protect, and may come to a cluster that is far ahead.
        if term - self.raft.term > TERM_LEAP_MAX and self.standing.votes:
            self._wire.drop(
                node, f"sent a {type(message).__name__} of term {term}, and this node is in {self.raft.term}"
            )
            return
        match message:
            case wire.AppendEntries():
                self._on_append(node, message)
            case wire.Ping():
                self._on_ping(node, message)
            case wire.AppendEntriesResponse():
                self._on_progress(node, message)
            case wire.RequestVote():
                self._on_request_vote(node, message)
            case wire.RequestVoteResponse():
                self._on_grant_vote(node, message)
            case wire.PreVote():
                self._on_pre_vote(node, message)
            case wire.PreVoteResponse():
                self._on_pre_voted(node, message)
            case wire.ReadProbe():
                self._on_read_probe(node, message)
            case wire.ReadProbeResponse():
                self._on_read_probed(node, message)
            case wire.TimeoutNow():
                self._on_timeout_now(node, message)
            case wire.InstallSnapshot():
                self._on_install(node, message)
            case wire.InstallSnapshotResponse():
                self._on_installed(node, message)
            case _:
                self._wire.drop(node, f"sent an unexpected {type(message).__name__}")

    def _on_request_vote(self, node: Node, message: wire.RequestVote) -> None:
        """Answered by the library, unless this node may not vote, or hears a leader that did
        not ask for the election itself (dissertation 4.2.3)."""
        if not self.standing.votes:
            return
        sticky = self.registry.level >= PRE_VOTE_LEVEL and not message.transfer
        if sticky and self._hears_leader(time.monotonic()):
            return
        self.raft.vote_asked(node, message)

    def _on_grant_vote(self, node: Node, message: wire.RequestVoteResponse) -> None:
        """The library counts messages; a vote counts once a voter."""
        if message.term <= self.raft.term:
            # Nobody votes for this node in a term that it was not in.
            self._peers.hear(node.id, Position(message.term))
        if message.term != self.raft.term or self.raft.role != CANDIDATE or node.id in self._votes:
            return
        self._votes.add(node.id)
        self.raft.vote_granted(node, message.term)

    def _on_append(self, node: Node, message: wire.AppendEntries) -> None:
        """AppendEntries at the receiver (figure 2), instead of the library's.

        Only entries in conflict are deleted, and never committed ones (D1). The
        commit index follows only what was verified against this leader in this
        term (D2). Every refusal names the same proven point (D14).
        """
        if not self._hear_leader(node, message.term):
            return
        self._asked_at = (message.term, node.id, message.at)
        if self._joined_at is None and not message.detached:
            self._joined_at = message.commit_index
        self._take_freshness(message)
        if self._receiving is not None and message.previous_index:
            # The leader sends entries again, so it no longer sends the state file: it would be waited for in vain.
            self._abort_receiving()
        if self._installing is not None or not message.previous_index:
            self._answer(node, alive=True)
            return
        term, leader, verified = self._verified
        if (term, leader) != (message.term, node.id):
            verified = 0
        verified = max(verified, self._committed)
        entries = message.entries
        previous, previous_term = message.previous_index, message.previous_term
        if previous < self.journal.base_index:
            # What was compacted away was committed, so it agrees (Leader Completeness).
            entries = entries[self.journal.base_index - previous :]
            previous, previous_term = self.journal.base_index, self.journal[0][2]
        held = self.journal.term_at(previous)
        if held != previous_term:
            if held is not None and previous <= self._committed:
                what = f"{node.id}, the leader of term {message.term}, has term {previous_term} at entry {previous}"
                raise self._contradiction(node, f"{what}, which is committed with term {held} on {self.node_id}")
            self._verified = (message.term, node.id, verified)
            self._answer(node, next_index=verified + 1, reset=True)
            return
        self._check_entries(node, message, previous, entries)
        try:
            self._store(node, entries)
        except DiskUnavailable as error:
            self._disk_failed(error)
            self._answer(node, alive=True)
            return
        end = previous + len(entries)
        verified = max(verified, end)
        self._verified = (message.term, node.id, verified)
        commit = min(message.commit_index, verified)
        if commit > self._committed:
            self._agreed_index = commit
            self._peers.hear(node.id, Position(message.term, self.journal.term_at(commit) or 0, commit))
        self._answer(node, next_index=verified + 1)

    def _hear_leader(self, node: Node, term: int) -> bool:
        """What any message of a leader does: term, role, election timer. False if it is stale,
        or this node has not found out yet whether it is one of this cluster's."""
        if self.standing.kind == "new":
            return False
        if term < self.raft.term:
            self._answer(node, alive=True)
            return False
        if self.raft.role == LEADER and term == self.raft.term:
            raise Fatal(f"two leaders in term {term}: {node.id} and {self.node_id}")
        if (term, node.id) != self._receiving_from:
            # The rest of a state file would have come from the leader before.
            self._abort_receiving()
        self.raft.led_by(node, term)
        self._pre_votes.clear()
        self._leader_heard_at = time.monotonic()
        return True

    def _check_entries(
        self, node: Node, message: wire.AppendEntries, previous: int, entries: tuple[Entry, ...]
    ) -> None:
        expected, term = previous + 1, 0
        for _, index, entry_term in entries:
            if index != expected or entry_term < term or entry_term > message.term:
                self._wire.drop(node, f"sent entry {index} of term {entry_term} where {expected} was due")
                raise Invalid(f"{node.id} sent entries out of order")
            expected, term = expected + 1, entry_term

    def _store(self, node: Node, entries: tuple[Entry, ...]) -> None:
        """Rules 3 and 4 of AppendEntries: skip what is held, cut only a conflict, append the rest."""
        journal = self.journal
        for position, (_, index, term) in enumerate(entries):
            held = journal.term_at(index)
            if held == term:
                continue
            if held is not None:
                if index <= self._committed:
                    what = f"entry {index} of term {term} from {node.id} contradicts a committed one of term {held}"
                    raise self._contradiction(node, f"{what} on {self.node_id}")
                journal.deleteEntriesFrom(index - journal.base_index)
            rest = entries[position:]
            journal.check_room(sum(len(command) + 64 for command, _, _ in rest))
            for entry in rest:
                journal.add(*entry)
            return

    def _answer(self, node: Node, *, next_index: int = 0, reset: bool = False, alive: bool = False) -> None:
        """Acknowledges, once it is true on disk (``_hold``). Stamped with our term (D4)."""
        success = not reset and not alive
        term, leader, at = self._asked_at
        asked_at = at if (term, leader) == (self.raft.term, node.id) else None
        votes, room = self.standing.votes, not (self.reserve.short or self._disk_error)
        self._hold(
            node,
            wire.AppendEntriesResponse(
                self.raft.term, next_index, success, reset, votes, time.monotonic(), asked_at, room
            ),
        )

    def _on_progress(self, node: Node, message: wire.AppendEntriesResponse) -> None:
        """A follower's answer. One of another term says nothing about this one (D4)."""
        if message.term > self.raft.term:
            self.raft.follow(message.term)
            return
        if message.term < self.raft.term or self.raft.role != LEADER:
            return
        if message.next_index > self.journal.last_index + 1:
            # Leader Completeness: whoever leads has all that was agreed on, and in its own term its log only grows.
            what = f"{node.id} holds what was agreed on up to entry {message.next_index - 1}"
            ends = f"the log of {self.node_id}, the leader of term {self.raft.term}, ends at entry"
            last = f"{self.journal.last_index} of term {self.journal[-1][2]}"
            raise self._contradiction(node, f"{what}, and {ends} {last}")
        follower = self._followers.setdefault(node, _Follower())
        follower.votes = message.voting
        follower.room = message.room
        follower.at = message.at
        if message.voting:
            now = time.monotonic()
            self.raft.heard(node, now)
            asked_at = now if message.at is None else message.asked_at
            if asked_at is not None:
                self._heard[node] = max(self._heard.get(node, 0.0), min(asked_at, now))
            self._disks.pop(node.id, None)
        if message.success:
            follower.held = max(follower.held, message.next_index - 1)
            if message.voting:
                self.raft.match[node] = follower.held
                entry_term = self.journal.term_at(message.next_index - 1)
                if entry_term is not None:
                    self._peers.hear(node.id, Position(self.raft.term, entry_term, message.next_index - 1))
            if follower.probing or self.raft.next[node] <= follower.held:
                self.raft.next[node] = follower.held + 1
            follower.probing = False
            if follower.sending is not None and follower.held >= follower.sending.index:
                self._stop_sending(follower)
            if self.raft.next[node] <= self.journal.last_index:
                self._send_now = True
        elif message.reset and follower.sending is None:
            # The first entry is the same everywhere.
            wanted = max(2, message.next_index)
            # A follower that starts again has proven less than it once acknowledged;
            # counting less than it holds is always safe, the reverse never.
            self.raft.match[node] = min(self.raft.match[node], wanted - 1)
            follower.held = min(follower.held, wanted - 1)
            if follower.probing and follower.probe_sent and wanted == self.raft.next[node]:
                # Refusals of messages that were already on their way.
                return
            self.raft.next[node] = wanted
            follower.probing = True
            follower.probe_sent = False
            self._send_now = True

    # -- elections: asked first, and only without a leader (dissertation 9.6, 4.2.3) -

    def _continue_election(self, now: float) -> None:
        """Stands in front of the library's election timer (H7).

        When it is due, the others are asked first whether they would vote for this
        node. Only if a quorum would is the library let go, which counts the term up.
        So a node that comes back from behind a partition deposes nobody.
        """
        if self.raft.role == LEADER:
            return
        if not self.standing.votes:
            self.raft.election_due = max(self.raft.election_due, now + self._config.election_timeout_s_max)
            return
        if self._wall_clocks.error and self.raft.election_due:
            # The others first. But not never: the log that they need may be here.
            since = max(self._clock_off_at, self._leader_heard_at or 0.0)
            self.raft.election_due = max(
                self.raft.election_due, since + OTHERS_FIRST * self._config.election_timeout_s_max
            )
        due = self.raft.election_due
        if due == 0 and self._wire.nodes() and not any(map(self._wire.connected, self._wire.nodes())):
            # What was granted was granted then; when somebody is reached again it must be asked anew.
            due = self.raft.election_due = now
            self.raft.forget_transfer()
        if due == 0 or now <= due or self.registry.level < PRE_VOTE_LEVEL:
            return
        reached = [node for node in self._wire.nodes() if self._wire.connected(node)]
        if not reached and self._wire.nodes():
            return
        shortest = self._config.election_timeout_s_min
        self.raft.election_due = now + random.uniform(shortest / 4, shortest / 2)
        self._pre_votes = {self.node_id}
        for node in reached:
            self._wire.send(node, wire.PreVote(self.raft.term, self.journal.last_index, self.journal[-1][2]))
        self._count_pre_votes()

    def _count_pre_votes(self) -> None:
        if self.raft.is_quorum(len(self._pre_votes)):
            self._pre_votes.clear()
            self.raft.election_due = 0

    def _on_pre_vote(self, node: Node, message: wire.PreVote) -> None:
        if message.term < self.raft.term:
            self._wire.send(node, wire.PreVoteResponse(self.raft.term, False))
            return
        if not self.standing.votes or self._hears_leader(time.monotonic()):
            return
        ours = (self.journal[-1][2], self.journal.last_index)
        if (message.last_log_term, message.last_log_index) >= ours:
            self._wire.send(node, wire.PreVoteResponse(message.term, True))

    def _on_pre_voted(self, node: Node, message: wire.PreVoteResponse) -> None:
        if not message.granted:
            if message.term > self.raft.term:
                self.raft.follow(message.term)
        elif message.term == self.raft.term and self._pre_votes:
            self._pre_votes.add(node.id)
            self._count_pre_votes()

    def _hears_leader(self, now: float) -> bool:
        """Whether there is a leader that this node would not help to depose."""
        if self.raft.role == LEADER:
            return self._quorum_contact_s(now) < self._config.election_timeout_s_min
        leader, heard_at = self.raft.leader, self._leader_heard_at
        if self.raft.role != FOLLOWER or leader is None or heard_at is None:
            return False
        return now - heard_at < self._config.election_timeout_s_min and self._wire.connected(leader)

    def _on_timeout_now(self, node: Node, message: wire.TimeoutNow) -> None:
        """The leader hands over: this node stands at once, and says why to those who still hear that leader."""
        if self._disk_error or self._wall_clocks.error or not self.standing.votes:
            return
        self.raft.told_to_stand(node, message.term)

    # -- linearizable reads (dissertation 6.4) -------------------------------------

    def _begin_read_round(self) -> None:
        """One question to the others for all reads that wait; what comes meanwhile waits for the next."""
        if self._reads and self.raft.role != LEADER:
            # Another thread asked in the moment in which leadership was lost.
            self._fail_reads()
        if not self._reads or self._round is not None or not self._serving:
            return
        reads = [read for read in (self._reads.popleft() for _ in range(len(self._reads))) if not read.done()]
        if not reads:
            return
        self._rounds += 1
        self._round = _ReadRound(self._rounds, self.raft.commit_index, reads, self.node_id)
        self._probe_again()
        self._finish_read_round()

    def _probe_again(self) -> None:
        if self._round is not None and self.raft.role == LEADER:
            for node in self._wire.nodes():
                if node.id not in self._round.said_yes and self._wire.connected(node):
                    self._wire.send(node, wire.ReadProbe(self.raft.term, self._round.number))

    def _finish_read_round(self) -> None:
        finished = self._round
        if finished is not None and self.raft.is_quorum(len(finished.said_yes)):
            self._round = None
            for read in finished.reads:
                read.resolve(finished.index)

    def _on_read_probe(self, node: Node, message: wire.ReadProbe) -> None:
        if message.term < self.raft.term:
            self._answer(node, alive=True)
        elif message.term == self.raft.term and self.standing.votes:
            self._wire.send(node, wire.ReadProbeResponse(message.term, message.round))

    def _on_read_probed(self, node: Node, message: wire.ReadProbeResponse) -> None:
        if self.raft.role != LEADER or message.term != self.raft.term:
            return
        self.raft.heard(node, time.monotonic())
        if self._round is not None and message.round == self._round.number:
            self._round.said_yes.add(node.id)
            self._finish_read_round()

    def _fail_reads(self) -> None:
        reads = [*self._reads, *(self._round.reads if self._round is not None else ())]
        self._reads.clear()
        self._round = None
        for read in reads:
            read.resolve(None, NotLeader(f"{self.node_id} does not lead any more"))

    # -- what the leader proposes by itself ----------------------------------------

    def _propose_own(self, now: float) -> None:
        """Raises the feature level, names the history, readmits who lost a disk, compares the replicas.
        At each heartbeat."""
        levels = [self._levels.get(node.id, 0) if self._wire.connected(node) else 0 for node in self._wire.nodes()]
        level = min(self._config.level, *levels) if levels else self._config.level
        if level > self.registry.level:
            self._propose_once("raise", Raise(level))
        if self.registry.level < PRE_VOTE_LEVEL:
            return
        if self.registry.level >= KEEP_LEVEL and (self._begin_anew or not self.registry.history):
            self._propose_once("begin", Begin(f"{random.getrandbits(64):016x}"))
        for node in self._wire.nodes():
            standing, disk = self._disks.get(node.id, ("", ""))
            if standing == "rejoining" and self._takes_entries(node):
                self._propose_once(f"readmit {node.id}", Readmit(node.id, disk))
        noted = max(self._noted, default=0)
        old = now - self._compared_at > COMPARE_S and self._changed_index > self._compared_index
        if old or self.raft.applied - noted > COMPARE_ENTRIES:
            self._compared_at = now
            self._propose_once("compare", Compare(noted, self._noted.get(noted, "")))

    def _takes_entries(self, node: Node) -> bool:
        """Whether a follower would apply what is proposed now, being neither away nor filled by a state file."""
        follower = self._followers.setdefault(node, _Follower())
        return self._wire.connected(node) and not follower.probing and follower.sending is None

    def _propose_once(self, what: str, command: Command) -> None:
        under_way = self._own.get(what)
        if under_way is None or under_way.done():
            # Not by this node's wall clock: a time that the log has reached moves nothing.
            self._own[what] = self._propose(command, self.registry.last_time_ns, "", "")

    def _act_on(self, index: int, command: Command) -> None:
        """What an applied command means to the engine itself."""
        match command:
            case Raise():
                self._check_level(command.level)
                logger.info("the cluster uses feature level %d", self.registry.level)
            case Begin():
                self._begin_anew = self._begin_anew and index <= self._known_index
                logger.info("this history of the registry is called %s", command.history)
            case Compare():
                self._compare(index, command)
            case Readmit():
                if command.node == self.node_id and self.standing.admitted(command.disk, index):
                    self._admit()
                if command.node != self.node_id and index > self._known_index:
                    # What was committed before this process began was noted when it was, or nobody knew how to.
                    self._peers.readmit(command.node, command.disk, index)
            case _:
                self._changed_index = index

    def _compare(self, index: int, command: Compare) -> None:
        """Stops this node if its state is not the leader's (H10). Better no answer than a wrong one.

        But not for an entry that was committed before this process began: if the leader was the one
        that was wrong, its word stays in the log, and no node could ever start on it again.
        """
        ours = self._noted.get(command.index)
        if ours is not None and command.digest:
            if ours != command.digest and index > self._known_index:
                raise Fatal(
                    f"this node's state differs from the leader's: after entry {command.index} its digest was {ours}, "
                    f"the leader's {command.digest}. Compare /api/v1/cluster/digest of all nodes: the one that is "
                    "alone must be stopped, its data directory emptied, and started with --rejoin"
                )
            self._compared_index = command.index
        self._noted = {at: digest for at, digest in self._noted.items() if at >= command.index}
        self._noted[index] = self.registry.digest()[1]

    # -- how old this copy is ------------------------------------------------------

    def _take_freshness(self, message: wire.AppendEntries) -> None:
        """Once this node has applied what its leader names, it holds all that was committed when it sent the
        answer that the leader had read by then; or, if that is earlier, when a quorum last followed the leader.
        Its own clock says when that was, however long messages travelled or waited for a process that stood still."""
        if self._named is not None:
            return
        now = time.monotonic()
        if message.heard is None:
            at = None if message.detached else now
        else:
            at = message.heard.get(self.node_id)
            if at is not None:
                at = at - message.contact_s if self._began_at <= at <= now else None
        if at is not None:
            self._named = (message.commit_index, at)
            self._note_freshness(now)

    def _note_freshness(self, now: float) -> None:
        if self._serving:
            self._fresh_at = now - self._quorum_contact_s(now)
        elif self._named is not None and self.raft.applied >= self._named[0]:
            self._fresh_at, self._named = self._named[1], None

    # -- the standing of this node's disk (standing.py) ----------------------------

    def _introduce(self) -> None:
        """Tells every peer, now and at each greeting, how this node stands."""
        self._wire.introduce(
            level=self._config.level,
            disk=self.standing.disk,
            standing=self.standing.kind,
            met=self.standing.met,
            claims=self._claims,
        )

    def _position(self) -> Position:
        return Position(self.raft.term, self.journal[-1][2], self.journal.last_index)

    def _claims(self) -> Claims | None:
        return self._peers.claims(self.standing.admission, self._position())

    def _on_greeted(self, node: Node, hello: wire.Hello) -> str:
        """What a peer says of itself. Answers why it must be refused, or nothing."""
        if hello.level < self.registry.level:
            return (
                f"it understands feature level {hello.level}, and the cluster uses {self.registry.level}: "
                "start it with the release that the others run"
            )
        older = self._compare_directories(node, hello)
        if older:
            return older
        self._levels[node.id] = hello.level
        self._disks[node.id] = (hello.standing, hello.disk)
        before = self.standing.announced
        became = self.standing.meet(node.id, hello.disk, hello.standing, hello.met)
        if self.standing.announced != before:
            self._introduce()
        if became:
            logger.info("every member was met: %s takes part from here on", self.node_id)
            # There is no leader to wait for; and all members come here at the same moment.
            soon = random.uniform(0, self._config.election_timeout_s_min)
            self.raft.election_due = time.monotonic() + soon
        return ""

    def _compare_directories(self, node: Node, hello: wire.Hello) -> str:
        """Why the peer's directory is older than what this node saw of it, or nothing. Raises ``Fatal`` if this
        one's is, or if both have gone on without each other (``starts.py``)."""
        claims = hello.starts
        known = claims.known.get(self.node_id) if claims is not None else None
        term = max(claims.now.term if claims is not None else 0, known.word.term if known is not None else 0)
        if term - self.raft.term > TERM_LEAP_MAX and self.standing.votes:
            return f"it speaks of term {term}, and this node is in {self.raft.term}"
        self._peers.meet(node.id, known, self._claims(), self.standing.disk, votes=self.standing.votes)
        why = self._peers.greet(node.id, hello.disk, claims, votes=hello.standing == "member")
        if why and claims is not None and claims.now.term > self.raft.term and self.standing.votes:
            raise Fatal(
                f"the data directory of {node.id} is older than what {self.node_id} saw of it: {why}. Since then "
                f"{node.id} took part in term {claims.now.term}, and {self.node_id} has seen none after "
                f"{self.raft.term}: without it the others may have agreed on something else than what it holds, "
                f"up to entry {self.journal.last_index}. {_STOP_ALL}"
            )
        return f"its data directory is older than what this node saw of it: {why}" if why else ""

    def _contradiction(self, node: Node, what: str) -> Fatal:
        """Two histories were agreed on. Tells the other side, which must stop as this node does: the error to raise."""
        found = f"{what}. Both were agreed on, which cannot be unless a member forgot what it had given its word for: "
        found += f"most likely an older copy of a data directory took part. {_STOP_ALL}"
        self._wire.refuse(node, found)
        return Fatal(found)

    def _on_refused(self, node: Node, reason: str) -> None:
        """A peer found that the two cannot both be right, and stops."""
        raise Fatal(f"{node.id} stops, and so does this node: {reason}")

    def _admit(self) -> None:
        """The vote of this term, and of those before, may have been given by the lost disk."""
        self.raft.vote_for(self.raft.vote or self._spent_vote())
        logger.info(
            "readmitted with disk %s: %s votes from the term after %d on",
            self.standing.disk,
            self.node_id,
            self.raft.term,
        )
        self._introduce()

    def _spent_vote(self) -> str:
        leader = self.raft.leader
        return leader.id if leader is not None else "nobody"

    # -- roles ---------------------------------------------------------------------

    def _asks_first(self) -> bool:
        return self.registry.level >= PRE_VOTE_LEVEL

    def _begin_candidacy(self) -> None:
        self._votes = {self.node_id}

    def _may_lead(self) -> bool:
        """Leads, unless there is no room to log the term's first entry."""
        try:
            self.journal.check_room(64)
        except DiskUnavailable as error:
            self._disk_failed(error)
            return False
        self._abort_receiving()
        self._followers = {node: _Follower() for node in self._wire.nodes()}
        # A quorum has just voted for this node.
        self._heard = dict.fromkeys(self._wire.nodes(), time.monotonic())
        self._giving_way = GivingWay()
        return True

    def _begin_leading(self) -> None:
        if self.raft.was_handed_over:
            self._transfers.happened(time.monotonic())
        logger.info("leading term %d from entry %d on", self.raft.term, self.journal.last_index)

    def _role_changed(self, old: int, new: int) -> None:
        # A candidate counts its term up right after this call.
        logger.info("%s in term %d (was %s)", _ROLES[new], self.raft.term + (new == CANDIDATE), _ROLES[old])
        if old == LEADER:
            self._save_words()
            self._leader_heard_at = time.monotonic()
            # The library leaves a deposed leader's timer where it was, long past.
            self.raft.election_due = time.monotonic() + self.raft.election_timeout_s()
            for follower in self._followers.values():
                self._stop_sending(follower)
            self._transfer = None
            self._fail_reads()

    def _on_connected(self, node: Node) -> None:
        self.raft.connected(node)
        # Before it can be asked for its vote: a leader has compared its clock with all whose votes it has.
        self._clocks_asked.pop(node, None)
        self._ping(node)
        if self.raft.role == LEADER:
            self._begin_again(node)

    def _on_disconnected(self, node: Node) -> None:
        """What was on its way is lost: send again from what is known (D3: a state file from its start)."""
        self.raft.disconnected(node)
        self._peers.leave(node.id)
        leader = self.raft.leader
        if leader == node:
            self._abort_receiving()
            if self.raft.role == FOLLOWER and self.registry.level >= PRE_VOTE_LEVEL:
                # Probably its process is gone. Who still hears it will say so.
                soon = time.monotonic() + random.uniform(0, self._config.election_timeout_s_min / 4)
                self.raft.election_due = min(self.raft.election_due, soon)
        if self.raft.role == LEADER:
            self._begin_again(node)

    def _begin_again(self, node: Node) -> None:
        follower = self._followers.setdefault(node, _Follower())
        self._stop_sending(follower)
        follower.probing = True
        follower.probe_sent = False
        follower.at = None
        if follower.held:
            self.raft.next[node] = follower.held + 1
        self._send_now = True

    # -- the gate for what leaves (D7) ---------------------------------------------

    def _hold(self, node: Node, message: wire.Message) -> None:
        """Sends ``message`` after the next sync. Of acknowledgements in a row the last counts."""
        if isinstance(message, wire.AppendEntriesResponse) and self._held:
            last_node, last = self._held[-1]
            if last_node == node and isinstance(last, wire.AppendEntriesResponse) and last.success and message.success:
                self._held.pop()
        self._held.append((node, message))

    def _flush(self) -> None:
        """Makes the log durable, then lets go what was held for it. Before and after each poll.

        One sync for all that a poll brought: the commit index of a follower moves behind it, and not
        with each message, of which each would sync for itself.
        """
        self.journal.sync()
        if self._agreed_index > self.raft.commit_index:
            self.raft.commit(self._agreed_index)
            # Only a note, which needs no sync: but a process that is killed finds it again.
            self.journal.sync()
        if not self._held:
            return
        held, self._held = self._held, []
        for node, message in held:
            self._wire.send(node, message)

    # -- applying ------------------------------------------------------------------

    def _apply_committed(self) -> None:
        """Applies what is committed, for a bounded time, each entry exactly once (D12, D13)."""
        if self.raft.commit_index <= self.raft.applied:
            self._note_caught_up()
            return
        if self.raft.role == LEADER:
            self._commit_moved = True
        until = time.monotonic() + APPLY_S
        while self.raft.applied < self.raft.commit_index:
            index = self.raft.applied + 1
            command, _, term = self.journal[index - self.journal.base_index]
            self._apply(index, term, command)
            if time.monotonic() > until:
                break
        self._wake_waiters()

    def _note_caught_up(self) -> None:
        """True for good once an entry of a leader's own term was applied here, and everything
        up to the commit index that the first leader with a quorum named: what was committed
        when this node joined lies before the one (Leader Completeness) or before the other."""
        if self._caught_up or self._applied_term != self.raft.term:
            return
        joined_at = self._joined_at
        self._caught_up = self.raft.role == LEADER or (joined_at is not None and self.raft.applied >= joined_at)

    def _apply(self, index: int, term: int, command: bytes) -> None:
        waiting = self._waiting.pop(index, None)
        outcome = error = None
        events: tuple[Event, ...] = ()
        envelope: Envelope | None = None
        anew = False
        if command[:1] == REGULAR:
            try:
                envelope = decode(command[1:])
                applied = self.registry.apply(index, term, envelope)
                outcome, error, events, anew = applied.outcome, applied.error, applied.events, applied.anew
            except (MemoryError, OSError, Fatal):
                raise
            except Exception as problem:
                # The same on every replica, so going on is as safe as it gets;
                # stopping would stop all of them, for ever (D13).
                logger.exception("entry %d could not be applied", index)
                error = RollcallError(f"the command could not be applied: {problem}")
        elif command[:1] != NO_OP:
            raise Fatal(f"entry {index} is of a kind that this engine never writes: {command[:1]!r}")
        if self.registry.applied_index < index:
            self.registry.skip(index, term)
        if envelope is not None:
            self._act_on(index, envelope.command)
        self.raft.applied = index
        self._applied_term = term
        if anew:
            # Who watches knows the registry as it was under its former name: all must read everything again.
            self.snapshots.let_go(None, self.changes.reset(index))
        else:
            self.changes.publish(index, events)
        for listener in self._listeners:
            try:
                listener(index, events)
            except (MemoryError, Fatal):
                raise
            except Exception:
                # The entry is applied, and its proposer is to be told, whoever fails to listen (D12).
                logger.exception("a listener failed at entry %d", index)
        if waiting is not None:
            proposed_term, proposal = waiting
            if proposed_term == term:
                proposal.resolve(outcome, error)
            else:
                proposal.resolve(None, Overwritten("another leader took over before the write was committed"))

    def _wake_waiters(self) -> None:
        if not self._applied_waiters:
            return
        with self._applied_lock:
            while self._applied_waiters and self._applied_waiters[0][0] <= self.raft.applied:
                heapq.heappop(self._applied_waiters)[2].set()

    # -- state files (paper section 7) ---------------------------------------------

    def _compact(self) -> None:
        """Writes a state file in the background and then cuts the log (D5, D15, D18)."""
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            self._finish_saving(saving)
        if self._cutting is not None and self._cutting[1].done():
            cutting, self._cutting = self._cutting, None
            self._finish_cutting(*cutting)
        if any((self._saving, self._cutting, self._installing, self._receiving)):
            return
        entries = self.raft.applied - (self._saved.index if self._saved else 1)
        short = self.reserve.short
        many = entries >= self._config.snapshot_entries or self._log_grew
        now = time.monotonic()
        if entries and self._pace.due(now, many=many, interval_s=self._config.snapshot_interval_s, short=short):
            self._pace.begun(now)
            self._saving = self.snapshots.save(self.registry.root())

    def _finish_saving(self, saving: "Future[SnapshotHeader]") -> None:
        """Cuts the log behind a state file that was written and read back. Without one the log stays as it is."""
        now = time.monotonic()
        try:
            header = saving.result()
        except OSError as error:
            rest_s = self._pace.failed(f"no state file could be written: {error.strerror}", now)
            logger.warning("%s; trying again in %.0f s", self._pace.error, rest_s)
            return
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is a fault of this program, and no reason to lose the log as well.
            what = error.message if isinstance(error, RollcallError) else repr(error)
            rest_s = self._pace.failed(f"a state file was discarded, it could not be read again: {what}", now)
            logger.error("%s; the log is not cut; trying again in %.0f s", self._pace.error, rest_s)
            return
        self._pace.done()
        self._restore_room()
        if header.index <= self.journal.base_index or (self._saved and header.index <= self._saved.index):
            # A newer one was installed meanwhile.
            return
        self._saved = header
        position = self._cut_position(header.index)
        if position:
            cut = self.journal.begin_cut(position)
            self._cutting = cut, self.snapshots.run(lambda: self.journal.write_cut(cut, self.snapshots.rest))
        else:
            # Who needs all of the log will not need less of it in a moment.
            if self._log_grew:
                self._pace.put_off(now)
            self._say_saved(header)

    def _cut_position(self, saved_index: int) -> int:
        """Where to cut the log: behind the state file, less what is kept for followers that were briefly away."""
        cut = saved_index
        if self.journal.growth < 2 * LOG_BYTES_MAX:
            # Who is being sent a state file needs the entries behind it next; but not at the price of a full disk.
            cut = min([cut, *(follower.sending.index for follower in self._followers.values() if follower.sending)])
        kept = 0
        floor = max(self.journal.base_index, cut - KEEP_ENTRIES)
        while cut > floor and kept < KEEP_BYTES:
            kept += len(self.journal[cut - self.journal.base_index][0])
            cut -= 1
        return max(0, cut - self.journal.base_index)

    def _finish_cutting(self, cut: Cut, written: "Future[None]") -> None:
        failed = written.exception()
        try:
            if failed is None:
                self.snapshots.let_go(None, self.journal.end_cut(cut))
        except DiskUnavailable as error:
            failed = error
        if failed is not None:
            cut.abandon()
            what = failed.message if isinstance(failed, RollcallError) else repr(failed)
            rest_s = self._pace.failed(f"the log could not be cut: {what}", time.monotonic())
            logger.warning("%s; trying again in %.0f s", self._pace.error, rest_s)
            return
        self._restore_room()
        self._say_saved(self._saved)

    def _say_saved(self, header: SnapshotHeader | None) -> None:
        saved_index = header.index if header is not None else 0
        logger.info("state file at entry %d; the log starts at %d", saved_index, self.journal.base_index)

    def _abandon_cut(self) -> None:
        if self._cutting is not None:
            self._cutting[0].abandon()
            self._cutting = None

    def _send_state(self, node: Node, follower: _Follower) -> None:
        now = time.monotonic()
        sending = follower.sending
        if sending is None:
            if self._saved is None:
                raise Fatal("the log was cut, but there is no state file")
            sending = follower.sending = Outgoing(self.snapshots.path, self._saved.index, now)
            logger.info("sending the state file at entry %d to %s", sending.index, node.id)
        for offset, data in sending.pieces(now):
            self._wire.send(node, wire.InstallSnapshot(self.raft.term, sending.index, offset, sending.total, data))
            if follower.sending is not sending:
                return  # the connection broke, and with it the file was closed

    def _stop_sending(self, follower: _Follower) -> None:
        if follower.sending is not None:
            follower.sending.close()
            follower.sending = None

    def _on_install(self, node: Node, message: wire.InstallSnapshot) -> None:
        if not self._hear_leader(node, message.term):
            return
        if self._installing is not None:
            return
        if message.index <= self.raft.applied:
            # Older than what is applied here already (D15): say what is proven instead.
            self._abort_receiving()
            self._answer(node, next_index=self.raft.commit_index + 1)
            return
        try:
            self._receive(node, message)
        except OSError as error:
            self._abort_receiving()
            self._disk_failed(DiskUnavailable(f"no room for a state file: {error.strerror}"))
            return
        receiving = self._receiving
        received = receiving.received if receiving is not None and receiving.index == message.index else 0
        self._wire.send(node, wire.InstallSnapshotResponse(self.raft.term, message.index, received))
        if receiving is not None and received >= message.total:
            receiving.close()
            self._receiving = None
            self._installing = self.snapshots.install(receiving.path)

    def _receive(self, node: Node, message: wire.InstallSnapshot) -> None:
        try:
            self._take_piece(node, message)
        except OSError as error:
            # A node that lacks what the others have needs it more than it needs its reserve whole: it is short
            # of room from here on, and so may give up the state file before the newest, and take of the reserve.
            if not is_full(error) or self.reserve.short or not self.reserve.take(1):
                raise
            self.snapshots.make_room()
            self._take_piece(node, message)

    def _take_piece(self, node: Node, message: wire.InstallSnapshot) -> None:
        if message.offset == 0 and (self._receiving is None or self._receiving.received):
            self._abort_receiving()
            path = self._config.directory / "snapshot-received.tmp"
            self.snapshots.make_room()
            self._receiving = Incoming(path, message.index, self._large_files)
            self._receiving_from = (message.term, node.id)
        if self._receiving is not None and self._receiving.index == message.index:
            self._receiving.take(message.offset, message.data)

    def _abort_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.abort()
            self._receiving = None

    def _on_installed(self, node: Node, message: wire.InstallSnapshotResponse) -> None:
        if message.term != self.raft.term or self.raft.role != LEADER:
            return
        now = time.monotonic()
        follower = self._followers.setdefault(node, _Follower())
        if follower.votes:
            self.raft.heard(node, now)
        sending = follower.sending
        if sending is not None and sending.index == message.index:
            sending.acknowledged(message.offset, now)
            self._send_now = True

    def _continue_install(self) -> None:
        """Swaps a verified state file in. Acknowledged is exactly its index, and only then (D3)."""
        if self._installing is None or not self._installing.done():
            return
        installing, self._installing = self._installing, None
        try:
            header, state = installing.result()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is about that file alone
            # Nothing of it is in use here. The leader sends it again after a while.
            logger.warning("a state file from the leader could not be used: %s", error)
            return
        if header.index <= self.raft.applied:
            return
        journal = self.journal
        try:
            if journal.term_at(header.index) != header.term:
                journal.reset((NO_OP, header.index, header.term))
        except DiskUnavailable as error:
            self._disk_failed(error)
            return
        self._check_level(state.facts.level)
        former = self.registry.replace(state)
        self._noted.clear()
        self._saved = header
        self._pace.begun(time.monotonic())
        self._pace.done()
        self.raft.applied = header.index
        self._applied_term = header.term
        self.raft.commit(header.index)
        self.snapshots.let_go(former, self.changes.reset(header.index))
        for index in [index for index in self._waiting if index <= header.index]:
            _, proposal = self._waiting.pop(index)
            proposal.resolve(None, Unknown("a state file took the place of the log where the write stood"))
        self._wake_waiters()
        logger.info("installed the state file at entry %d", header.index)
        leader = self.raft.leader
        if leader is not None and self.raft.role == FOLLOWER:
            self._verified = (self.raft.term, leader.id, header.index)
            self._answer(leader, next_index=header.index + 1)

    # -- leadership transfer (dissertation 3.10) -----------------------------------

    def _begin_wanted_transfer(self, to: str) -> NotDone | None:
        """The same on request: at most one within a while."""
        now = time.monotonic()
        wait_s = self._transfers.wait_s(now)
        if self.raft.role == LEADER and wait_s:
            every_s = self._config.transfer_interval_s
            return TooSoon(
                f"leadership was handed over a moment ago, and is on request at most every {every_s:g} s "
                f"(transfer_interval_s): ask again in {math.ceil(wait_s)} s",
                retry_after_s=math.ceil(wait_s),
            )
        error = self._begin_transfer(to)
        if error is None:
            self._transfers.happened(now)
        return error

    def _begin_transfer(self, to: str = "", *, with_room: bool = False) -> NotDone | None:
        """Why it did not begin, if it did not. ``with_room``: only to who has room on its disk, and will take over."""
        if self.raft.role != LEADER:
            return NotLeader(f"{self.node_id} does not lead")
        if self._transfer is not None:
            return None
        now, wall_ns = time.monotonic(), time.time_ns()
        able = [node for node in self._wire.nodes() if to in ("", node.id) and self._able_to_lead(node)]
        if with_room:
            able = [node for node in able if self._keeps_up(node, now) and self._followers[node].room]
            able = [node for node in able if self._wall_clocks.trusts(node.id, now, wall_ns)]
        able = [node for node in able if self._followers[node].room] or able
        if not able:
            who = f"{to} cannot" if to else "no other node can"
            return NotDone(f"{who} take over now: not connected, shutting down, or not voting yet")
        right = [node for node in able if self._wall_clocks.trusts(node.id, now, wall_ns)]
        target = max(right or able, key=lambda node: (self.raft.match[node], node.id))
        self._transfer = (target, now + TRANSFER_S)
        self._transfer_asked = False
        logger.info("handing leadership to %s", target.id)
        return None

    def _able_to_lead(self, node: Node) -> bool:
        votes = self._followers.setdefault(node, _Follower()).votes
        return votes and self._wire.connected(node) and not self._wire.draining(node)

    def _continue_transfer(self, now: float) -> None:
        """Proposals rest meanwhile, so the target catches up even under load."""
        if self._transfer is None:
            return
        target, until = self._transfer
        if now > until:
            logger.warning("%s did not take over in time", target.id)
            self._transfer = None
        elif not self._transfer_asked and self.raft.match[target] == self.journal.last_index:
            self._transfer_asked = True
            self.raft.transfer(target)

    # -- a disk without room (D17; reserve.py) --------------------------------------

    def _mind_room(self, now: float) -> None:
        """Sees to the reserve; while something of it is taken, hands leadership to whoever has room."""
        if self._disk_error:
            self._try_disk(now)
        if not self.reserve.whole and now >= self._restore_at:
            self._restore_at = now + DISK_RETRY_S
            self._restore_room()
        if not self.reserve.short and self._short:
            logger.info("the disk under %s has room again", self._config.directory)
            self._short = ""
        elif self.reserve.short and not self._short:
            self._short = (
                f"the disk under {self._config.directory} is nearly full: while this node leads it takes up nothing "
                "that adds to the registry; removals go on, within what was kept for them. Free some room there"
            )
            logger.error("%s", self._short)
        gives_way = self._short and self.raft.role == LEADER and self._transfer is None and self._giving_way.due(now)
        if gives_way and self._begin_transfer(with_room=True) is None:
            self._giving_way.tried(now, TRANSFER_S)
        self._adds_not = self._why_nothing_is_added(now)

    def _restore_room(self) -> None:
        if not self.reserve.whole:
            self.reserve.restore()

    def _why_nothing_is_added(self, now: float) -> str:
        if self.raft.role != LEADER:
            return ""
        connected = {node: each for node, each in self._followers.items() if self._wire.connected(node)}
        room: dict[str, bool] = {self.node_id: not self.reserve.short}
        for node, each in connected.items():
            if each.room is False or (each.room and self._keeps_up(node, now)):
                room[node.id] = each.room
        without = lacking(room, self.node_id, self.raft.voters)
        if not without:
            return ""
        self._none_has_room = not any(
            each.room is not False and self._takes_part(node, now) for node, each in connected.items()
        )
        return (
            f"the disk of {', '.join(without)} is nearly full: nothing that adds to the registry is taken up "
            "until there is room; removals are"
        )

    def _takes_part(self, node: Node, now: float) -> bool:
        """Whether a follower counts towards a quorum, and is not filled by a state file, or silent."""
        follower = self._followers[node]
        lately = now - self._heard.get(node, -math.inf) < self._config.leader_fallback_s
        return follower.votes and follower.sending is None and lately

    def _keeps_up(self, node: Node, now: float) -> bool:
        """The same, and it is known where its log stands."""
        return self._takes_part(node, now) and not self._followers[node].probing

    def _disk_failed(self, error: DiskUnavailable) -> None:
        """Says so, hands leadership over, and does not campaign until there is room."""
        if not self._disk_error:
            logger.error("%s; this node neither leads nor acknowledges until there is room", error.message)
        self._disk_error = error.message
        self.raft.forget_transfer()
        self._disk_retry_at = time.monotonic() + DISK_RETRY_S
        self._begin_transfer()

    def _try_disk(self, now: float) -> None:
        self.raft.election_due = max(self.raft.election_due, now + self._config.election_timeout_s_max)
        if now < self._disk_retry_at:
            return
        self._disk_retry_at = now + DISK_RETRY_S
        try:
            self.journal.check_room(BATCH_BYTES)
        except DiskUnavailable:
            if self.raft.role == LEADER:
                self._begin_transfer()
            return
        logger.info("there is room on disk again")
        self._disk_error = ""

    # -- a wall clock that is off (clocks.py) ----------------------------------------

    def _mind_clock(self, now: float) -> None:
        """Says at times what this node's clocks show; hands leadership over as long as its wall clock is off."""
        if now >= self._clocks_at:
            self._clocks_at = now + CLOCKS_S
            for node in self._wire.nodes():
                self._ping(node)
        if (
            self._wall_clocks.error
            and self.raft.role == LEADER
            and self._transfer is None
            and now >= self._clock_off_at
        ):
            self._clock_off_at = now + CLOCKS_S
            self._begin_transfer()

    def _ping(self, node: Node) -> None:
        if self._wire.connected(node):
            asked_at = self._clocks_asked.get(node)
            self._wire.ping(node, at=time.monotonic(), wall_ns=time.time_ns(), asked_at=asked_at)

    def _on_ping(self, node: Node, message: wire.Ping) -> None:
        if message.at is None or message.wall_ns is None:
            return
        self._clocks_asked[node] = message.at
        if message.asked_at is None:
            self._ping(node)
            return
        before, now = self._wall_clocks.error, time.monotonic()
        self._wall_clocks.heard(node.id, message.wall_ns, asked_at=message.asked_at, now=now, own_ns=time.time_ns())
        if self._wall_clocks.error and not before:
            self._clock_off_at = now
            logger.error("%s", self._wall_clocks.error)
        elif before and not self._wall_clocks.error:
            logger.info("this node's wall clock agrees with the others' again")
