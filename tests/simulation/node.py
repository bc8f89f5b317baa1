"""One node of a world: what the world asks of it, and the product's own node.

``Node`` is the whole face that a world needs, so that something else can stand
in a node's place. ``EngineNode`` puts the product's parts together as its
``__main__`` does, less threads and sockets: a turn is one round of the tick
thread, from the end of one wait for the network to the next.
"""

import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from harness.raft import HandWorker, MemoryTransport
from harness.sim_disk import SimDisk
from pysyncobj.node import Node as LibraryNode
from pysyncobj.poller import Poller
from rollcall.node.forward import (
    BARRIER,
    BEQUEATH,
    RENEW,
    SAY,
    SUBMIT,
    Answered,
    Desk,
    read_answer,
    renewals_asked,
    said,
    submission,
)
from rollcall.node.leader.duties import LOOK_S, Duties, DutySettings
from rollcall.node.service import READ_INDEX_LEVEL
from rollcall.node.values import Renewal, Renewed
from rollcall.replication.checks import Check, State
from rollcall.replication.commands import LEVEL, Barrier, Command, Result, Submittable
from rollcall.replication.errors import NoLeader, NotDone, RollcallError, Unknown
from rollcall.replication.log import Leadership
from rollcall.replication.network import wire
from rollcall.replication.proposal import Pending, Proposal
from rollcall.replication.raft.engine import Engine, EngineConfig
from rollcall.replication.raft.library import LEADER
from rollcall.replication.records import Event, Key
from rollcall.replication.registry.changes import Changes
from rollcall.replication.registry.registry import Outcome, Registry

from simulation.asking import Asking
from simulation.clock import Clock
from simulation.network import SimNetwork
from simulation.plan import Plan

Settled = Callable[[Outcome | None, RollcallError | None], None]
"""How a request ended: one of both is there."""
RenewedBy = Callable[[Renewed | None, RollcallError | None], None]


class Place(NamedTuple):
    """Where a node stands: everything that it is made from."""

    name: str
    plan: Plan
    directory: Path
    disk: SimDisk
    network: SimNetwork
    clock: Clock
    later: Callable[[float, Callable[[], None]], None]
    act: Callable[[str, Callable[[], Any]], Any]
    """Does something as that node, outside of its turns."""
    proposed: Callable[[str, Proposal, Command], None]
    """Told of every command that a node proposes."""
    applied: Callable[["Node", int, tuple[Event, ...]], None]
    """Told of every entry that a node applies, right after."""
    voted: Callable[[str, int, str], None] = lambda voter, term, candidate: None
    """Told of every vote that leaves a node, its own for itself included."""
    answer: Callable[[str, Check], State] = lambda node, check: "passing"
    """What a node is answered that asks an instance."""
    reported: Callable[[str, int, tuple[Result, ...]], None] = lambda node, epoch, results: None
    """Told of every report of checks that a node makes."""
    taken_over: Callable[[str], None] = lambda node: None
    """Told when a leader goes on from how the leases stood with the one before."""
    rejoin: bool = False
    old: bool = False
    """Whether it is to be a node of the release before."""


class Entry(NamedTuple):
    term: int
    command: bytes


class Durable(NamedTuple):
    """What a node may have told others between two turns: all of it is on its disk."""

    term: int
    vote: str | None
    last_term: int
    last_index: int


class Node(Protocol):
    """A running process, as its world sees it."""

    name: str
    registry: Registry
    changes: Changes

    def turn(self) -> float:
        """Takes what arrived, does what is due, and says after how many seconds it wants to be woken."""
        ...

    # -- what is seen of it

    @property
    def leads(self) -> bool: ...
    @property
    def term(self) -> int: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def first_index(self) -> int:
        """The first entry that the log still holds."""
        ...

    @property
    def last_index(self) -> int: ...
    def entry(self, index: int) -> Entry:
        """An entry that the log holds."""
        ...

    @property
    def age_s(self) -> float | None:
        """How old it says its copy is, by its own clock; None if it does not say."""
        ...

    @property
    def votes(self) -> bool:
        """Whether it takes part in elections."""
        ...

    @property
    def durable(self) -> "Durable | None":
        """What must be there again after any restart; None if it promises nothing of the kind."""
        ...

    @property
    def counted(self) -> Mapping[str, int]:
        """On a leader: up to which entry it counts each other node as holding its log."""
        ...

    # -- what clients ask of it; each calls back once, or never if the process ends first

    def submit(self, command: Submittable, request_id: str, settled: Settled) -> Callable[[], None]:
        """One try to make a change. Gives what to call when the client's patience is at its end."""
        ...

    def read(self, settled: Settled) -> Callable[[], None]:
        """One try to become as new as every write that has finished."""
        ...

    def renew(self, renewal: Renewal, renewed: RenewedBy) -> Callable[[], None]:
        """One heartbeat of an instance."""
        ...

    def say(self, key: Key, check: str, state: State, settled: Settled) -> Callable[[], None]:
        """A service's own word on a check that nobody asks."""
        ...

    # -- what happens to it

    def hand_over(self, *, leaving: bool) -> None:
        """It is asked to give leadership away; because it is about to end, if ``leaving``."""
        ...

    def stand(self) -> None:
        """Its election timer runs out now."""
        ...

    def kill(self) -> None: ...
    def cut_power(self, chance: Any) -> None: ...


MakeNode = Callable[[Place], Node]


class _Wait(Poller):
    """In place of the poll: what arrived was taken before the turn began; notes until when the node would wait."""

    def __init__(self) -> None:
        self.seconds: float = 0.0

    def subscribe(self, descr: int, callback: Callable[[int, int], None], eventMask: int) -> None:
        pass

    def unsubscribe(self, descr: int) -> None:
        pass

    def poll(self, timeout: float) -> None:
        self.seconds = timeout


class _Worker(HandWorker):
    """In place of the thread that writes state files: a job runs a while after it was given."""

    def __init__(self, later: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self._later: Callable[[Callable[[], None]], None] = later

    def submit(self, job: Callable[[], Any]) -> "Future[Any]":
        self.held = True
        future = super().submit(job)
        self._later(self.run)
        return future


class EngineNode:
    """The product's node."""

    def __init__(self, place: Place, make_engine: Callable[..., Engine] = Engine) -> None:
        plan = place.plan
        self.name: str = place.name
        self._place: Place = place
        self._disk: SimDisk = place.disk
        self._alive: bool = True
        self._until_applied: list[tuple[int, Callable[[], None]]] = []
        self._leadership: Leadership | None = None
        self._duties_at: float = 0.0
        self.transport: MemoryTransport = MemoryTransport(place.network, place.name, plan.names)
        send = self.transport.send

        def sending(node: LibraryNode, message: wire.Message) -> bool:
            if isinstance(message, wire.RequestVoteResponse | wire.RequestVote):
                place.voted(
                    place.name, message.term, node.id if isinstance(message, wire.RequestVoteResponse) else place.name
                )
            return send(node, message)

        self.transport.send = sending
        self.fatal: list[BaseException] = []
        try:
            self.engine: Engine = make_engine(
                place.name,
                self.transport,
                EngineConfig(
                    directory=place.directory,
                    cluster="test",
                    election_timeout_s_min=plan.election_s_min,
                    election_timeout_s_max=plan.election_s_max,
                    snapshot_entries=plan.snapshot_entries,
                    snapshot_interval_s=3.0,
                    rejoin=place.rejoin,
                    level=1 if place.old else LEVEL,
                ),
                changes=Changes(plan.feed_events),
                disk=place.disk,
                on_fatal=self.fatal.append,
            )
        except BaseException:
            place.network.leave(place.name)
            raise
        self.registry: Registry = self.engine.registry
        self.changes: Changes = self.engine.changes
        self._wait: _Wait = _Wait()
        self.engine.raft.poller.inner = self._wait
        self.engine.snapshots._worker = _Worker(self._later)  # pyright: ignore[reportAttributeAccessIssue]
        propose = self.engine.propose

        def noted(command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
            proposal = propose(command, time_ns=time_ns, request_id=request_id)
            place.proposed(self.name, proposal, command)
            return proposal

        self.engine.propose = noted
        self.engine.listen(lambda index, events: place.applied(self, index, events))
        self._told: dict[tuple[str, bytes], bytes | NotDone | Unknown | None] = {}
        self.transport.request = self._tell
        self.duties: Duties = Duties(
            self.engine,
            self.transport,
            DutySettings(
                protection_threshold=plan.protection_threshold,
                contact_s_max=plan.election_s_min,
            ),
        )
        Desk(
            self.engine,
            self.transport,
            propose=self._propose,
            barrier=self._read_index,
            renew=self.duties.renew,
            report=self.duties.report,
            notes=self.duties.notes,
            protection=self.duties.protection_bytes,
            take_over=self._take_over,
        )
        # The release before knows nothing of checks.
        self.asking: Asking | None = None if place.old or not plan.checked else self._asking()
        # Nor does a node ask before it has applied what it knows of.
        self._asks_from: int = self.commit_index

    def _asking(self) -> Asking:
        place, name = self._place, self.name
        return Asking(
            self.engine,
            self.transport,
            place.clock,
            answer=lambda check: place.answer(name, check),
            reported=lambda epoch, results: place.reported(name, epoch, results),
            chance=random.Random(f"{place.plan.seed}/{name}/asking"),
        )

    def _later(self, action: Callable[[], None]) -> None:
        """Runs an action of the background thread, if the process is still there."""

        def run() -> None:
            if self._alive:
                self._place.act(self.name, action)

        self._place.later(self._place.plan.save_s, run)

    # -- turns ---------------------------------------------------------------------

    def turn(self) -> float:
        engine = self.engine
        self.transport.deliver()
        engine.outbox.flush()
        engine.tick()
        if self._until_applied:
            self._tell_applied()
        # The thread of the duties, beside: woken by changes of leadership, else by its own clock.
        now = self._place.clock()
        if engine.leaders.now != self._leadership or now >= self._duties_at:
            if self._leadership is not None and self._place.plan.duty_lag_s and now < self._duties_at + 0.01:
                self._duties_at = now + self._place.plan.duty_lag_s
            else:
                self._duties_at = now + LOOK_S
            self._leadership = engine.leaders.now
            self.duties.step(self._leadership)
        due_at = self._duties_at
        if self.asking is not None and engine.raft.applied >= self._asks_from:
            self.asking.turn()
            due_at = min(due_at, self.asking.due_at)
        if engine.proposals:
            return 0.0
        return min(self._wait.seconds, max(0.0, due_at - now))

    def _tell_applied(self) -> None:
        applied = self.engine.raft.applied
        ready = [told for index, told in self._until_applied if index <= applied]
        if ready:
            self._until_applied = [waiting for waiting in self._until_applied if waiting[0] > applied]
            for told in ready:
                told()

    # -- seen ----------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self.engine.raft.role == LEADER

    @property
    def term(self) -> int:
        return self.engine.raft.term

    @property
    def commit_index(self) -> int:
        return self.engine.raft.commit_index

    @property
    def applied_index(self) -> int:
        return self.engine.raft.applied

    @property
    def first_index(self) -> int:
        return self.engine.journal.base_index

    @property
    def last_index(self) -> int:
        return self.engine.journal.last_index

    def entry(self, index: int) -> Entry:
        command, _, term = self.engine.journal[index - self.engine.journal.base_index]
        return Entry(term, command)

    @property
    def age_s(self) -> float | None:
        return self.engine.status().leader_contact_s

    @property
    def votes(self) -> bool:
        return self.engine.standing.votes

    @property
    def durable(self) -> Durable | None:
        journal = self.engine.journal
        return Durable(journal._term, journal._vote, journal[-1][2], journal.last_index)

    @property
    def counted(self) -> Mapping[str, int]:
        followers = self.engine.followers.known
        return {n.id: index for n, index in self.engine.raft.match.items() if n in followers and followers[n].votes}

    # -- asked by clients: what ``Service`` does, without waiting --------------------

    def submit(self, command: Submittable, request_id: str, settled: Settled) -> Callable[[], None]:
        leader = self.engine.leadership.leader
        if leader is None:
            settled(None, NoLeader("there is no leader"))
            return _nothing
        if leader == self.name:
            proposal = self._propose(command, request_id)
            proposal.add_done_callback(lambda _: self._settle(settled, proposal.outcome, proposal.error))
            return lambda: proposal.give_up("the write was not settled before its deadline")
        return self._hop(leader, SUBMIT, submission(command, request_id), settled)

    def _hop(self, leader: str, kind: str, payload: bytes, settled: Settled) -> Callable[[], None]:
        def answered(data: bytes, error: NotDone | Unknown | None) -> None:
            answer: Answered | None = None
            problem: RollcallError | None = error
            if error is None:
                try:
                    answer = read_answer(data)
                except RollcallError as found:
                    problem = found
            if answer is None:
                self._settle(settled, None, problem)
            elif answer.outcome is None:
                self._settle(settled, None, Unknown("the leader answered without an outcome"))
            else:
                self._when_applied(answer.outcome.index, lambda: self._settle(settled, answer.outcome, None))

        number = self.transport.ask(leader, kind, payload, answered)

        def give_up() -> None:
            self.transport.forget(number)
            self._settle(settled, None, Unknown(f"{leader} did not answer in time"))

        return give_up

    def _settle(self, settled: Settled, outcome: Outcome | None, error: RollcallError | None) -> None:
        if self._alive:
            settled(outcome, error)

    def _when_applied(self, index: int, told: Callable[[], None]) -> None:
        if self.engine.raft.applied >= index:
            told()
        else:
            self._until_applied.append((index, told))

    def _propose(self, command: Command, request_id: str = "") -> Proposal:
        return self.engine.propose(command, time_ns=self._place.clock.time_ns(), request_id=request_id)

    def _read_index(self) -> Pending[int] | Proposal:
        if self.registry.level < READ_INDEX_LEVEL:
            return self._propose(Barrier())
        return self.engine.read_index()

    def read(self, settled: Settled) -> Callable[[], None]:
        leader = self.engine.leadership.leader
        if leader is None:
            settled(None, NoLeader("there is no leader"))
            return _nothing
        if leader != self.name:
            return self._hop(leader, BARRIER, b"", settled)
        read = self._read_index()

        def done(_: object) -> None:
            if read.outcome is None:
                self._settle(settled, None, read.error)
                return
            outcome = Outcome(read.outcome, ()) if isinstance(read.outcome, int) else read.outcome
            self._when_applied(outcome.index, lambda: self._settle(settled, outcome, None))

        read.add_done_callback(done)
        return lambda: read.give_up("the read was not settled before its deadline")

    def renew(self, renewal: Renewal, renewed: RenewedBy) -> Callable[[], None]:
        leader = self.engine.leadership.leader
        if leader is None:
            renewed(None, NoLeader("there is no leader"))
            return _nothing
        if leader == self.name:
            try:
                (answer,) = self.duties.renew([renewal], leader)
            except RollcallError as error:
                renewed(None, error)
            else:
                renewed(answer, None)
            return _nothing

        def answered(data: bytes, error: NotDone | Unknown | None) -> None:
            found: Renewed | None = None
            problem: RollcallError | None = error
            if error is None:
                try:
                    (found,) = read_answer(data).renewed
                except RollcallError as told:
                    problem = told
            if self._alive:
                renewed(found, problem)

        number = self.transport.ask(leader, RENEW, renewals_asked([renewal]), answered)

        def give_up() -> None:
            self.transport.forget(number)
            renewed(None, Unknown(f"{leader} did not answer in time"))

        return give_up

    def _tell(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """What the thread of the duties asks, and would wait for: here the answer is found when it asks again."""
        if kind != BEQUEATH:
            raise NotDone("nothing waits here")
        said = peer, payload
        if said not in self._told:
            self._told[said] = None
            self.transport.ask(peer, kind, payload, lambda data, error: self._told.update({said: error or data}))
        answer = self._told[said]
        if answer is None:
            # As if it were not sent yet: so it is asked for again, and what is under way is not sent twice.
            raise NotDone(f"{peer} did not answer yet")
        del self._told[said]
        if isinstance(answer, bytes):
            return answer
        raise answer

    def _take_over(self, data: bytes) -> bytes:
        tenure = self.duties._tenure
        before = tenure is not None and tenure.may_take_over
        answer = self.duties.take_over(data)
        if before and tenure is not None and not tenure.may_take_over:
            self._place.taken_over(self.name)
        return answer

    def say(self, key: Key, check: str, state: State, settled: Settled) -> Callable[[], None]:
        leader = self.engine.leadership.leader
        if leader is None:
            settled(None, NoLeader("there is no leader"))
            return _nothing
        if leader != self.name:
            return self._hop(leader, SAY, said(key, check, state, ""), settled)
        try:
            proposal = self.duties.report(key, check, state)
        except RollcallError as error:
            settled(None, error)
            return _nothing
        if proposal is None:
            settled(Outcome(self.registry.applied_index, ("none",)), None)
            return _nothing
        proposal.add_done_callback(lambda _: self._settle(settled, proposal.outcome, proposal.error))
        return lambda: proposal.give_up("the word was not settled before its deadline")

    # -- what happens to it ----------------------------------------------------------

    def hand_over(self, *, leaving: bool) -> None:
        if leaving:
            self.transport.set_draining()
        self.engine.handover.begin()

    def stand(self) -> None:
        if self.votes and not self.leads:
            self.engine.raft.election_due = 0

    def kill(self) -> None:
        self._alive = False
        self._disk.cut_at = None
        self._disk.close_all()
        self._place.network.leave(self.name)
        self._end()

    def cut_power(self, chance: Any) -> None:
        self._alive = False
        self._disk.cut_power(chance)
        self._place.network.leave(self.name, power=True)
        self._end()

    def _end(self) -> None:
        self.engine.close()
        if self.asking is not None:
            self.asking.end()


def _nothing() -> None:
    pass
