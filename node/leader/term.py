"""One term of leadership: what its leader knows of leases and checks, what it has proposed, and a lock around it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...replication.log import Leadership
from ...replication.proposal import Proposal
from ...replication.records import Event, Key
from .check_clocks import Condition, Sharing
from .eviction import Pace, ProtectionView
from .leases import Leases

NOT_KNOWN = ProtectionView(active=False, leased=0, late=0, allowed_late=0, reason="the leader has not been asked yet")


class LeaderTerm:
    """The leases of one term of leadership, and the lock around them."""

    def __init__(self, leadership: Leadership, now: float) -> None:
        self.leadership: Leadership = leadership
        self.term: int = leadership.term
        self.looked_at: float = now
        self.viewed_at: float = 0.0
        self.swept_at: float = now
        self.lock = threading.Lock()
        self.leases: Leases | None = None
        self.condition: Condition | None = None
        self.sharing: Sharing | None = None
        self.proposed: dict[str, Proposal] = {}
        """What is under way of each kind, so that it is not proposed twice."""
        self.silenced: frozenset[tuple[Key, str]] = frozenset()
        """Checks of whose silence the last report tells; it may still be under way."""
        self.news: deque[Callable[[Leases, Condition], None]] = deque()
        """What the log did, in its order, for whoever holds the lock next: the log's own thread waits for no lock."""
        self.pace: Pace = Pace()
        self.unheard_pace: Pace = Pace()
        self.condemned: Pace = Pace()
        self.view: ProtectionView = NOT_KNOWN
        self.may_take_over: bool = False
        """Whether this is all that this leader knows of its term, and nobody has told it how the leases stood."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock, with everything heard that the log did so far."""
        with self.lock:
            leases, condition = self.leases, self.condition
            if leases is not None and condition is not None:
                while self.news:
                    self.news.popleft()(leases, condition)
            yield

    def hear(self, events: tuple[Event, ...], at: float) -> None:
        """The log did this. For its own thread, which waits for no lock."""

        def hear(leases: Leases, condition: Condition) -> None:
            leases.applied(events, at)
            condition.applied(events, at)

        self.news.append(hear)

    def may_propose(self, kind: str) -> bool:
        """Whether nothing of that kind is under way."""
        before = self.proposed.get(kind)
        return before is None or before.done()
