"""Applying what is committed to the registry (figure 2, rules for all servers; section 5.3).

Invariant: each entry is applied once, in order, and the index moves with it, whoever raises on the way (D12, D13).
What a command raises is the same on every replica, so it is a result like any other.
"""

import heapq
import logging
import threading
from collections.abc import Callable

from ..commands import Command, Envelope, decode
from ..errors import Fatal, RollcallError
from ..log import Listener
from ..records import Event
from ..registry.changes import Changes
from ..registry.registry import Applied, Registry
from ..storage.journal import NO_OP, REGULAR, Journal
from ..storage.snapshot import Snapshots
from .library import LEADER, Raft
from .proposals import Proposals, settle

logger = logging.getLogger(__name__)

APPLY_S = 0.005
"""Spent on applying in one tick, and on the entry that is applied then: a long backlog does not stop heartbeats."""


class Applying:
    """From the commit index into the registry, the change feed, the listeners, and to who waits.

    ``wait`` and ``listen`` are for any thread, all else for the tick thread.
    """

    def __init__(
        self,
        raft: Raft,
        journal: Journal,
        registry: Registry,
        changes: Changes,
        snapshots: Snapshots,
        proposals: Proposals,
        *,
        act_on: Callable[[int, Command], None],
    ) -> None:
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._registry: Registry = registry
        self._changes: Changes = changes
        self._snapshots: Snapshots = snapshots
        self._proposals: Proposals = proposals
        self._act_on: Callable[[int, Command], None] = act_on
        """What a command means beside the registry."""
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._waiters: list[tuple[int, int, threading.Event]] = []
        self._waiter_count: int = 0
        self._joined_at: int | None = None
        self.caught_up: bool = False
        """True for good once this node has applied what was committed when it joined."""

    # -- for any thread --------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Calls ``listener(index, events)`` on the tick thread after each entry applied."""
        self._listeners.append(listener)

    def wait(self, index: int, wait_s: float) -> bool:
        """Waits until this node has applied ``index``; False when ``wait_s`` have passed."""
        if self._raft.applied >= index:
            return True
        event = threading.Event()
        with self._lock:
            self._waiter_count += 1
            heapq.heappush(self._waiters, (index, self._waiter_count, event))
        # Applied between the look and the push: nobody would wake this waiter.
        if self._raft.applied >= index:
            return True
        if event.wait(wait_s):
            return True
        with self._lock:
            self._waiters = [waiter for waiter in self._waiters if waiter[2] is not event]
            heapq.heapify(self._waiters)
        return self._raft.applied >= index

    @property
    def waiters(self) -> int:
        """How many threads wait for an index."""
        return len(self._waiters)

    # -- for the tick thread ---------------------------------------------------------

    def joined(self, commit_index: int) -> None:
        """A leader with a quorum named its commit index. The first one counts."""
        if self._joined_at is None:
            self._joined_at = commit_index

    def step(self, clock: Callable[[], float]) -> None:
        """Applies what is committed, for a bounded time, each entry exactly once (D12, D13)."""
        raft = self._raft
        if raft.commit_index <= raft.applied:
            self._note_caught_up()
            return
        until = clock() + APPLY_S
        base = self._journal.base_index
        for index in range(raft.applied + 1, raft.commit_index + 1):
            command, _, term = self._journal[index - base]
            self._apply(index, term, command)
            if clock() > until:
                break
        self.wake_waiters()

    def wake_waiters(self) -> None:
        """Wakes those that wait for what is applied by now."""
        if not self._waiters:
            return
        with self._lock:
            while self._waiters and self._waiters[0][0] <= self._raft.applied:
                heapq.heappop(self._waiters)[2].set()

    def _note_caught_up(self) -> None:
        """True for good once an entry of a leader's own term was applied here, and everything
        up to the commit index that the first leader with a quorum named: what was committed
        when this node joined lies before the one (Leader Completeness) or before the other."""
        raft, joined_at = self._raft, self._joined_at
        if self.caught_up or raft.applied_term != raft.term:
            return
        self.caught_up = raft.role == LEADER or (joined_at is not None and raft.applied >= joined_at)

    def _apply(self, index: int, term: int, command: bytes) -> None:
        awaited = self._proposals.awaited(index)
        envelope, applied = self._run(index, term, command)
        if self._registry.applied_index < index:
            self._registry.skip(index, term)
        if envelope is not None:
            self._act_on(index, envelope.command)
        self._raft.apply(index, term)
        if applied.anew:
            # Who watches knows the registry as it was under its former name: all must read everything again.
            self._snapshots.let_go(None, self._changes.reset(index))
        else:
            self._changes.publish(index, applied.events)
        self._tell_listeners(index, applied.events)
        if awaited is not None:
            settle(awaited, term, applied.outcome, applied.error)

    def _run(self, index: int, term: int, command: bytes) -> tuple[Envelope | None, Applied]:
        """Lets the registry run an entry. What it raises is its result (D13)."""
        if command[:1] == NO_OP:
            return None, _NOTHING
        if command[:1] != REGULAR:
            raise Fatal(f"entry {index} is of a kind that this engine never writes: {command[:1]!r}")
        envelope: Envelope | None = None
        try:
            envelope = decode(command[1:])
            return envelope, self._registry.apply(index, term, envelope)
        except (MemoryError, OSError, Fatal):
            raise
        except Exception as problem:
            # The same on every replica, so going on is as safe as it gets;
            # stopping would stop all of them, for ever (D13).
            logger.exception("entry %d could not be applied", index)
            return envelope, Applied(None, RollcallError(f"the command could not be applied: {problem}"), ())

    def _tell_listeners(self, index: int, events: tuple[Event, ...]) -> None:
        for listener in self._listeners:
            try:
                listener(index, events)
            except (MemoryError, Fatal):
                raise
            except Exception:
                # The entry is applied, and its proposer is to be told, whoever fails to listen (D12).
                logger.exception("a listener failed at entry %d", index)


_NOTHING = Applied(None, None, ())
