"""Sees everything that the nodes of a world do and the clients are told, and says what must never be.

What is watched all along: one leader a term, the log of committed entries (the
same everywhere, for ever; a leader has all that was committed before its term),
the state after each entry, the events of each entry, the commit index, every
proposal's answer, every eviction, every change of health (``health``), what watchers
are shown. What is judged at the end, when everything is mended: see ``last_words``.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.linearizability import ABSENT, INSTANCE, Operation, check
from rollcall.replication.commands import (
    Assign,
    Command,
    Compare,
    Condemn,
    Envelope,
    Evict,
    Raise,
    Readmit,
    Result,
    decode,
)
from rollcall.replication.errors import NotDone
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft.clocks import ANSWER_S, LIMIT_S
from rollcall.replication.records import Event, Instance
from rollcall.replication.registry.changes import Page
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.storage.journal import REGULAR

from simulation.clock import EPOCH_NS
from simulation.health import Health
from simulation.node import Durable, Node

AGE_SLACK_S = 0.01
CLOCKS_DIFFER = 0.25
"""An age is made of times that two nodes measured, of which one may be a tenth slow and the other a tenth fast."""
STAMP_AHEAD_S = LIMIT_S + ANSWER_S + 10.0
"""The limit, what an answer may take that says how late it is elsewhere, and what clocks of different speed differ by
in the time of a schedule."""
ASSIGN = b"assign"
"""What the encoding of an assignment of checks holds."""
LINEARIZABLE_S = 20.0
"""The checker's patience; a history that takes longer counts as a violation."""


class Violation(BaseException):
    """A promise was not kept. ``kind`` is a short name of the promise. No handler of the product is to see it."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind: str = kind
        self.what: str = what


class _Committed(NamedTuple):
    term: int
    command: bytes
    seen_term: int
    """The term of who first knew that it was committed."""


class _Proposed(NamedTuple):
    node: str
    at: float
    proposal: Proposal
    command: Command


class _State(NamedTuple):
    """What a registry is at one index; comparing it is cheap."""

    total: int
    instances: int


class Judge:
    """One for each world. ``now`` is given in by whoever tells it something."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.counts: Counter[str] = Counter()
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, _Committed] = {}
        self.last_committed: int = 0
        self.states: dict[int, _State] = {}
        self.events: dict[int, tuple[Event, ...]] = {}
        self.applied_at: dict[int, float] = {}
        """When an entry was first applied anywhere."""
        self.proposed_by_data: dict[bytes, _Proposed] = {}
        self.operations: defaultdict[str, list[Operation]] = defaultdict(list)
        self.heartbeats: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        """Instance to its acknowledged registrations and renewals: called and answered."""
        self.lease_s: float = 0.0
        self.lease_slack_s: float = 0.0
        self.health: Health = Health(self.counts)
        self._latest_walls_ns: dict[str, int] = {}
        """How far each node's wall clock was ahead of the true time at most, so far."""
        self._read_until: int = 1
        """Up to which entry it is known who was to check."""
        self._led_at: dict[int, float] = {}
        self._seen_commit: dict[str, int] = dict.fromkeys(names, 0)
        self._applied: dict[str, int] = dict.fromkeys(names, 0)
        self._durable: dict[str, Durable] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._evictions: defaultdict[str, list[Operation]] = defaultdict(list)
        self._history: defaultdict[str, list[tuple[int, Instance | None]]] = defaultdict(list)
        """Instance to what it was from which index on."""

    # -- all along -----------------------------------------------------------------

    def started(self, node: Node) -> None:
        self._seen_commit[node.name] = 0
        self._applied[node.name] = node.applied_index
        self._check_state(node, node.applied_index)
        self._check_durable(node)

    def _check_durable(self, node: Node) -> None:
        """What was on disk when the process before ended is there."""
        known, found = self._durable.get(node.name), node.durable
        if known is None or found is None:
            return
        voted = found.term > known.term or known.vote in (None, found.vote)
        if found.term < known.term or not voted or (found.last_term, found.last_index) < known[2:]:
            raise Violation("durability", f"{node.name} had {known} on its disk, and comes back with {found}")

    def ended(self, name: str, *, midway: bool) -> None:
        """A node's process ended; ``midway``: in a turn, so that what it noted since the last may be there or not."""
        if midway:
            self._durable.pop(name, None)

    def turned(self, node: Node, now: float) -> None:
        """After a node's turn, or anything else that it did."""
        name = node.name
        if node.leads:
            self._check_leader(node)
            self._led_at.setdefault(node.term, now)
        self._check_commit(node)
        durable = node.durable
        if durable is not None:
            self._durable[name] = durable
        if node.applied_index != self._applied[name]:
            self.counts["state files installed"] += 1
            self._applied[name] = node.applied_index
            self._check_state(node, node.applied_index)

    def voted(self, voter: str, term: int, candidate: str) -> None:
        """A vote left a node: it is the only one of that node in that term, whatever became of its disk since."""
        known = self._votes.setdefault((voter, term), candidate)
        if known != candidate:
            raise Violation("one vote a term", f"{voter} voted for {known} in term {term}, and now for {candidate}")

    def counted(self, leader: Node, nodes: Mapping[str, Node]) -> None:
        """What a leader counts for a commit is there: its followers of this term hold what they acknowledged."""
        for name, index in leader.counted.items():
            node = nodes.get(name)
            # What a lost disk acknowledged counts until its successor says that it does not vote yet.
            if node is None or not node.votes or node.term > leader.term:
                continue
            if index and node.term < leader.term:
                what = f"in term {leader.term}, which {name} knows nothing of"
                raise Violation("acknowledged entries", f"{leader.name} counts {name} for entry {index} {what}")
            if index <= node.first_index:
                continue
            known = self.committed.get(index)
            wanted = leader.entry(index).term if index > leader.first_index else known.term if known else None
            held = node.entry(index).term if index <= node.last_index else None
            if wanted is not None and held != wanted:
                what = "nothing" if held is None else f"one of term {held}"
                raise Violation(
                    "acknowledged entries",
                    f"{leader.name} counts {name} for entry {index} of term {wanted}, where it holds {what}",
                )

    def _check_leader(self, node: Node) -> None:
        term = node.term
        known = self.leaders.get(term)
        if known is None:
            self.leaders[term] = node.name
            self.counts["elections"] += 1
            self._check_complete(node)
        elif known != node.name:
            raise Violation("one leader a term", f"{known} and {node.name} both lead term {term}")

    def _check_complete(self, node: Node) -> None:
        """Leader Completeness: what was committed in an earlier term is in a leader's log."""
        first, last, term = node.first_index, node.last_index, node.term
        for index in range(first, self.last_committed + 1):
            known = self.committed.get(index)
            if known is not None and known.seen_term < term:
                if index > last:
                    raise Violation("leader completeness", f"{node.name} leads term {term} without committed {index}")
                held = node.entry(index).term
                if held != known.term:
                    raise Violation(
                        "leader completeness",
                        f"{node.name} leads term {term} with {index} of term {held}, committed was {known.term}'s",
                    )

    def _check_commit(self, node: Node) -> None:
        commit, seen = node.commit_index, self._seen_commit[node.name]
        if commit < seen:
            raise Violation("commit index", f"{node.name} went back from commit index {seen} to {commit}")
        if commit > seen:
            # Of the first entry a log may hold no more than its term.
            self._check_committed(node, max(seen, node.first_index) + 1, commit)
            self._seen_commit[node.name] = commit

    def _check_committed(self, node: Node, first: int, last: int) -> None:
        term = node.term
        if last > node.last_index:
            raise Violation("commit index", f"{node.name} has commit index {last}, its log ends at {node.last_index}")
        for index in range(first, last + 1):
            held = node.entry(index)
            known = self.committed.get(index)
            if known is None:
                self.committed[index] = _Committed(held.term, held.command, term)
                self.last_committed = max(self.last_committed, index)
            elif (known.term, known.command) != held:
                raise Violation(
                    "committed entries",
                    f"{node.name} holds {index} of term {held.term} for committed, another node that of {known.term}",
                )

    def applied(self, node: Node, index: int, events: tuple[Event, ...], now: float) -> None:
        name = node.name
        self._check_commit(node)
        if index != self._applied[name] + 1:
            self.counts["state files installed"] += 1
        self._applied[name] = index
        known = self.events.get(index)
        if known is None:
            self.events[index] = events
            self.applied_at[index] = now
            if events:
                self._note_events(index, events, now)
        elif known != events:
            raise Violation("events", f"{name} saw {_kinds(events)} at entry {index}, another node {_kinds(known)}")
        self._check_state(node, index)

    def _check_state(self, node: Node, index: int) -> None:
        _, total, instances = node.registry._published
        state = _State(total, instances)
        known = self.states.setdefault(index, state)
        if known != state:
            raise Violation("equal states", f"{node.name} holds another state than others after entry {index}")

    def _note_events(self, index: int, events: tuple[Event, ...], now: float) -> None:
        for event in events:
            instance = event.instance
            name = f"{instance.service}/{instance.id}"
            gone = event.kind in ("DEREGISTER", "EVICT")
            self._history[name].append((index, None if gone else instance))
            if event.kind == "EVICT":
                self.counts["evictions"] += 1
                self._evictions[name].append(_evicted(index))
                self._check_eviction(index, event, now)
            if instance.checks:
                self._check_health(index, event, now)

    def value_at(self, name: str, index: int) -> Instance | None:
        """An instance as the log says that it is after entry ``index``."""
        history = self._history[name]
        place = bisect_right(history, index, key=lambda change: change[0])
        return history[place - 1][1] if place else None

    def proposed(self, node: str, proposal: Proposal, command: Command, now: float) -> None:
        if not isinstance(command, Raise | Compare | Readmit):
            self.proposed_by_data[proposal.data] = _Proposed(node, now, proposal, command)

    def wrote_in(self, term: int, *, since: int) -> bool:
        """Whether something that somebody asked for was committed after entry ``since``, in that term, the newest."""
        for index in range(self.last_committed, since, -1):
            entry = self.committed.get(index)
            if entry is None or entry.term != term:
                return False
            if entry.command[1:] in self.proposed_by_data:
                return True
        return False

    # -- wall clocks -----------------------------------------------------------------

    def clock_set(self, name: str, wall_ns: int) -> None:
        """A node's wall clock is so far ahead of the true time from now on."""
        self._latest_walls_ns[name] = max(wall_ns, self._latest_walls_ns.get(name, wall_ns))

    def _check_stamp(self, index: int, proposed: _Proposed, time_ns: int) -> None:
        """Nothing is stamped further ahead than the clock of some other node, by more than is allowed."""
        others = [wall_ns for name, wall_ns in self._latest_walls_ns.items() if name != proposed.node]
        ahead_s = (time_ns - EPOCH_NS - max(others)) / 1e9 - proposed.at
        if ahead_s > STAMP_AHEAD_S:
            raise Violation("stamps", f"{proposed.node} stamped {index} {ahead_s:.1f} s ahead of every other clock")
        self.counts["stamps checked"] += 1

    # -- leases ----------------------------------------------------------------------

    def heartbeat(self, name: str, called_at: float, answered_at: float) -> None:
        """An instance was told that it is registered, or its lease renewed."""
        self.heartbeats[name].append((called_at, answered_at))

    def _check_eviction(self, index: int, event: Event, now: float) -> None:
        name = f"{event.instance.service}/{event.instance.id}"
        entry = self.committed[index]
        envelope = decode(entry.command[1:])
        command = envelope.command
        proposed = self.proposed_by_data.get(entry.command[1:])
        if not isinstance(command, Evict | Condemn) or command.term != entry.term:
            raise Violation("evictions", f"entry {index} evicted {name}, and is no eviction of term {entry.term}")
        if proposed is not None and self.leaders.get(entry.term) != proposed.node:
            raise Violation("evictions", f"{proposed.node} evicted {name} in term {entry.term}, which it did not lead")
        if isinstance(command, Condemn):
            key, led_at = event.instance.key, self._led_at[entry.term]
            _raise_first("health checks", self.health.condemned(key, index, command, led_at, now))
            return
        for called_at, answered_at in self.heartbeats[name]:
            if answered_at <= now and called_at + self.lease_s - self.lease_slack_s > now:
                raise Violation(
                    "leases",
                    f"{name} was evicted {now - called_at:.3f} s after it sent a heartbeat that was acknowledged, "
                    f"of a lease of {self.lease_s} s",
                )

    # -- health checks -----------------------------------------------------------------

    def _check_health(self, index: int, event: Event, now: float) -> None:
        self._read_assignments(index)
        if event.kind in ("DEREGISTER", "EVICT"):
            self.health.removed(event.instance.key)
            return
        entry = self.committed[index]
        command = decode(entry.command[1:]).command
        _raise_first("health checks", self.health.changed(event, entry.term, command, now))

    def _read_assignments(self, until: int) -> None:
        """Tells who was to check, up to an entry."""
        for index in range(self._read_until + 1, until):
            entry = self.committed[index]
            # Most entries are something else, and decoding them takes long.
            if ASSIGN in entry.command:
                command = decode(entry.command[1:]).command
                if isinstance(command, Assign):
                    self.health.assigned(index, entry.term, command)
        self._read_until = until - 1

    def reported(self, node: str, epoch: int, results: tuple[Result, ...]) -> None:
        """A node makes a report of checks."""
        _raise_first("health checks", self.health.reported(node, epoch, results))

    # -- watchers --------------------------------------------------------------------

    def watched(self, node: Node, index: int, page: Page) -> None:
        """What a node showed a watcher who knew everything up to ``index``."""
        self.counts["watch pages"] += 1
        if page.examined > node.applied_index and page.examined > index:
            raise Violation("watches", f"{node.name} claims to have looked at {page.examined} before it applied it")
        at = index
        for shown, events in page.events_by_index:
            if any(self.events.get(between) for between in range(at + 1, shown)):
                raise Violation("watches", f"a watcher of {node.name} missed something between {at} and {shown}")
            if self.events.get(shown) != events:
                raise Violation("watches", f"a watcher of {node.name} was shown something else at {shown}")
            at = shown
        if any(self.events.get(between) for between in range(at + 1, page.examined + 1)):
            raise Violation("watches", f"a watcher of {node.name} missed something between {at} and {page.examined}")

    def local_read(self, node: Node, name: str, instance: Instance | None) -> None:
        """What a node's own copy said of an instance."""
        self.counts["local reads"] += 1
        if self.value_at(name, node.applied_index) != instance:
            raise Violation(
                "local reads", f"{node.name} at {node.applied_index} does not hold what the log says of {name}"
            )

    def aged(self, node: Node, age_s: float | None, now: float) -> None:
        """What a node's own copy lacks, and was applied somewhere longer ago than the node says (I9)."""
        if age_s is None:
            return
        self.counts["local reads that name an age"] += 1
        lacking = node.applied_index + 1
        applied_at = self.applied_at.get(lacking, now)
        if applied_at < now - age_s * (1 + CLOCKS_DIFFER) - AGE_SLACK_S:
            what = f"says that its copy is {age_s:.3f} s old, and lacks {lacking}, applied {now - applied_at:.3f} s ago"
            raise Violation("age", f"{node.name} {what}")

    # -- at the end ------------------------------------------------------------------

    def last_words(self, nodes: list[Node]) -> None:
        """Everything is mended, and every node has applied the same: the rest that must be true."""
        replica = Registry()
        replica.skip(1, 0)
        results: dict[int, Applied] = {}
        stamps: set[bytes] = set()
        for index in range(2, self.last_committed + 1):
            entry = self.committed.get(index)
            if entry is None:
                raise Violation("committed entries", f"no node ever held the committed entry {index}")
            if entry.command[:1] != REGULAR:
                replica.skip(index, entry.term)
                continue
            data = entry.command[1:]
            if data in stamps and data in self.proposed_by_data:
                raise Violation("exactly once", f"one proposal stands in the log twice, again at {index}")
            stamps.add(data)
            envelope: Envelope = decode(data)
            if data in self.proposed_by_data:
                self._check_stamp(index, self.proposed_by_data[data], envelope.time_ns)
            results[index] = replica.apply(index, entry.term, envelope)
        self._check_answers(stamps, results)
        files = {node.name: b"".join(node.registry.root().chunks()) for node in nodes}
        if len(set(files.values())) != 1:
            raise Violation("equal states", "in the end the nodes' state files differ")
        if replica.digest() != nodes[0].registry.digest():
            raise Violation("equal states", "in the end the nodes do not hold what the log says")
        self._check_linearizable()

    def _check_answers(self, stamps: set[bytes], results: dict[int, Applied]) -> None:
        for data, proposed in self.proposed_by_data.items():
            proposal = proposed.proposal
            self.counts["proposals"] += 1
            if not proposal.done() and data in stamps:
                raise Violation("one answer", f"a write that {proposed.node} took at {proposed.at:.3f} has no answer")
            if proposal.outcome is not None:
                self.counts["results void"] += proposal.outcome.kinds.count("void")
                entry = self.committed.get(proposal.outcome.index)
                applied = results.get(proposal.outcome.index)
                # A repeated request is told the index of the first.
                if entry is None or (entry.command[1:] != data and data not in stamps):
                    raise Violation(
                        "acknowledged writes",
                        f"{proposed.node} acknowledged a write as entry {proposal.outcome.index}: {proposed.command}",
                    )
                if applied is None or applied.outcome is None or applied.outcome.kinds != proposal.outcome.kinds:
                    raise Violation("acknowledged writes", f"entry {proposal.outcome.index} did not do what was said")
            elif isinstance(proposal.error, NotDone) and data in stamps:
                raise Violation("not done", f"{proposed.node} called not done what is in the log: {proposed.command}")

    def _check_linearizable(self) -> None:
        for name, operations in self.operations.items():
            self.counts["operations checked"] += len(operations)
            evicted = [
                Operation(
                    client="leader", called_at=0.0, returned_at=None, kind="evicted", result="evicted", index=index
                )
                for index, events in self.events.items()
                for event in events
                if event.kind == "EVICT" and f"{event.instance.service}/{event.instance.id}" == name
            ]
            verdict = check([*operations, *evicted], INSTANCE, LINEARIZABLE_S)
            if not verdict.legal:
                raise Violation("linearizability", f"of {name}: {verdict}")


def _raise_first(kind: str, wrong: Iterable[str]) -> None:
    for what in wrong:
        raise Violation(kind, what)


def seen(instance: Instance | None) -> object:
    """An instance as an operation's result."""
    return ABSENT if instance is None else (instance.version, instance.status_override or "")


def _evicted(index: int) -> Operation:
    """What the leader did to an instance, among what its clients did."""
    return Operation(client="leader", called_at=0.0, returned_at=None, kind="evicted", result="evicted", index=index)


def _kinds(events: tuple[Event, ...]) -> str:
    return ", ".join(f"{event.kind} {event.instance.id} {event.instance.version}" for event in events) or "nothing"
