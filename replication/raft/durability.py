"""What leaves a node only after its disk has it, and what a node does whose disk has no room.

Invariant: a message that implies something on disk (a vote, a candidacy, an acknowledgement) leaves after the sync
that made it true (D7; section 5.1: state is updated on stable storage before responding). A node without room says
so, hands leadership over, and takes up nothing that adds to the registry while it and a quorum cannot keep it (D17).
"""

import logging
from collections.abc import Callable
from pathlib import Path

from pysyncobj.node import Node

from ..errors import DiskUnavailable
from ..network import wire
from ..network.transport import Transport
from ..proposal import Proposal
from ..storage.journal import Journal
from ..storage.reserve import Reserve, lacking
from .config import EngineConfig
from .handover import TRANSFER_S, Handover
from .library import LEADER, Raft
from .progress import BATCH_BYTES, Followers
from .transfers import GivingWay

logger = logging.getLogger(__name__)

DISK_RETRY_S = 1.0


class Outbox:
    """Messages that wait for the next sync."""

    def __init__(self, raft: Raft, journal: Journal, transport: Transport) -> None:
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._wire: Transport = transport
        self._held: list[tuple[Node, wire.Message]] = []

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, node: Node, message: wire.Message) -> None:
        """Sends ``message`` after the next sync. Of acknowledgements in a row the last counts."""
        if isinstance(message, wire.AppendEntriesResponse) and self._held:
            last_node, last = self._held[-1]
            if last_node == node and isinstance(last, wire.AppendEntriesResponse) and last.success and message.success:
                self._held.pop()
        self._held.append((node, message))

    def flush(self) -> None:
        """Makes the log durable, then lets go what was held for it. Before and after each poll.

        One sync for all that a poll brought: the commit index of a follower moves behind it, and not
        with each message, of which each would sync for itself.
        """
        self._journal.sync()
        if self._raft.agreed_index > self._raft.commit_index:
            self._raft.commit(self._raft.agreed_index)
            # Only a note, which needs no sync: but a process that is killed finds it again.
            self._journal.sync()
        if not self._held:
            return
        held, self._held = self._held, []
        for node, message in held:
            self._wire.send(node, message)


class DiskRoom:
    """Whether this node's disk has room (``reserve.py``), and what follows on a leader."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        reserve: Reserve,
        transport: Transport,
        followers: Followers,
        handover: Handover,
        config: EngineConfig,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._node_id: str = node_id
        self._directory: Path = config.directory
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._reserve: Reserve = reserve
        self._wire: Transport = transport
        self._followers: Followers = followers
        self._handover: Handover = handover
        self._rest_s: float = config.election_timeout_s_max
        self._clock: Callable[[], float] = clock
        self.error: str = ""
        """Why this node stores nothing at all: it neither leads nor acknowledges."""
        self.short: str = ""
        """Why this node takes up nothing that adds to the registry, if it leads."""
        self._adds_not: str = ""
        """The same, and why it takes up nothing such as a leader of others that are short of room."""
        self._none_has_room: bool = False
        """And nobody will: there is no follower whom leadership could go to, or who could complete a quorum, soon."""
        self._retry_at: float = 0.0
        self.restore_at: float = 0.0
        """When to try again to make the reserve whole."""
        self._giving_way: GivingWay = GivingWay()

    @property
    def is_there(self) -> bool:
        """Whether this node can store what a leader adds."""
        return not (self._reserve.short or self.error)

    def refusal(self, proposal: Proposal) -> DiskUnavailable | None:
        """Why a proposal is not taken up for want of room on somebody's disk, if so."""
        if not proposal.adds or not self._adds_not:
            return None
        facts = {"nearly_full": True} if self._none_has_room else {}
        return DiskUnavailable(self._adds_not, **facts)

    def lead(self) -> None:
        """A new leadership begins: it may give way at once."""
        self._giving_way = GivingWay()

    def step(self, now: float) -> None:
        """Sees to the reserve; while something of it is taken, hands leadership to whoever has room."""
        if self.error:
            self._retry(now)
        if not self._reserve.whole and now >= self.restore_at:
            self.restore_at = now + DISK_RETRY_S
            self._reserve.restore()
        self._note_shortness()
        gives_way = self.short and self._raft.role == LEADER and not self._handover.under_way
        if gives_way and self._giving_way.due(now) and self._handover.begin(with_room=True) is None:
            self._giving_way.tried(now, TRANSFER_S)
        self._adds_not = self._why_nothing_is_added(now)

    def _note_shortness(self) -> None:
        if not self._reserve.short and self.short:
            logger.info("the disk under %s has room again", self._directory)
            self.short = ""
        elif self._reserve.short and not self.short:
            self.short = (
                f"the disk under {self._directory} is nearly full: while this node leads it takes up nothing "
                "that adds to the registry; removals go on, within what was kept for them. Free some room there"
            )
            logger.error("%s", self.short)

    def _why_nothing_is_added(self, now: float) -> str:
        """What a leader says instead of taking up what adds to the registry; empty if it takes that up."""
        if self._raft.role != LEADER:
            return ""
        connected = {node: each for node, each in self._followers.known.items() if self._wire.connected(node)}
        room: dict[str, bool] = {self._node_id: not self._reserve.short}
        for node, each in connected.items():
            if each.room is False or (each.room and self._followers.keeps_up(node, now)):
                room[node.id] = each.room
        without = lacking(room, self._node_id, self._raft.voters)
        if not without:
            return ""
        self._none_has_room = not any(
            each.room is not False and self._followers.takes_part(node, now) for node, each in connected.items()
        )
        return (
            f"the disk of {', '.join(without)} is nearly full: nothing that adds to the registry is taken up "
            "until there is room; removals are"
        )

    def failed(self, error: DiskUnavailable) -> None:
        """Says so, hands leadership over, and does not campaign until there is room."""
        if not self.error:
            logger.error("%s; this node neither leads nor acknowledges until there is room", error.message)
        self.error = error.message
        self._raft.forget_transfer()
        self._retry_at = self._clock() + DISK_RETRY_S
        self._handover.begin()

    def _retry(self, now: float) -> None:
        self._raft.election_due = max(self._raft.election_due, now + self._rest_s)
        if now < self._retry_at:
            return
        self._retry_at = now + DISK_RETRY_S
        try:
            self._journal.check_room(BATCH_BYTES)
        except DiskUnavailable:
            if self._raft.role == LEADER:
                self._handover.begin()
            return
        logger.info("there is room on disk again")
        self.error = ""
