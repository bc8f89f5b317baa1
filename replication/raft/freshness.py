"""How old this node's copy is, told by round trips on one clock at a time.

Invariant: at ``fresh_at``, by this node's own clock, nothing was committed that is not applied here by now.

A leader knows when a follower certainly followed it: the follower's answer names the leader's clock at the
sending of what it had read. So a quorum's last word bounds what another leader can have committed since
(dissertation 6.4.1, without its assumption about the drift of clocks between nodes). A follower knows when it sent
the answer that its leader had read by then: that leader's commit index covers all that was committed at that moment.
"""

import math
from collections.abc import Iterable

from pysyncobj.node import Node

from ..network import wire
from .library import Raft


class Freshness:
    """When this node last held all that was committed. Told the time; times in seconds of a monotonic clock."""

    def __init__(self, node_id: str, raft: Raft, now: float) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._began_at: float = now
        self._heard: dict[Node, float] = {}
        """When a follower certainly followed this leader: it had read what was sent then."""
        self._named: tuple[int, float] | None = None
        """A commit index that a leader named, not applied here yet, and when no more than that was committed."""
        self.fresh_at: float | None = None
        """When this node last held all that was committed. None: not since it began."""

    # -- on a leader -----------------------------------------------------------------

    def lead(self, nodes: Iterable[Node], now: float) -> None:
        """A quorum has just voted for this node."""
        self._heard = dict.fromkeys(nodes, now)

    def followed(self, node: Node, message: wire.AppendEntriesResponse, now: float) -> None:
        """A follower's answer: it had read what this leader sent when its own clock was at ``asked_at``."""
        asked_at = now if message.at is None else message.asked_at
        if asked_at is not None:
            self._heard[node] = max(self._heard.get(node, 0.0), min(asked_at, now))

    def followed_at(self, node: Node) -> float:
        """When a follower certainly followed this leader."""
        return self._heard.get(node, -math.inf)

    def quorum_contact_s(self, now: float) -> float:
        """How long ago this leader last heard a quorum, itself included."""
        ages = sorted(now - heard for heard in self._heard.values())
        needed = self._raft.voters // 2
        return ages[needed - 1] if needed else 0.0

    # -- on a follower ---------------------------------------------------------------

    def take(self, message: wire.AppendEntries, now: float) -> None:
        """Once this node has applied what its leader names, it holds all that was committed when it sent the
        answer that the leader had read by then; or, if that is earlier, when a quorum last followed the leader.
        Its own clock says when that was, however long messages travelled or waited for a process that stood still."""
        if self._named is not None:
            return
        at = self._answered_at(message, now)
        if at is not None:
            self._named = (message.commit_index, at)
            self.note(now)

    def _answered_at(self, message: wire.AppendEntries, now: float) -> float | None:
        """When nothing was committed beyond what ``message`` names; None if that cannot be said."""
        if message.heard is None:
            return None if message.detached else now
        at = message.heard.get(self._node_id)
        if at is None:
            return None
        return at - message.contact_s if self._began_at <= at <= now else None

    # -- on both ---------------------------------------------------------------------

    def note(self, now: float) -> None:
        """Moves ``fresh_at`` on, if what is applied by now allows it."""
        if self._raft.serving:
            self.fresh_at = now - self.quorum_contact_s(now)
        elif self._named is not None and self._raft.applied >= self._named[0]:
            self.fresh_at, self._named = self._named[1], None
