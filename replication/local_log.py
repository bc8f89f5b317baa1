"""A log of one node, in memory: for tests, and to show how little of a log the rest needs."""

import threading
import time

from .commands import LEVEL, Command, decode, encode, sealed
from .errors import NotDone
from .log import Handler, Leadership, Listener, LogStatus
from .proposal import Pending, Proposal
from .registry.changes import Changes
from .registry.registry import Registry, State


class LocalLog:
    """A log of one node that keeps nothing: what is proposed is applied at once.

    Commands go through the same encoding as on a real node, so a test on it
    sees the same values. It uses the feature level of this release, as a new cluster does.
    """

    def __init__(self, node_id: str = "local", *, changes: Changes | None = None) -> None:
        self.node_id: str = node_id
        self.registry: Registry = Registry()
        self.registry.replace(State.empty(level=LEVEL, history="0" * 16))
        self.changes: Changes = changes or Changes()
        self.term: int = 1
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._listeners: list[Listener] = []

    def status(self) -> LogStatus:
        index = self.registry.applied_index
        return LogStatus(
            node=self.node_id,
            leader=self.node_id,
            role="leader",
            term=self.term,
            commit_index=index,
            applied_index=index,
            leader_contact_s=0.0,
            serving_term=True,
            caught_up=True,
            peers=(),
        )

    def propose(self, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
        proposal = Proposal(encode(sealed(command, time_ns, request_id, level=self.registry.level)))
        proposal.take()
        with self._moved:
            index = self.registry.applied_index + 1
            applied = self.registry.apply(index, self.term, decode(proposal.data))
            if applied.anew:
                self.changes.reset(index)
            else:
                self.changes.publish(index, applied.events)
            for listener in self._listeners:
                listener(index, applied.events)
            self._moved.notify_all()
        proposal.resolve(applied.outcome, applied.error)
        return proposal

    def read_index(self) -> Pending[int]:
        read: Pending[int] = Pending()
        read.resolve(self.registry.applied_index)
        return read

    def hand_over(self, to: str = "") -> Pending[int]:
        begun: Pending[int] = Pending()
        begun.resolve(None, NotDone("there is no other node"))
        return begun

    def wait_applied(self, index: int, deadline: float) -> bool:
        with self._moved:
            return self._moved.wait_for(
                lambda: self.registry.applied_index >= index, max(0.0, deadline - time.monotonic())
            )

    @property
    def leadership(self) -> Leadership:
        return Leadership(self.term, self.node_id, True)

    def wait_leadership(self, seen: Leadership, deadline: float) -> Leadership:
        if seen == self.leadership:
            time.sleep(max(0.0, deadline - time.monotonic()))
        return self.leadership

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def close(self) -> None:
        self.changes.close()


class NoPeers:
    """The others of a node that is alone."""

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        raise NotDone(f"no member is called {peer!r}")

    def serve(self, kind: str, handler: Handler) -> None:
        pass
