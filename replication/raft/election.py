"""Elections: asked first, and only without a leader (section 5.2; dissertation 9.6 and 4.2.3).

Invariant: the term is counted up only after a quorum said that it would vote for this node and hears no leader, or
because the leader handed over (dissertation 3.10). So a node that comes back from behind a partition deposes nobody.
What the library decides stays there: whom this node votes for, and who has won.
"""

import random
from collections.abc import Callable

from pysyncobj.node import Node

from ..levels import PRE_VOTE_LEVEL
from ..network import wire
from ..network.transport import Transport
from ..registry.registry import Registry
from ..storage.journal import Journal
from ..storage.standing import Standing
from ..storage.starts import Position
from .config import EngineConfig
from .freshness import Freshness
from .library import CANDIDATE, FOLLOWER, LEADER, Raft
from .pings import Pings

OTHERS_FIRST = 4.0
"""Longest election timeouts for which a node whose wall clock is off waits for another leader before it stands."""


class Election:
    """When this node asks for votes, and whom it helps. Told the time; the timer is ``Raft.election_due``."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        registry: Registry,
        standing: Standing,
        transport: Transport,
        freshness: Freshness,
        pings: Pings,
        config: EngineConfig,
        *,
        hear: Callable[[str, Position], None],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._registry: Registry = registry
        self._standing: Standing = standing
        self._wire: Transport = transport
        self._freshness: Freshness = freshness
        self._pings: Pings = pings
        self._timeout_s_min: float = config.election_timeout_s_min
        self._timeout_s_max: float = config.election_timeout_s_max
        self._hear: Callable[[str, Position], None] = hear
        """Told what a peer gave its word for."""
        self._votes: set[str] = set()
        self._pre_votes: set[str] = set()
        self.leader_heard_at: float | None = None
        """When a leader was last heard, or this node last led."""

    # -- what happens to this node ---------------------------------------------------

    def begin_candidacy(self) -> None:
        """Votes of an earlier candidacy count no more."""
        self._votes = {self._node_id}

    def heard_leader(self, now: float) -> None:
        """There is a leader: who would have voted for this node says nothing any more."""
        self._pre_votes.clear()
        self.leader_heard_at = now

    def leader_gone(self, now: float) -> None:
        """The connection to the leader ended. Probably its process is gone. Who still hears it will say so."""
        if self._raft.role == FOLLOWER and self._registry.level >= PRE_VOTE_LEVEL:
            soon = now + random.uniform(0, self._timeout_s_min / 4)
            self._raft.election_due = min(self._raft.election_due, soon)

    def stepped_down(self, now: float) -> None:
        """This node led until now."""
        self.leader_heard_at = now
        # The library leaves a deposed leader's timer where it was, long past.
        self._raft.election_due = now + self._raft.election_timeout_s()

    # -- asking and answering --------------------------------------------------------

    def step(self, now: float) -> None:
        """Stands in front of the library's election timer (H7).

        When it is due, the others are asked first whether they would vote for this
        node. Only if a quorum would is the library let go, which counts the term up.
        So a node that comes back from behind a partition deposes nobody.
        """
        if self._raft.role == LEADER:
            return
        if not self._standing.votes:
            self._raft.election_due = max(self._raft.election_due, now + self._timeout_s_max)
            return
        if self._pings.error and self._raft.election_due:
            # The others first. But not never: the log that they need may be here.
            since = max(self._pings.off_at, self.leader_heard_at or 0.0)
            self._raft.election_due = max(self._raft.election_due, since + OTHERS_FIRST * self._timeout_s_max)
        due = self._raft.election_due
        if due == 0 and self._wire.nodes() and not any(map(self._wire.connected, self._wire.nodes())):
            # What was granted was granted then; when somebody is reached again it must be asked anew.
            due = self._raft.election_due = now
            self._raft.forget_transfer()
        if due == 0 or now <= due or self._registry.level < PRE_VOTE_LEVEL:
            return
        reached = [node for node in self._wire.nodes() if self._wire.connected(node)]
        if not reached and self._wire.nodes():
            return
        shortest = self._timeout_s_min
        self._raft.election_due = now + random.uniform(shortest / 4, shortest / 2)
        self._pre_votes = {self._node_id}
        for node in reached:
            self._wire.send(node, wire.PreVote(self._raft.term, self._journal.last_index, self._journal[-1][2]))
        self._count_pre_votes()

    def _count_pre_votes(self) -> None:
        if self._raft.is_quorum(len(self._pre_votes)):
            self._pre_votes.clear()
            self._raft.election_due = 0

    def pre_vote_asked(self, node: Node, message: wire.PreVote, now: float) -> None:
        if message.term < self._raft.term:
            self._wire.send(node, wire.PreVoteResponse(self._raft.term, False))
            return
        if not self._standing.votes or self.hears_leader(now):
            return
        ours = (self._journal[-1][2], self._journal.last_index)
        if (message.last_log_term, message.last_log_index) >= ours:
            self._wire.send(node, wire.PreVoteResponse(message.term, True))

    def pre_vote_answered(self, node: Node, message: wire.PreVoteResponse) -> None:
        if not message.granted:
            if message.term > self._raft.term:
                self._raft.follow(message.term)
        elif message.term == self._raft.term and self._pre_votes:
            self._pre_votes.add(node.id)
            self._count_pre_votes()

    def hears_leader(self, now: float) -> bool:
        """Whether there is a leader that this node would not help to depose."""
        if self._raft.role == LEADER:
            return self._freshness.quorum_contact_s(now) < self._timeout_s_min
        leader, heard_at = self._raft.leader, self.leader_heard_at
        if self._raft.role != FOLLOWER or leader is None or heard_at is None:
            return False
        return now - heard_at < self._timeout_s_min and self._wire.connected(leader)

    def vote_asked(self, node: Node, message: wire.RequestVote, now: float) -> None:
        """Answered by the library, unless this node may not vote, or hears a leader that did
        not ask for the election itself (dissertation 4.2.3)."""
        if not self._standing.votes:
            return
        sticky = self._registry.level >= PRE_VOTE_LEVEL and not message.transfer
        if sticky and self.hears_leader(now):
            return
        self._raft.vote_asked(node, message)

    def vote_granted(self, node: Node, message: wire.RequestVoteResponse) -> None:
        """The library counts messages; a vote counts once a voter."""
        if message.term <= self._raft.term:
            # Nobody votes for this node in a term that it was not in.
            self._hear(node.id, Position(message.term))
        if message.term != self._raft.term or self._raft.role != CANDIDATE or self._has_voted(node):
            return
        self._votes.add(node.id)
        self._raft.vote_granted(node, message.term)

    def told_to_stand(self, node: Node, message: wire.TimeoutNow) -> None:
        """The leader hands over: this node stands at once, and says why to those who still hear that leader."""
        if self._pings.error or not self._standing.votes:
            return
        self._raft.told_to_stand(node, message.term)

    def _has_voted(self, node: Node) -> bool:
        """A vote counts once a voter."""
        return node.id in self._votes
