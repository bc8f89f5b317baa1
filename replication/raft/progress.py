"""What a leader knows of each follower, and what it sends them (figure 2, AppendEntries; etcd's ``tracker.Progress``).

Invariant: match < next, and a follower certainly holds everything up to ``held`` as this leader has it. Counting less
than it holds is always safe, the reverse never: what a majority holds is committed (section 5.3). A follower that
refused gets one message at a time until it agrees (D14); any other gets what it lacks without waiting for answers.
"""

import logging
from collections.abc import Callable

from pysyncobj.node import Node

from ..errors import Fatal
from ..network import wire
from ..network.transport import Transport
from ..storage.journal import Journal
from ..storage.snapshot import SnapshotHeader, Snapshots
from ..storage.starts import Position
from .config import EngineConfig
from .freshness import Freshness
from .greeting import contradiction
from .library import LEADER, Raft
from .snapshot_transfer import Outgoing

logger = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
"""Of entries in one message; a single larger entry travels alone."""
BATCH_ENTRIES = 2_000
"""Of them, as many as are stored in a few milliseconds."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Unsent to one follower before the leader stops adding to it."""


class Follower:
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


class Followers:
    """The followers of this leader, and what is to be sent to them."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        snapshots: Snapshots,
        transport: Transport,
        freshness: Freshness,
        config: EngineConfig,
        *,
        saved: Callable[[], SnapshotHeader | None],
        hear: Callable[[str, Position], None],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._snapshots: Snapshots = snapshots
        self._wire: Transport = transport
        self._freshness: Freshness = freshness
        self._fallback_s: float = config.leader_fallback_s
        self._detached_s: float = config.election_timeout_s_min
        """Without a quorum for that long, a leader says that it may not be one any more."""
        self._saved: Callable[[], SnapshotHeader | None] = saved
        self._hear: Callable[[str, Position], None] = hear
        """Told what a follower gave its word for."""
        self.known: dict[Node, Follower] = {}
        self.send_now: bool = False
        """There is something to be sent before the next heartbeat."""
        self.commit_moved: bool = False
        """The commit index is news to the followers."""

    def lead(self) -> None:
        """A new leadership begins: nothing is known of anybody."""
        self.known = {node: Follower() for node in self._wire.nodes()}

    def of(self, node: Node) -> Follower:
        """What is known of one."""
        return self.known.setdefault(node, Follower())

    def _clocks(self) -> dict[str, float]:
        return {node.id: follower.at for node, follower in self.known.items() if follower.at is not None}

    def stop(self) -> None:
        """This node does not lead any more."""
        for follower in self.known.values():
            self._stop_sending(follower)

    # -- sending -----------------------------------------------------------------------

    def send(self, now: float) -> None:
        """Sends at the end of a tick's work, if there is a reason to."""
        if self._raft.role == LEADER and (self.send_now or self.commit_moved):
            self.replicate(now, heartbeat=False)
        self.send_now = False
        self.commit_moved = False

    def replicate(self, now: float, *, heartbeat: bool) -> None:
        """Sends each follower what it lacks, and with a ``heartbeat`` at least a sign of life."""
        encoded: dict[tuple[int, int], bytes] = {}
        for node in self._wire.nodes():
            if not self._wire.connected(node):
                continue
            follower = self.of(node)
            if self._raft.next[node] <= self._journal.base_index or follower.sending is not None:
                self._send_state(node, follower, now)
                if heartbeat:
                    self._send_append(node, 0, 0, encoded, now)
            elif follower.probing:
                if heartbeat or not follower.probe_sent:
                    follower.probe_sent = True
                    self._send_entries(node, encoded, now, once=True)
            else:
                self._send_entries(node, encoded, now, once=False, even_none=heartbeat or self.commit_moved)

    def _send_entries(
        self, node: Node, encoded: dict[tuple[int, int], bytes], now: float, *, once: bool, even_none: bool = True
    ) -> None:
        last = self._journal.last_index
        start = self._raft.next[node]
        sent = False
        while start <= last and self._wire.backlog(node) < WINDOW_BYTES:
            count = self._count_from(start)
            self._send_append(node, start, count, encoded, now)
            sent = True
            if once:
                return
            start += count
            self._raft.next[node] = start
        if even_none and not sent:
            self._send_append(node, start, 0, encoded, now)

    def _count_from(self, start: int) -> int:
        """How many entries from ``start`` fit in one message; at least one."""
        size = count = 0
        first = start - self._journal.base_index
        for position in range(first, len(self._journal)):
            size += len(self._journal[position][0]) + 16
            if count and (size > BATCH_BYTES or count == BATCH_ENTRIES):
                break
            count += 1
        return count

    def _send_append(
        self, node: Node, start: int, count: int, encoded: dict[tuple[int, int], bytes], now: float
    ) -> None:
        """Entries ``start`` to ``start + count``; the bytes are made once for all followers.

        ``start`` 0 is a heartbeat that claims nothing about the follower's log.
        """
        frame = encoded.get((start, count))
        if frame is None:
            contact_s = self._freshness.quorum_contact_s(now)
            previous = max(0, start - 1)
            frame = encoded[start, count] = wire.encode(
                wire.AppendEntries(
                    self._raft.term,
                    self._raft.commit_index,
                    previous,
                    (self._journal.term_at(previous) or 0) if start else 0,
                    tuple(self._journal.from_index(start, count)) if count else (),
                    contact_s > self._detached_s,
                    now,
                    contact_s,
                    self._clocks() if self._raft.serving else {},
                )
            )
        self._wire.broadcast([node], frame)

    def _send_state(self, node: Node, follower: Follower, now: float) -> None:
        """Sends what is due of the newest state file, in place of entries that the log no longer holds (7)."""
        sending = follower.sending
        if sending is None:
            saved = self._saved()
            if saved is None:
                raise Fatal("the log was cut, but there is no state file")
            sending = follower.sending = Outgoing(self._snapshots.path, saved.index, now)
            logger.info("sending the state file at entry %d to %s", sending.index, node.id)
        for offset, data in sending.pieces(now):
            self._wire.send(node, wire.InstallSnapshot(self._raft.term, sending.index, offset, sending.total, data))
            if follower.sending is not sending:
                return  # the connection broke, and with it the file was closed

    def _stop_sending(self, follower: Follower) -> None:
        if follower.sending is not None:
            follower.sending.close()
            follower.sending = None

    def sent_from(self) -> list[int]:
        """Where the state files end that are being sent: their receivers need the entries behind them next."""
        return [follower.sending.index for follower in self.known.values() if follower.sending]

    # -- answers -----------------------------------------------------------------------

    def acknowledged(self, node: Node, message: wire.AppendEntriesResponse, now: float) -> None:
        """A follower's answer in this term (figure 2, AppendEntries results)."""
        if message.next_index > self._journal.last_index + 1:
            # Leader Completeness: whoever leads has all that was agreed on, and in its own term its log only grows.
            what = f"{node.id} holds what was agreed on up to entry {message.next_index - 1}"
            ends = f"the log of {self._node_id}, the leader of term {self._raft.term}, ends at entry"
            last = f"{self._journal.last_index} of term {self._journal[-1][2]}"
            raise contradiction(self._wire, node, f"{what}, and {ends} {last}")
        follower = self.of(node)
        follower.votes = message.voting
        follower.room = message.room
        follower.at = message.at
        if message.voting:
            self._raft.heard(node, now)
            self._freshness.followed(node, message, now)
        if message.success:
            self._holds(node, follower, message)
        elif message.reset and follower.sending is None:
            self._refused(node, follower, message)

    def _holds(self, node: Node, follower: Follower, message: wire.AppendEntriesResponse) -> None:
        """A follower holds this log up to the entry before the one that it named."""
        follower.held = max(follower.held, message.next_index - 1)
        if message.voting:
            self._raft.match[node] = follower.held
            entry_term = self._journal.term_at(message.next_index - 1)
            if entry_term is not None:
                self._hear(node.id, Position(self._raft.term, entry_term, message.next_index - 1))
        if follower.probing or self._raft.next[node] <= follower.held:
            self._raft.next[node] = follower.held + 1
        follower.probing = False
        if follower.sending is not None and follower.held >= follower.sending.index:
            self._stop_sending(follower)
        if self._raft.next[node] <= self._journal.last_index:
            self.send_now = True

    def _refused(self, node: Node, follower: Follower, message: wire.AppendEntriesResponse) -> None:
        """A follower does not hold what was sent as known: it named the point from which it does."""
        # The first entry is the same everywhere.
        wanted = max(2, message.next_index)
        # A follower that starts again has proven less than it once acknowledged;
        # counting less than it holds is always safe, the reverse never.
        self._raft.match[node] = min(self._raft.match[node], wanted - 1)
        follower.held = min(follower.held, wanted - 1)
        if follower.probing and follower.probe_sent and wanted == self._raft.next[node]:
            # Refusals of messages that were already on their way.
            return
        self._raft.next[node] = wanted
        follower.probing = True
        follower.probe_sent = False
        self.send_now = True

    def begin_again(self, node: Node) -> None:
        """What was on its way is lost: send again from what is known (D3: a state file from its start)."""
        follower = self.of(node)
        self._stop_sending(follower)
        follower.probing = True
        follower.probe_sent = False
        follower.at = None
        if follower.held:
            self._raft.next[node] = follower.held + 1
        self.send_now = True

    def received(self, node: Node, message: wire.InstallSnapshotResponse, now: float) -> None:
        """How much of a state file a follower has."""
        follower = self.of(node)
        if follower.votes:
            self._raft.heard(node, now)
        sending = follower.sending
        if sending is not None and sending.index == message.index:
            sending.acknowledged(message.offset, now)
            self.send_now = True

    # -- whom to count on --------------------------------------------------------------

    def takes_entries(self, node: Node) -> bool:
        """Whether a follower would apply what is proposed now, being neither away nor filled by a state file."""
        follower = self.of(node)
        return self._wire.connected(node) and not follower.probing and follower.sending is None

    def takes_part(self, node: Node, now: float) -> bool:
        """Whether a follower counts towards a quorum, and is not filled by a state file, or silent."""
        follower = self.known[node]
        lately = now - self._freshness.followed_at(node) < self._fallback_s
        return follower.votes and follower.sending is None and lately

    def keeps_up(self, node: Node, now: float) -> bool:
        """The same, and it is known where its log stands."""
        return self.takes_part(node, now) and not self.known[node].probing

    def able_to_lead(self, node: Node) -> bool:
        votes = self.of(node).votes
        return votes and self._wire.connected(node) and not self._wire.draining(node)


def is_of_this_term(message_term: int, term: int) -> bool:
    """Whether an acknowledgement was given in this term; one of another says nothing about this one (D4)."""
    return message_term == term
