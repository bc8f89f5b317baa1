"""What the nodes tell each other of their clocks (``clocks.py``), and what a node whose wall clock is off does.

Invariant: a node that leads has compared its clock with all whose votes it has: a ping goes out with each connection,
and is answered at once, before any vote on that connection. A node whose wall clock is off hands leadership over.
"""

import logging
from collections.abc import Callable

from pysyncobj.node import Node

from ..network import wire
from ..network.transport import Transport
from .clocks import Clocks

logger = logging.getLogger(__name__)

CLOCKS_S = 1.0
"""Between two pings that say what this node's clocks show."""


class Pings:
    """This node's clocks against the others'. Told what its own clocks show: ``now`` and ``wall_ns``."""

    def __init__(self, transport: Transport) -> None:
        self._wire: Transport = transport
        self.clocks: Clocks = Clocks()
        self._asked: dict[Node, float] = {}
        """The newest time that a peer put into a ping on this connection: it gets it back."""
        self._due_at: float = 0.0
        self.off_at: float = 0.0
        """When this node's wall clock was found to be off; where it leads, when it tried to hand over."""

    @property
    def error(self) -> str:
        """What is wrong with this node's wall clock; empty while nothing is."""
        return self.clocks.error

    def connected(self, node: Node, now: float, wall_ns: int) -> None:
        """There is a new connection. What was said on the one before is not answered on this one."""
        self._asked.pop(node, None)
        self._send(node, now, wall_ns)

    def step(self, now: float, wall_ns: Callable[[], int]) -> None:
        """Says at times what this node's clocks show."""
        if now >= self._due_at:
            self._due_at = now + CLOCKS_S
            for node in self._wire.nodes():
                self._send(node, now, wall_ns())

    def hands_over(self, now: float) -> bool:
        """Whether a leader should try to hand over because its wall clock is off; once a second."""
        if not self.clocks.error or now < self.off_at:
            return False
        self.off_at = now + CLOCKS_S
        return True

    def received(self, node: Node, message: wire.Ping, now: float, wall_ns: int) -> None:
        """What a peer says of its clocks; the first word on a connection is answered at once."""
        if message.at is None or message.wall_ns is None:
            return
        self._asked[node] = message.at
        if message.asked_at is None:
            self._send(node, now, wall_ns)
            return
        before = self.clocks.error
        self.clocks.heard(node.id, message.wall_ns, asked_at=message.asked_at, now=now, own_ns=wall_ns)
        if self.clocks.error and not before:
            self.off_at = now
            logger.error("%s", self.clocks.error)
        elif before and not self.clocks.error:
            logger.info("this node's wall clock agrees with the others' again")

    def _send(self, node: Node, now: float, wall_ns: int) -> None:
        if self._wire.connected(node):
            self._wire.ping(node, at=now, wall_ns=wall_ns, asked_at=self._asked.get(node))
