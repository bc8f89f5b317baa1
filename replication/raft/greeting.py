"""What nodes say of themselves when they meet: releases, disks, and how old their directories are.

Invariant: nobody is accepted that understands less than the cluster uses, or whose directory is older than what this
node saw of it (``starts.py``); and a node that lost its disk votes only in terms after its readmission
(``standing.py``), since its vote of earlier ones may be given (section 5.2).
"""

import logging
import random
from collections.abc import Callable

from pysyncobj.node import Node

from ..errors import Fatal
from ..network import wire
from ..network.transport import Transport
from ..registry.registry import Registry
from ..storage.journal import Journal
from ..storage.peers import Peers
from ..storage.standing import Standing
from ..storage.starts import Claims, Position
from .config import EngineConfig
from .library import Raft

logger = logging.getLogger(__name__)

STOP_ALL = (
    "Stop all nodes before anything is overwritten; docs/operations.md (an older copy of a directory) says how to go on"
)
TERM_LEAP_MAX = 2**32
"""A peer may be ahead by so many terms. One election a millisecond takes seven weeks for that, and the highest
term that can be written is 2**31 such leaps away: nobody makes a term that no election can outdo."""


class Greeting:
    """What this node says of itself, and what it makes of what the others say of themselves."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        registry: Registry,
        standing: Standing,
        peers: Peers,
        transport: Transport,
        config: EngineConfig,
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._registry: Registry = registry
        self._standing: Standing = standing
        self._peers: Peers = peers
        self._wire: Transport = transport
        self._level: int = config.level
        self._soon_s: float = config.election_timeout_s_min
        """Within which a node stands for election once all members have met."""
        self.levels: dict[str, int] = {}
        """The feature level that each peer understands."""
        self._disks: dict[str, tuple[str, str]] = {}
        if self.claims() is not None:
            standing.count()
        self.introduce()

    def introduce(self) -> None:
        """Tells every peer, now and at each greeting, how this node stands."""
        self._wire.introduce(
            level=self._level,
            disk=self._standing.disk,
            standing=self._standing.kind,
            met=self._standing.met,
            claims=self.claims,
        )

    def claims(self) -> Claims | None:
        return self._peers.claims(self._standing.admission, position_of(self._raft, self._journal))

    def greeted(self, node: Node, hello: wire.Hello, clock: Callable[[], float]) -> str:
        """What a peer says of itself. Answers why it must be refused, or nothing. ``clock`` is read when what
        follows is on disk."""
        if hello.level < self._registry.level:
            return (
                f"it understands feature level {hello.level}, and the cluster uses {self._registry.level}: "
                "start it with the release that the others run"
            )
        older = self._compare_directories(node, hello)
        if older:
            return older
        self.levels[node.id] = hello.level
        self._disks[node.id] = (hello.standing, hello.disk)
        before = self._standing.announced
        became = self._standing.meet(node.id, hello.disk, hello.standing, hello.met)
        if self._standing.announced != before:
            self.introduce()
        if became:
            logger.info("every member was met: %s takes part from here on", self._node_id)
            # There is no leader to wait for; and all members come here at the same moment.
            soon = random.uniform(0, self._soon_s)
            self._raft.election_due = clock() + soon
        return ""

    def _compare_directories(self, node: Node, hello: wire.Hello) -> str:
        """Why the peer's directory is older than what this node saw of it, or nothing. Raises ``Fatal`` if this
        one's is, or if both have gone on without each other (``starts.py``)."""
        claims = hello.starts
        known = claims.known.get(self._node_id) if claims is not None else None
        term = max(claims.now.term if claims is not None else 0, known.word.term if known is not None else 0)
        if leaps(term, self._raft, self._standing):
            return f"it speaks of term {term}, and this node is in {self._raft.term}"
        self._peers.meet(node.id, known, self.claims(), self._standing.disk, votes=self._standing.votes)
        why = self._peers.greet(node.id, hello.disk, claims, votes=hello.standing == "member")
        if why and claims is not None and claims.now.term > self._raft.term and self._standing.votes:
            raise Fatal(
                f"the data directory of {node.id} is older than what {self._node_id} saw of it: {why}. Since then "
                f"{node.id} took part in term {claims.now.term}, and {self._node_id} has seen none after "
                f"{self._raft.term}: without it the others may have agreed on something else than what it holds, "
                f"up to entry {self._journal.last_index}. {STOP_ALL}"
            )
        return f"its data directory is older than what this node saw of it: {why}" if why else ""

    def admitted(self) -> None:
        """The vote of this term, and of those before, may have been given by the lost disk."""
        self._raft.vote_for(self._raft.vote or self._spent_vote())
        logger.info(
            "readmitted with disk %s: %s votes from the term after %d on",
            self._standing.disk,
            self._node_id,
            self._raft.term,
        )
        self.introduce()

    def _spent_vote(self) -> str:
        leader = self._raft.leader
        return leader.id if leader is not None else "nobody"

    def disk_in_place(self, node: Node) -> str | None:
        """The disk with which a peer comes in place of one that it lost, or None."""
        standing, disk = self._disks.get(node.id, ("", ""))
        return disk if standing == "rejoining" else None

    def votes(self, node: Node) -> None:
        """A peer says that it votes: its disk is admitted."""
        self._disks.pop(node.id, None)


def position_of(raft: Raft, journal: Journal) -> Position:
    """Where this node's log stands."""
    return Position(raft.term, journal[-1][2], journal.last_index)


def leaps(term: int, raft: Raft, standing: Standing) -> bool:
    """Whether ``term`` is further ahead than any election makes it. Who does not vote has no term to protect, and may
    come to a cluster that is far ahead."""
    return term - raft.term > TERM_LEAP_MAX and standing.votes


def contradiction(transport: Transport, node: Node, what: str) -> Fatal:
    """Two histories were agreed on. Tells the other side, which must stop as this node does: the error to raise."""
    found = f"{what}. Both were agreed on, which cannot be unless a member forgot what it had given its word for: "
    found += f"most likely an older copy of a data directory took part. {STOP_ALL}"
    transport.refuse(node, found)
    return Fatal(found)
