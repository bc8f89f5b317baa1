"""Leadership that is handed to another node (dissertation 3.10).

Invariant: while one is under way no proposal is taken up, so the target catches up; it is told to stand only when it
holds the whole log. What ends it is another leader, or ``TRANSFER_S``.
"""

import logging
import math
from collections.abc import Callable

from pysyncobj.node import Node

from ..errors import NotDone, NotLeader, TooSoon
from ..network.transport import Transport
from ..storage.journal import Journal
from .config import EngineConfig
from .library import LEADER, Raft
from .pings import Pings
from .progress import Followers
from .transfers import Transfers

logger = logging.getLogger(__name__)

TRANSFER_S = 1.0


class Handover:
    """The transfer that is under way, if one is, and how often one may be asked for."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        transport: Transport,
        followers: Followers,
        pings: Pings,
        config: EngineConfig,
        *,
        clocks: Callable[[], tuple[float, int]],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._wire: Transport = transport
        self._followers: Followers = followers
        self._pings: Pings = pings
        self._interval_s: float = config.transfer_interval_s
        self._clocks: Callable[[], tuple[float, int]] = clocks
        """What the monotonic and the wall clock show, at one moment."""
        self._transfers: Transfers = Transfers(config.transfer_interval_s)
        self._transfer: tuple[Node, float] | None = None
        """To whom, and until when."""
        self._asked: bool = False

    @property
    def under_way(self) -> bool:
        """Whether this leader is handing over."""
        return self._transfer is not None

    def lead(self, now: float) -> None:
        """This node came to lead; by a hand-over, perhaps, which then counts as one of its own."""
        if self._raft.was_handed_over:
            self._transfers.happened(now)

    def end(self) -> None:
        """This node does not lead any more."""
        self._transfer = None

    def begin_wanted(self, to: str) -> NotDone | None:
        """As ``begin``, on request: at most one within a while."""
        now, _ = self._clocks()
        wait_s = self._transfers.wait_s(now)
        if self._raft.role == LEADER and wait_s:
            every_s = self._interval_s
            return TooSoon(
                f"leadership was handed over a moment ago, and is on request at most every {every_s:g} s "
                f"(transfer_interval_s): ask again in {math.ceil(wait_s)} s",
                retry_after_s=math.ceil(wait_s),
            )
        error = self.begin(to)
        if error is None:
            self._transfers.happened(now)
        return error

    def begin(self, to: str = "", *, with_room: bool = False) -> NotDone | None:
        """Begins, unless one is under way; why it did not, if it did not.

        ``with_room``: only to a node that has room on its disk, and will take over.
        """
        if self._raft.role != LEADER:
            return NotLeader(f"{self._node_id} does not lead")
        if self._transfer is not None:
            return None
        now, wall_ns = self._clocks()
        able = [node for node in self._wire.nodes() if to in ("", node.id) and self._followers.able_to_lead(node)]
        if with_room:
            able = [node for node in able if self._followers.keeps_up(node, now) and self._followers.known[node].room]
            able = [node for node in able if self._pings.clocks.trusts(node.id, now, wall_ns)]
        able = [node for node in able if self._followers.known[node].room] or able
        if not able:
            who = f"{to} cannot" if to else "no other node can"
            return NotDone(f"{who} take over now: not connected, shutting down, or not voting yet")
        right = [node for node in able if self._pings.clocks.trusts(node.id, now, wall_ns)]
        target = max(right or able, key=lambda node: (self._raft.match[node], node.id))
        self._transfer = (target, now + TRANSFER_S)
        self._asked = False
        logger.info("handing leadership to %s", target.id)
        return None

    def step(self, now: float) -> None:
        """Proposals rest meanwhile, so the target catches up even under load."""
        if self._transfer is None:
            return
        target, until = self._transfer
        if now > until:
            logger.warning("%s did not take over in time", target.id)
            self._transfer = None
        elif not self._asked and self._raft.match[target] == self._journal.last_index:
            self._asked = True
            self._raft.transfer(target)
