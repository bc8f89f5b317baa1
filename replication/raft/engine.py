"""The Raft engine: one thread, what it does in a tick, and which part is called for what.

The parts own all state and make all decisions; none of them knows this file. ``library`` holds the Raft library
(roles, terms, votes, the commit rule); ``election``, ``append``, ``progress`` and ``read_index`` are what the papers
call so; ``proposals`` and ``applying`` stand at both ends of the log, ``compaction`` and ``snapshot_transfer`` see to
state files, ``durability`` to the disk, ``greeting`` and ``upkeep`` to the members.

One thread, the tick thread, owns everything here but ``propose``, ``read_index``, ``hand_over``, ``wait_applied``,
``wait_leadership`` and ``status``, which are for any thread. A tick is: advance the commit index, apply, take up
proposals and send, make the log durable, release the messages that waited for that, then poll the network for what
comes in.

The rule that makes durability hold: a message that implies something on disk (a vote, a candidacy, an
acknowledgement) goes through ``Outbox.hold`` and leaves only after ``Journal.sync`` (D7). A leader's entries go out
at once and reach its own disk while they travel; ``Journal.setRaftCommitIndex`` stands between committed and applied
and syncs if that has not happened yet (dissertation 10.2.1). "D3" and the like number the library's defects as
``DESIGN.md`` lists them.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pysyncobj.node import Node

from ..commands import KEEP_LEVEL, Command
from ..errors import DiskUnavailable, Fatal, NotDone, RollcallError
from ..levels import PRE_VOTE_LEVEL
from ..log import Leadership, Listener, LogStatus, Role
from ..network import wire
from ..network.transport import Transport
from ..proposal import Pending, Proposal
from ..registry.changes import Changes
from ..registry.registry import Registry, State
from ..storage.disk import DirectoryLock, Disk
from ..storage.journal import NO_OP, Journal
from ..storage.peers import Peers
from ..storage.reserve import Reserve, ReservingDisk
from ..storage.snapshot import SnapshotHeader, Snapshots
from ..storage.standing import Standing
from .append import Append
from .applying import Applying
from .compaction import Compaction
from .config import EngineConfig
from .durability import DiskRoom, Outbox
from .election import Election
from .freshness import Freshness
from .greeting import Greeting, leaps, position_of
from .handover import Handover
from .leadership import LeadershipWatch
from .library import CANDIDATE, FOLLOWER, LEADER, Handlers, Raft
from .pings import Pings
from .progress import Followers, is_of_this_term
from .proposals import Proposals
from .read_index import ReadIndex
from .recovery import check_level, restore
from .reviewed import check_library
from .snapshot_transfer import Receiver, is_outdated
from .upkeep import Upkeep
from .waker import Waker

logger = logging.getLogger(__name__)

_ROLES: Mapping[int, Role] = {FOLLOWER: "follower", CANDIDATE: "candidate", LEADER: "leader"}

TICK_S = 0.05
SAME_FAILURES_MAX = 3


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
        self._stopping: bool = False
        self._thread: threading.Thread | None = None
        self._waker: Waker = Waker()
        self._wire: Transport = transport
        self._plain_disk: Disk = disk or Disk()
        with contextlib.ExitStack() as opened:
            opened.callback(self._waker.close)
            opened.callback(transport.close)
            self._open_storage(opened)
            saved = restore(self.snapshots, self.journal, self.registry, self.changes, self.raft, config.level)
            self._meet_members(saved)
            self._make_parts(saved)
            self._cut_at_end.callback(self.compaction.abandon)
            self._attach()
            self._opened: contextlib.ExitStack = opened.pop_all()

    def _open_storage(self, opened: contextlib.ExitStack) -> None:
        """What is on disk, and the library on top of it."""
        config, plain = self._config, self._plain_disk
        opened.callback(DirectoryLock(config.directory).release)
        self._cut_at_end: contextlib.ExitStack = opened.enter_context(contextlib.ExitStack())
        self.reserve: Reserve = Reserve(config.directory / "reserve", plain)
        self._disk: Disk = ReservingDisk(plain, self.reserve)
        self._large_files: Disk = ReservingDisk(plain, self.reserve, large=True)
        self.snapshots: Snapshots = Snapshots(config.directory, cluster=config.cluster, disk=self._large_files)
        opened.callback(self.snapshots.close)
        self.journal: Journal = Journal(
            config.directory / "journal",
            cluster=config.cluster,
            node=self.node_id,
            disk=self._disk,
            may_be_new=not self.snapshots.path.exists() and not (config.directory / "standing").exists(),
        )
        opened.callback(self.journal._destroy)
        self.raft: Raft = Raft(self.node_id, self._wire.nodes(), config, self._handlers())

    def _handlers(self) -> Handlers:
        return Handlers(
            asks_first=self._asks_first,
            standing=self._begin_candidacy,
            may_lead=self._may_lead,
            leading=self._leading,
            role_changed=self._role_changed,
            send=self._hold,
            heartbeat=self._heartbeat,
            apply=self._apply,
            take_up=self._take_up,
            compact=self._compact,
            flush=self._flush,
            run_posted=self._wire.run_posted,
        )

    def _meet_members(self, saved: SnapshotHeader | None) -> None:
        """What this directory knows of itself and of the other members."""
        config, names = self._config, [node.id for node in self._wire.nodes()]
        self.standing: Standing = Standing(
            config.directory,
            self._disk,
            names,
            node=self.node_id,
            empty=saved is None and self.journal.last_index <= 1 and self.raft.term == 0,
            rejoin=config.rejoin,
            accept_members=config.accept_members,
        )
        self._peers: Peers = Peers(
            config.directory,
            self._disk,
            names,
            node=self.node_id,
            at=position_of(self.raft, self.journal),
            counted=self.standing.counted,
            hints=self._plain_disk,
        )

    def _make_parts(self, saved: SnapshotHeader | None) -> None:
        """The parts, each with those that it stands on."""
        name, config, raft, journal, transport = self.node_id, self._config, self.raft, self.journal, self._wire
        registry, hear = self.registry, self._peers.hear
        self.leaders: LeadershipWatch = LeadershipWatch()
        self.outbox: Outbox = Outbox(raft, journal, transport)
        self.pings: Pings = Pings(transport)
        self.freshness: Freshness = Freshness(name, raft, time.monotonic())
        self.reads: ReadIndex = ReadIndex(name, raft, transport)
        self.receiver: Receiver = Receiver(config.directory, self._large_files, self.snapshots, self.reserve)
        self.greeting: Greeting = Greeting(name, raft, journal, registry, self.standing, self._peers, transport, config)
        self.followers: Followers = Followers(
            name, raft, journal, self.snapshots, transport, self.freshness, config, saved=self._saved, hear=hear
        )
        self.handover: Handover = Handover(
            name, raft, journal, transport, self.followers, self.pings, config, clocks=self._clocks
        )
        self.room: DiskRoom = DiskRoom(
            name, raft, journal, self.reserve, transport, self.followers, self.handover, config, clock=time.monotonic
        )
        self.upkeep: Upkeep = Upkeep(
            name,
            raft,
            registry,
            self.standing,
            self._peers,
            transport,
            self.followers,
            self.greeting,
            config,
            propose=self._propose_own,
        )
        self._make_log_parts(saved)

    def _make_log_parts(self, saved: SnapshotHeader | None) -> None:
        """Those on the way of an entry, and of what stands in its place."""
        name, config, raft, journal, transport = self.node_id, self._config, self.raft, self.journal, self._wire
        registry, hear, now = self.registry, self._peers.hear, time.monotonic()
        self.compaction: Compaction = Compaction(
            raft,
            journal,
            registry,
            self.snapshots,
            self.reserve,
            config,
            saved=saved,
            now=now,
            sent_from=self.followers.sent_from,
        )
        self.proposals: Proposals = Proposals(
            name, raft, journal, goes_on=self._takes_up, refused=self.room.refusal, disk_failed=self.room.failed
        )
        self.applying: Applying = Applying(
            raft, journal, registry, self.changes, self.snapshots, self.proposals, act_on=self.upkeep.act_on
        )
        self.election: Election = Election(
            name, raft, journal, registry, self.standing, transport, self.freshness, self.pings, config, hear=hear
        )
        self.append: Append = Append(
            name,
            raft,
            journal,
            self.standing,
            transport,
            self.election,
            self.receiver,
            self.outbox,
            self.room,
            hear=hear,
            clock=time.monotonic,
        )

    def _saved(self) -> SnapshotHeader | None:
        return self.compaction.saved

    def _clocks(self) -> tuple[float, int]:
        return time.monotonic(), time.time_ns()

    def _attach(self) -> None:
        self._waker.watch(self.raft.poller)
        self._wire.attach(
            self.raft.poller,
            wake=self._waker.wake,
            on_message=self._on_message,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            on_greeted=lambda node, hello: self.greeting.greeted(node, hello, time.monotonic),
            on_refused=self._on_refused,
        )

    # -- life ----------------------------------------------------------------------

    def start(self) -> None:
        """Starts the tick thread."""
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the tick thread and closes everything. What is under way becomes unknown."""
        self._stopping = True
        self._waker.wake()
        self.leaders.close()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.changes.close()
        for proposal in self._abandoned():
            proposal.give_up("this node is stopping")
        self.followers.stop()
        self.receiver.abort()
        self._opened.close()

    def _abandoned(self) -> list[Pending[Any]]:
        return [*self.proposals.abandon(), *self.reads.abandon()]

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

    def _on_refused(self, node: Node, reason: str) -> None:
        """A peer found that the two cannot both be right, and stops."""
        raise Fatal(f"{node.id} stops, and so does this node: {reason}")

    # -- a tick --------------------------------------------------------------------

    def tick(self) -> None:
        """One round; waits for the network at most until something is due."""
        self._wire.tick()
        now = time.monotonic()
        self.freshness.note(now)
        self.room.step(now)
        self._mind_clock(now)
        self.handover.step(now)
        self._continue_install()
        self.election.step(now)
        self._note_leadership()
        self._peers.save(now, self.snapshots.run)
        self.raft.tick(self._pause_s(now))

    def _mind_clock(self, now: float) -> None:
        """Says at times what this node's clocks show; hands leadership over as long as its wall clock is off."""
        self.pings.step(now, time.time_ns)
        if self.raft.role == LEADER and not self.handover.under_way and self.pings.hands_over(now):
            self.handover.begin()

    def _note_leadership(self) -> None:
        heard_at = self.election.leader_heard_at
        silent = heard_at is not None and time.monotonic() - heard_at > self._config.election_timeout_s_max
        if silent and self.raft.role != LEADER:
            # The library forgets a leader when it stands for election itself, and alone it never stands.
            self.raft.forget_leader()
        leader = self.raft.leader
        found = Leadership(self.raft.term, leader.id if leader is not None else None, self.raft.serving)
        former = self.leaders.now.leader
        if former is not None and former not in (found.leader, self.node_id):
            # Nobody should wait for a leader that was given up. One that hands over in order still answers.
            self._wire.abandon(former, self._config.election_timeout_s_min / 2)
        self.leaders.note(found)

    def _pause_s(self, now: float) -> float:
        if self.outbox or self.followers.send_now or self.raft.commit_index > self.raft.applied:
            return 0.0
        if self.proposals and self._takes_up():
            return 0.0
        if self.reads.due:
            return 0.0
        if self.raft.role == LEADER:
            return min(TICK_S, max(0.001, self.raft.heartbeat_due - now))
        remaining_s = self.raft.election_due - now
        return min(TICK_S, remaining_s) if remaining_s > 0 else TICK_S

    # -- what the library calls in a tick, in this order ---------------------------

    def _asks_first(self) -> bool:
        return self.registry.level >= PRE_VOTE_LEVEL

    def _apply(self) -> None:
        if self.raft.role == LEADER and self.raft.commit_index > self.raft.applied:
            self.followers.commit_moved = True
        self.applying.step(time.monotonic)

    def _heartbeat(self) -> None:
        now = time.monotonic()
        self.raft.heartbeat_due = now + self._config.heartbeat_period_s
        self.followers.replicate(now, heartbeat=True)
        self.reads.ask_again()
        if self.raft.serving:
            self.upkeep.step(now)

    def _take_up(self) -> None:
        """Takes up proposals and sends."""
        last = self.journal.last_index
        try:
            self.proposals.take_up(time.monotonic)
        finally:  # what was written before something failed is sent as soon as all else
            self.followers.send_now |= self.journal.last_index > last
        self.reads.begin()
        self.followers.send(time.monotonic())

    def _takes_up(self) -> bool:
        """Whether proposals may be taken up now; otherwise they wait."""
        return not self.handover.under_way and self.compaction.log_has_room

    def _compact(self) -> None:
        self.compaction.step(time.monotonic(), busy=self.receiver.receiving or self.receiver.installing)

    def _flush(self) -> None:
        self.outbox.flush()

    def _hold(self, node: Node, message: wire.Message) -> None:
        self.outbox.hold(node, message)

    # -- roles ---------------------------------------------------------------------

    def _begin_candidacy(self) -> None:
        self.election.begin_candidacy()

    def _may_lead(self) -> bool:
        """Leads, unless there is no room to log the term's first entry."""
        try:
            self.journal.check_room(64)
        except DiskUnavailable as error:
            self.room.failed(error)
            return False
        self.receiver.abort()
        self.followers.lead()
        self.freshness.lead(self._wire.nodes(), time.monotonic())
        self.room.lead()
        return True

    def _leading(self) -> None:
        self.handover.lead(time.monotonic())
        logger.info("leading term %d from entry %d on", self.raft.term, self.journal.last_index)

    def _role_changed(self, old: int, new: int) -> None:
        # A candidate counts its term up right after this call.
        logger.info("%s in term %d (was %s)", _ROLES[new], self.raft.term + (new == CANDIDATE), _ROLES[old])
        if old == LEADER:
            self._save_words()
            self.election.stepped_down(time.monotonic())
            self.followers.stop()
            self.handover.end()
            self.reads.fail()

    # -- connections ---------------------------------------------------------------

    def _on_connected(self, node: Node) -> None:
        self.raft.connected(node)
        # Before it can be asked for its vote: a leader has compared its clock with all whose votes it has.
        self.pings.connected(node, time.monotonic(), time.time_ns())
        if self.raft.role == LEADER:
            self.followers.begin_again(node)

    def _on_disconnected(self, node: Node) -> None:
        self.raft.disconnected(node)
        self._peers.leave(node.id)
        if self.raft.leader == node:
            self.receiver.abort()
            self.election.leader_gone(time.monotonic())
        if self.raft.role == LEADER:
            self.followers.begin_again(node)

    # -- messages ------------------------------------------------------------------

    def _on_message(self, node: Node, message: wire.Message) -> None:
        """The gate: everything from a peer enters here, and only what is proven passes.

        Commands, membership changes and utility messages of the library's own
        protocol do not exist on our wire (D19, D20, D24).
        """
        term: int = getattr(message, "term", 0)
        if leaps(term, self.raft, self.standing):
            sent = f"sent a {type(message).__name__} of term {term}"
            self._wire.drop(node, f"{sent}, and this node is in {self.raft.term}")
            return
        now = time.monotonic()
        match message:
            case wire.AppendEntries():
                self._on_append(node, message, now)
            case wire.Ping():
                self.pings.received(node, message, now, time.time_ns())
            case wire.AppendEntriesResponse():
                self._on_append_answered(node, message, now)
            case wire.RequestVote():
                self.election.vote_asked(node, message, now)
            case wire.RequestVoteResponse():
                self.election.vote_granted(node, message)
            case wire.PreVote():
                self.election.pre_vote_asked(node, message, now)
            case wire.PreVoteResponse():
                self.election.pre_vote_answered(node, message)
            case wire.ReadProbe():
                self._on_read_probe(node, message)
            case wire.ReadProbeResponse():
                self._on_read_probed(node, message, now)
            case wire.TimeoutNow():
                if not self.room.error:
                    self.election.told_to_stand(node, message)
            case wire.InstallSnapshot():
                self._on_install(node, message, now)
            case wire.InstallSnapshotResponse():
                if self.raft.role == LEADER and message.term == self.raft.term:
                    self.followers.received(node, message, now)
            case _:
                self._wire.drop(node, f"sent an unexpected {type(message).__name__}")

    def _on_append(self, node: Node, message: wire.AppendEntries, now: float) -> None:
        if not self.append.hear_leader(node, message.term, now):
            return
        self.append.asked(node, message)
        if not message.detached:
            self.applying.joined(message.commit_index)
        self.freshness.take(message, now)
        self.append.received(node, message)

    def _on_append_answered(self, node: Node, message: wire.AppendEntriesResponse, now: float) -> None:
        if message.term > self.raft.term:
            self.raft.follow(message.term)
        elif is_of_this_term(message.term, self.raft.term) and self.raft.role == LEADER:
            self.followers.acknowledged(node, message, now)
            if message.voting:
                self.greeting.votes(node)

    def _on_read_probe(self, node: Node, message: wire.ReadProbe) -> None:
        if message.term < self.raft.term:
            self.append.answer(node, alive=True)
        elif message.term == self.raft.term and self.standing.votes:
            self._wire.send(node, wire.ReadProbeResponse(message.term, message.round))

    def _on_read_probed(self, node: Node, message: wire.ReadProbeResponse, now: float) -> None:
        if self.raft.role == LEADER and message.term == self.raft.term:
            self.raft.heard(node, now)
            self.reads.answered(node, message)

    def _on_install(self, node: Node, message: wire.InstallSnapshot, now: float) -> None:
        if not self.append.hear_leader(node, message.term, now) or self.receiver.installing:
            return
        if is_outdated(message.index, self.raft.applied):
            # Older than what is applied here already (D15): say what is proven instead.
            self.receiver.abort()
            self.append.answer(node, next_index=self.raft.commit_index + 1)
            return
        try:
            self.receiver.take(node.id, message)
        except OSError as error:
            self.receiver.abort()
            self.room.failed(DiskUnavailable(f"no room for a state file: {error.strerror}"))
            return
        received = self.receiver.received(message.index)
        self._wire.send(node, wire.InstallSnapshotResponse(self.raft.term, message.index, received))
        self.receiver.install(message)

    # -- a state file takes the place of the log (section 7) -----------------------

    def _continue_install(self) -> None:
        """Swaps a verified state file in. Acknowledged is exactly its index, and only then (D3)."""
        installing = self.receiver.finished()
        if installing is None:
            return
        try:
            header, state = installing.result()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is about that file alone
            # Nothing of it is in use here. The leader sends it again after a while.
            logger.warning("a state file from the leader could not be used: %s", error)
            return
        if not is_outdated(header.index, self.raft.applied):
            self._swap_in(header, state)

    def _swap_in(self, header: SnapshotHeader, state: State) -> None:
        try:
            if self.journal.term_at(header.index) != header.term:
                self.journal.reset((NO_OP, header.index, header.term))
        except DiskUnavailable as error:
            self.room.failed(error)
            return
        check_level(state.facts.level, self._config.level)
        former = self.registry.replace(state)
        self.upkeep.installed()
        self.compaction.installed(header, time.monotonic())
        self.raft.apply(header.index, header.term)
        self.raft.commit(header.index)
        self.snapshots.let_go(former, self.changes.reset(header.index))
        self.proposals.replaced(header.index)
        self.applying.wake_waiters()
        logger.info("installed the state file at entry %d", header.index)
        leader = self.raft.leader
        if leader is not None and self.raft.role == FOLLOWER:
            self.append.installed(leader, header.index)

    # -- for any thread ------------------------------------------------------------

    def status(self) -> LogStatus:
        now = time.monotonic()
        leader = self.raft.leader
        fresh_at = self.freshness.fresh_at
        return LogStatus(
            node=self.node_id,
            leader=leader.id if leader is not None else None,
            role=_ROLES[self.raft.role],
            term=self.raft.term,
            commit_index=self.raft.commit_index,
            applied_index=self.raft.applied,
            leader_contact_s=None if fresh_at is None else max(0.0, now - fresh_at),
            serving_term=self.raft.serving,
            caught_up=self.applying.caught_up,
            peers=self._wire.statuses(),
            disk_error=self.room.error or self.room.short or self.reserve.error,
            stores_nothing=bool(self.room.error),
            clock_error=self.pings.error,
            clock_ahead_s=self.pings.clocks.ahead_s(now, time.time_ns()),
            standing=self.standing.kind,
            level=self.registry.level,
            snapshot_error=self.compaction.pace.error,
        )

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        # Members of releases before the level say nothing of their clocks.
        needed = self.raft.voters // 2 if self.registry.level >= KEEP_LEVEL else 0
        objection = self.pings.clocks.objection(time_ns, time.monotonic(), needed) if self.raft.role == LEADER else ""
        return self._propose(command, time_ns, request_id, NotDone(objection) if objection else None)

    def _propose_own(self, command: Command) -> Proposal:
        # Not by this node's wall clock: a time that the log has reached moves nothing.
        return self._propose(command, self.registry.last_time_ns, "", None)

    def _propose(self, command: Command, time_ns: int, request_id: str, objection: RollcallError | None) -> Proposal:
        if self.room.error:
            objection = DiskUnavailable(self.room.error)
        level = self.registry.level
        proposal = self.proposals.propose(
            command, time_ns=time_ns, request_id=request_id, level=level, objection=objection
        )
        if not proposal.done():
            self._waker.wake()
        return proposal

    def read_index(self) -> Pending[int]:
        read: Pending[int] = Pending()
        if self.reads.add(read):
            self._waker.wake()
        return read

    def wait_applied(self, index: int, deadline: float) -> bool:
        return self.applying.wait(index, max(0.0, deadline - time.monotonic()))

    def listen(self, listener: Listener) -> None:
        self.applying.listen(listener)

    @property
    def leadership(self) -> Leadership:
        return self.leaders.now

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        return self.leaders.wait(seen, max(0.0, deadline - time.monotonic()))

    def hand_over(self, to: str = "") -> Pending[int]:
        return self._hand_over(lambda: self.handover.begin_wanted(to))

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
        begun = self._hand_over(self.handover.begin)
        while self.raft.role == LEADER and time.monotonic() < deadline:
            if begun.done() and not self.handover.under_way:
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
