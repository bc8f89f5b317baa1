"""AppendEntries at the receiver (figure 2; sections 5.1 and 5.3).

Invariant: what a leader is told to be held is held as it has it, and on disk. ``verified`` is the last entry that is
proven to be the same here and at this leader in this term: the commit index follows no further (D2), every refusal
names the entry after it (D14), and nothing up to what is committed is ever cut (D1; Leader Completeness).
"""

from collections.abc import Callable

from pysyncobj.node import Node

from ..errors import DiskUnavailable, Fatal, Invalid
from ..network import wire
from ..network.transport import Transport
from ..storage.journal import Entry, Journal
from ..storage.standing import Standing
from ..storage.starts import Position
from .durability import DiskRoom, Outbox
from .election import Election
from .greeting import contradiction
from .library import LEADER, Raft
from .snapshot_transfer import Receiver


class Append:
    """What this node holds of its leader's log, and what it says of that."""

    def __init__(
        self,
        node_id: str,
        raft: Raft,
        journal: Journal,
        standing: Standing,
        transport: Transport,
        election: Election,
        receiver: Receiver,
        outbox: Outbox,
        room: DiskRoom,
        *,
        hear: Callable[[str, Position], None],
        clock: Callable[[], float],
    ) -> None:
        self._node_id: str = node_id
        self._raft: Raft = raft
        self._journal: Journal = journal
        self._standing: Standing = standing
        self._wire: Transport = transport
        self._election: Election = election
        self._receiver: Receiver = receiver
        self._outbox: Outbox = outbox
        self._room: DiskRoom = room
        self._hear: Callable[[str, Position], None] = hear
        """Told what a leader gave its word for."""
        self._clock: Callable[[], float] = clock
        self._verified: tuple[int, str, int] = (0, "", 0)
        """Term, leader, and the last entry that is the same at both."""
        self._asked_at: tuple[int, str, float | None] = (0, "", None)
        """Term, leader, and its clock when it sent the newest ``AppendEntries`` that was read."""

    def hear_leader(self, node: Node, term: int, now: float) -> bool:
        """What any message of a leader does: term, role, election timer. False if it is stale,
        or this node has not found out yet whether it is one of this cluster's."""
        if self._standing.kind == "new":
            return False
        if term < self._raft.term:
            self.answer(node, alive=True)
            return False
        if self._raft.role == LEADER and term == self._raft.term:
            raise Fatal(f"two leaders in term {term}: {node.id} and {self._node_id}")
        self._receiver.led_by(term, node.id)
        self._raft.led_by(node, term)
        self._election.heard_leader(now)
        return True

    def asked(self, node: Node, message: wire.AppendEntries) -> None:
        """The leader's clock comes back to it with the answers to what was read by then."""
        self._asked_at = (message.term, node.id, message.at)

    def received(self, node: Node, message: wire.AppendEntries) -> None:
        """Rules 2 to 5 for receivers of AppendEntries, for a message of this node's leader.

        Only entries in conflict are deleted, and never committed ones (D1). The
        commit index follows only what was verified against this leader in this
        term (D2). Every refusal names the same proven point (D14).
        """
        if message.previous_index:
            # The leader sends entries again, so it no longer sends the state file: it would be waited for in vain.
            self._receiver.abort()
        if self._receiver.installing or not message.previous_index:
            self.answer(node, alive=True)
            return
        verified = self._verified_with(message.term, node.id)
        previous, previous_term, entries = self._behind_base(message)
        if not self._agrees(node, message.term, previous, previous_term):
            self._verified = (message.term, node.id, verified)
            self.answer(node, next_index=verified + 1, reset=True)
            return
        self._check_entries(node, message, previous, entries)
        try:
            self._store(node, entries)
        except DiskUnavailable as error:
            self._room.failed(error)
            self.answer(node, alive=True)
            return
        end = previous + len(entries)
        verified = max(verified, end)
        self._verified = (message.term, node.id, verified)
        commit = self._may_commit(message.commit_index, verified)
        if commit > self._raft.committed:
            self._raft.agreed_index = commit
            self._hear(node.id, Position(message.term, self._journal.term_at(commit) or 0, commit))
        self.answer(node, next_index=verified + 1)

    def installed(self, leader: Node, index: int) -> None:
        """A state file took the place of the log up to ``index``. Acknowledged is exactly that (D3)."""
        self._verified = (self._raft.term, leader.id, index)
        self.answer(leader, next_index=index + 1)

    def answer(self, node: Node, *, next_index: int = 0, reset: bool = False, alive: bool = False) -> None:
        """Acknowledges, once it is true on disk (``_hold``). Stamped with our term (D4)."""
        success = not reset and not alive
        term, leader, at = self._asked_at
        asked_at = at if (term, leader) == (self._raft.term, node.id) else None
        votes, room = self._standing.votes, self._room.is_there
        self._outbox.hold(
            node,
            wire.AppendEntriesResponse(
                self._raft.term, next_index, success, reset, votes, self._clock(), asked_at, room
            ),
        )

    def _verified_with(self, term: int, leader: str) -> int:
        """The last entry that is proven to be the same here and at that leader; what is committed is."""
        verified_term, verified_leader, verified = self._verified
        if (verified_term, verified_leader) != (term, leader):
            verified = 0
        return max(verified, self._raft.committed)

    def _behind_base(self, message: wire.AppendEntries) -> tuple[int, int, tuple[Entry, ...]]:
        """Previous entry, its term, and the entries after it, without what this log was compacted up to."""
        entries = message.entries
        previous, previous_term = message.previous_index, message.previous_term
        if previous < self._journal.base_index:
            # What was compacted away was committed, so it agrees (Leader Completeness).
            entries = entries[self._journal.base_index - previous :]
            previous, previous_term = self._journal.base_index, self._journal[0][2]
        return previous, previous_term, entries

    def _agrees(self, node: Node, term: int, previous: int, previous_term: int) -> bool:
        """Rule 2: whether this log holds the entry before those that were sent (Log Matching)."""
        held = self._journal.term_at(previous)
        if held == previous_term:
            return True
        if held is not None and previous <= self._raft.committed:
            what = f"{node.id}, the leader of term {term}, has term {previous_term} at entry {previous}"
            raise contradiction(self._wire, node, f"{what}, which is committed with term {held} on {self._node_id}")
        return False

    def _may_commit(self, commit_index: int, verified: int) -> int:
        """Rule 5: up to where a leader's commit index may be followed (D2)."""
        return min(commit_index, verified)

    def _check_entries(
        self, node: Node, message: wire.AppendEntries, previous: int, entries: tuple[Entry, ...]
    ) -> None:
        expected, term = previous + 1, 0
        for _, index, entry_term in entries:
            if index != expected or entry_term < term or entry_term > message.term:
                self._wire.drop(node, f"sent entry {index} of term {entry_term} where {expected} was due")
                raise Invalid(f"{node.id} sent entries out of order")
            expected, term = expected + 1, entry_term

    def _store(self, node: Node, entries: tuple[Entry, ...]) -> None:
        """Rules 3 and 4 of AppendEntries: skip what is held, cut only a conflict, append the rest."""
        journal = self._journal
        for position, (_, index, term) in enumerate(entries):
            held = journal.term_at(index)
            if held == term:
                continue
            if held is not None:
                if index <= self._raft.committed:
                    what = f"entry {index} of term {term} from {node.id} contradicts a committed one of term {held}"
                    raise contradiction(self._wire, node, f"{what} on {self._node_id}")
                journal.deleteEntriesFrom(index - journal.base_index)
            rest = entries[position:]
            journal.check_room(sum(len(command) + 64 for command, _, _ in rest))
            for entry in rest:
                journal.add(*entry)
            return
