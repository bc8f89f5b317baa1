"""What a leader proposes by itself, and what such commands mean to each node.

Invariant: nothing that not every member understands is proposed (feature levels); and no replica goes on whose state
differs from the leader's at the same index (H10): same log, same state, as State Machine Safety (section 5.4) wants it.
"""

import logging
import random
from collections.abc import Callable

from ..commands import KEEP_LEVEL, Begin, Command, Compare, Raise, Readmit
from ..errors import Fatal
from ..levels import PRE_VOTE_LEVEL
from ..network.transport import Transport
from ..proposal import Proposal
from ..registry.registry import Registry
from ..storage.peers import Peers
from ..storage.standing import Standing
from .config import EngineConfig
from .greeting import Greeting
from .library import Raft
from .progress import Followers
from .recovery import check_level

logger = logging.getLogger(__name__)

COMPARE_ENTRIES = 10_000
COMPARE_S = 60.0
"""The replicas' digests are compared after so many entries or so long, if anything changed (H10)."""


class Upkeep:
    """Feature level, the history's name, readmissions, and the comparison of digests."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        registry: Registry,
        standing: Standing,
        peers: Peers,
        transport: Transport,
        followers: Followers,
        greeting: Greeting,
        config: EngineConfig,
        *,
        propose: Callable[[Command], Proposal],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._registry: Registry = registry
        self._standing: Standing = standing
        self._peers: Peers = peers
        self._wire: Transport = transport
        self._followers: Followers = followers
        self._greeting: Greeting = greeting
        self._level: int = config.level
        self._propose: Callable[[Command], Proposal] = propose
        self._own: dict[str, Proposal] = {}
        self._begin_anew: bool = config.restored
        """The history needs another id than it has, and no leader since this start has given it one."""
        self._known_index: int = raft.commit_index
        """What was committed before this process began."""
        self._changed_index: int = 0
        self.noted: dict[int, str] = {}
        """Digests of this node's state, by the index after which they were taken."""
        self.compared_index: int = 0
        """The newest index at which this node's state was the leader's."""
        self._compared_at: float = 0.0

    def installed(self) -> None:
        """A state file took the place of the registry."""
        self.noted.clear()

    def step(self, now: float) -> None:
        """Raises the feature level, names the history, readmits who lost a disk, compares the replicas.
        At each heartbeat."""
        known = self._greeting.levels
        levels = [known.get(node.id, 0) if self._wire.connected(node) else 0 for node in self._wire.nodes()]
        level = min(self._level, *levels) if levels else self._level
        if level > self._registry.level:
            self._propose_once("raise", Raise(level))
        if self._registry.level < PRE_VOTE_LEVEL:
            return
        if self._registry.level >= KEEP_LEVEL and (self._begin_anew or not self._registry.history):
            self._propose_once("begin", Begin(f"{random.getrandbits(64):016x}"))
        for node in self._wire.nodes():
            disk = self._greeting.disk_in_place(node)
            if disk is not None and self._followers.takes_entries(node):
                self._propose_once(f"readmit {node.id}", Readmit(node.id, disk))
        noted = max(self.noted, default=0)
        old = now - self._compared_at > COMPARE_S and self._changed_index > self.compared_index
        if old or self._raft.applied - noted > COMPARE_ENTRIES:
            self._compared_at = now
            self._propose_once("compare", Compare(noted, self.noted.get(noted, "")))

    def _propose_once(self, what: str, command: Command) -> None:
        under_way = self._own.get(what)
        if under_way is None or under_way.done():
            self._own[what] = self._propose(command)

    def act_on(self, index: int, command: Command) -> None:
        """What an applied command means to the engine itself."""
        match command:
            case Raise():
                check_level(command.level, self._level)
                logger.info("the cluster uses feature level %d", self._registry.level)
            case Begin():
                self._begin_anew = self._begin_anew and index <= self._known_index
                logger.info("this history of the registry is called %s", command.history)
            case Compare():
                self._compare(index, command)
            case Readmit():
                if command.node == self._node_id and self._standing.admitted(command.disk, index):
                    self._greeting.admitted()
                if command.node != self._node_id and index > self._known_index:
                    # What was committed before this process began was noted when it was, or nobody knew how to.
                    self._peers.readmit(command.node, command.disk, index)
            case _:
                self._changed_index = index

    def _compare(self, index: int, command: Compare) -> None:
        """Stops this node if its state is not the leader's (H10). Better no answer than a wrong one.

        But not for an entry that was committed before this process began: if the leader was the one
        that was wrong, its word stays in the log, and no node could ever start on it again.
        """
        ours = self.noted.get(command.index)
        if ours is not None and command.digest:
            if ours != command.digest and index > self._known_index:
                raise Fatal(
                    f"this node's state differs from the leader's: after entry {command.index} its digest was {ours}, "
                    f"the leader's {command.digest}. Compare /api/v1/cluster/digest of all nodes: the one that is "
                    "alone must be stopped, its data directory emptied, and started with --rejoin"
                )
            self.compared_index = command.index
        self.noted = {at: digest for at, digest in self.noted.items() if at >= command.index}
        self.noted[index] = self._registry.digest()[1]
