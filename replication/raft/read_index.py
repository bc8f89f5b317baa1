"""Linearizable reads without an entry in the log (dissertation 6.4).

Invariant: a read is answered with an index only after a quorum said, to a question that was asked after the read
came in, that this node still leads the term in which that index was its commit index; and only by a leader that has
applied its own term's first entry (6.4, step 1).
"""

from collections import deque

from pysyncobj.node import Node

from ..errors import NotLeader, Overloaded
from ..network import wire
from ..network.transport import Transport
from ..proposal import Pending
from .library import LEADER, Raft

READS_MAX = 20_000
"""Linearizable reads that wait for a round; each is usually many clients' at once."""


class _Round:
    """Reads that wait for a quorum to say that this leader still leads."""

    def __init__(self, number: int, index: int, reads: list[Pending[int]], node_id: str) -> None:
        self.number: int = number
        self.index: int = index
        self.reads: list[Pending[int]] = reads
        self.said_yes: set[str] = {node_id}


class ReadIndex:
    """One question to the others at a time, for all reads that wait. ``add`` is for any thread."""

    def __init__(self, node_id: str, raft: Raft, transport: Transport) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._wire: Transport = transport
        self._reads: deque[Pending[int]] = deque()
        self._round: _Round | None = None
        self._rounds: int = 0

    def add(self, read: Pending[int]) -> bool:
        """Lets ``read`` wait for the next round; False if it is settled already."""
        if self._raft.role != LEADER:
            read.resolve(None, NotLeader(f"{self._node_id} does not lead"))
        elif len(self._reads) >= READS_MAX:
            read.resolve(None, Overloaded(f"{READS_MAX} reads wait already", limit=READS_MAX))
        else:
            self._reads.append(read)
            return True
        return False

    @property
    def due(self) -> bool:
        """Whether a round could begin."""
        return bool(self._reads) and self._round is None and self._raft.serving

    def begin(self) -> None:
        """One question to the others for all reads that wait; what comes meanwhile waits for the next."""
        if self._reads and self._raft.role != LEADER:
            # Another thread asked in the moment in which leadership was lost.
            self.fail()
        if not self.due:
            return
        reads = [read for read in (self._reads.popleft() for _ in range(len(self._reads))) if not read.done()]
        if not reads:
            return
        self._rounds += 1
        self._round = _Round(self._rounds, self._raft.commit_index, reads, self._node_id)
        self.ask_again()
        self._finish()

    def ask_again(self) -> None:
        """Asks those that have not answered yet. With each heartbeat, since a question may be lost."""
        if self._round is not None and self._raft.role == LEADER:
            for node in self._wire.nodes():
                if node.id not in self._round.said_yes and self._wire.connected(node):
                    self._wire.send(node, wire.ReadProbe(self._raft.term, self._round.number))

    def answered(self, node: Node, message: wire.ReadProbeResponse) -> None:
        """``node`` still follows this leader. Counts for the round that asked."""
        if self._round is not None and message.round == self._round.number:
            self._round.said_yes.add(node.id)
            self._finish()

    def _finish(self) -> None:
        finished = self._round
        if finished is not None and self._raft.is_quorum(len(finished.said_yes)):
            self._round = None
            for read in finished.reads:
                read.resolve(finished.index)

    def fail(self) -> None:
        """This node does not lead any more: what waits has to ask another."""
        for read in self.abandon():
            read.resolve(None, NotLeader(f"{self._node_id} does not lead any more"))

    def abandon(self) -> list[Pending[int]]:
        """Gives back all reads that wait."""
        reads = [*self._reads, *(self._round.reads if self._round is not None else ())]
        self._reads.clear()
        self._round = None
        return reads
