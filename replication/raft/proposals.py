"""Commands on their way into the leader's log (figure 2, rules for leaders: "append entry to local log").

Invariant: a proposal is settled once. It is certainly not done until it is taken up, that is until its entry stands
in the log; from then on only the entry that is committed at its index says what became of it: its own if the terms
agree (Log Matching, section 5.3), another leader's if not.
"""

from collections import deque
from collections.abc import Callable

from ..commands import Command, Raise, adds, encode, level_of, sealed
from ..errors import DiskUnavailable, NotDone, NotLeader, Overloaded, Overwritten, RollcallError, Unknown
from ..proposal import Proposal
from ..registry.registry import Outcome
from ..storage.journal import REGULAR, Journal
from .library import LEADER, Raft

PROPOSALS_MAX = 20_000
"""Waiting to be taken up; past that a proposal is refused at once."""
DRAIN_BYTES = 1024 * 1024
DRAIN_S = 0.005
"""Of proposals taken up in one tick, and the time for it."""


class Proposals:
    """What waits to be taken up, and what was taken up and waits for its entry to be applied.

    ``propose`` is for any thread, all else for the tick thread.
    """

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        *,
        goes_on: Callable[[], bool],
        refused: Callable[[Proposal], RollcallError | None],
        disk_failed: Callable[[DiskUnavailable], None],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._goes_on: Callable[[], bool] = goes_on
        """Whether more may be taken up now; otherwise it waits."""
        self._refused: Callable[[Proposal], RollcallError | None] = refused
        """Why one is not taken up for want of room anywhere."""
        self._disk_failed: Callable[[DiskUnavailable], None] = disk_failed
        self._queue: deque[Proposal] = deque()
        self._waiting: dict[int, tuple[int, Proposal]] = {}
        """By the index of its entry: the term of that entry, and the proposal."""

    def propose(
        self, command: Command, *, time_ns: int, request_id: str, level: int, objection: RollcallError | None
    ) -> Proposal:
        """Queues a command. It is settled at once if this node cannot take it up: the cluster's feature ``level`` does
        not know the command, this node does not lead, there is an ``objection``, or too many wait."""
        proposal = Proposal(encode(sealed(command, time_ns, request_id, level=level)), adds=adds(command))
        if level_of(command) > level and not isinstance(command, Raise):
            refusal = NotDone("not every member understands this yet: upgrade them all", needs_level=level_of(command))
            proposal.resolve(None, refusal)
        elif self._raft.role != LEADER:
            proposal.resolve(None, NotLeader(f"{self._node_id} does not lead"))
        elif objection is not None:
            proposal.resolve(None, objection)
        elif len(self._queue) >= PROPOSALS_MAX:
            proposal.resolve(None, Overloaded(f"{PROPOSALS_MAX} writes wait already", limit=PROPOSALS_MAX))
        else:
            self._queue.append(proposal)
        return proposal

    def __len__(self) -> int:
        """How many wait to be taken up."""
        return len(self._queue)

    # -- into the log ----------------------------------------------------------------

    def take_up(self, clock: Callable[[], float]) -> None:
        """Writes what waits to the log, for a bounded time."""
        taken = 0
        until = clock() + DRAIN_S
        while self._queue and taken < DRAIN_BYTES and self._goes_on():
            if clock() > until:
                break
            proposal = self._queue.popleft()
            refusal = self._refusal(proposal)
            if refusal is not None:
                proposal.resolve(None, refusal)
            elif proposal.take():
                index = self._journal.last_index + 1
                self._journal.add(REGULAR + proposal.data, index, self._raft.term)
                self._expect(index, proposal)
                taken += len(proposal.data)

    def _refusal(self, proposal: Proposal) -> RollcallError | None:
        """Why a proposal is not taken up, if so."""
        if self._raft.role != LEADER:
            return NotLeader(f"{self._node_id} does not lead any more")
        refusal = self._refused(proposal)
        if refusal is not None:
            return refusal
        try:
            self._journal.check_room(len(proposal.data) + 64)
        except DiskUnavailable as error:
            self._disk_failed(error)
            return error
        return None

    def _expect(self, index: int, proposal: Proposal) -> None:
        before = self._waiting.pop(index, None)
        if before is not None:
            # Of an earlier leadership: gone from this log, but another node may hold and commit it.
            before[1].resolve(None, Unknown("leadership was lost before the write was committed"))
        self._waiting[index] = (self._raft.term, proposal)

    # -- out of it -------------------------------------------------------------------

    def awaited(self, index: int) -> tuple[int, Proposal] | None:
        """Takes out what waits for the entry at ``index``: the term that it was written in, and the proposal."""
        return self._waiting.pop(index, None)

    def replaced(self, index: int) -> None:
        """A state file took the place of the log up to ``index``."""
        for each in [each for each in self._waiting if each <= index]:
            _, proposal = self._waiting.pop(each)
            proposal.resolve(None, Unknown("a state file took the place of the log where the write stood"))

    def abandon(self) -> list[Proposal]:
        """Gives back all that is not settled."""
        left = [*self._queue, *(proposal for _, proposal in self._waiting.values())]
        self._queue.clear()
        self._waiting.clear()
        return left


def settle(awaited: tuple[int, Proposal], term: int, outcome: Outcome | None, error: RollcallError | None) -> None:
    """The entry at the index of a proposal was applied: it is the proposal's own if it is of the same term."""
    proposed_term, proposal = awaited
    if is_own_entry(proposed_term, term):
        proposal.resolve(outcome, error)
    else:
        proposal.resolve(None, Overwritten("another leader took over before the write was committed"))


def is_own_entry(proposed_term: int, term: int) -> bool:
    """Whether an entry of ``term`` is the one that was written in ``proposed_term`` at the same index (5.3)."""
    return proposed_term == term
