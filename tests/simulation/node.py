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
from typing import Any, NamedTuple, Protocol, TypeVar

from harness.raft import HandWorker, MemoryTransport
from harness.sim_disk import SimDisk
from pysyncobj.node import Node as LibraryNode
from pysyncobj.poller import Poller
from rollcall.node.forward import Applied, Asked, Indexed, Joined, Moved, Settled, Steps, Wait, Way
from rollcall.node.leader.duties import LOOK_S, Duties, DutySettings
from rollcall.node.leader.renewals import Renewal, Renewed
from rollcall.node.peers import BEQUEATH, SAY, SUBMIT, Said, serve_peers
from rollcall.node.writes import Writes
from rollcall.replication.checks import Check, State
from rollcall.replication.commands import LEVEL, Command, Result, Submittable
from rollcall.replication.errors import NotDone, RollcallError, Unknown
from rollcall.replication.log import Leadership
from rollcall.replication.network import wire
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft.config import EngineConfig
from rollcall.replication.raft.engine import Engine
from rollcall.replication.raft.library import LEADER
from rollcall.replication.records import Event, Key
from rollcall.replication.registry.changes import Changes
from rollcall.replication.registry.registry import Outcome, Registry

from simulation.asking import Asking
from simulation.clock import Clock
from simulation.network import SimNetwork
from simulation.plan import Plan

WRITE_S = 1.0
"""How long a node tries at most to have something done."""

A = TypeVar("A")
Ended = Callable[[Outcome | None, RollcallError | None], None]
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

    def submit(self, command: Submittable, request_id: str, settled: Ended) -> Callable[[], None]:
        """One try to make a change. Gives what to call when the client's patience is at its end."""
        ...

    def read(self, settled: Ended) -> Callable[[], None]:
        """One try to become as new as every write that has finished."""
        ...

    def renew(self, renewal: Renewal, renewed: RenewedBy) -> Callable[[], None]:
        """One heartbeat of an instance."""
        ...

    def say(self, key: Key, check: str, state: State, settled: Ended) -> Callable[[], None]:
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
        self._until: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        """Steps that wait for this node to come so far, and what is to be told then."""
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
        self.transport.request = self._bequeath
        self.duties: Duties = Duties(
            self.engine,
            self.transport,
            DutySettings(
                protection_threshold=plan.protection_threshold,
                contact_s_max=plan.election_s_min,
            ),
        )
        take_over = self.duties.take_over

        def taking_over(data: bytes) -> bytes:
            tenure = self.duties._term
            before = tenure is not None and tenure.may_take_over
            answer = take_over(data)
            if before and tenure is not None and not tenure.may_take_over:
                place.taken_over(place.name)
            return answer

        self.duties.take_over = taking_over
        self._writes: Writes = Writes(self.engine, lease_ttl_s_min=0.0)
        self._way: Way = Way(self.engine, WRITE_S, place.clock)
        serve_peers(
            self.transport,
            self.engine,
            self.duties,
            propose=self._writes.propose,
            read_index=self._writes.read_index,
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
        if self._until:
            self._tell()
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

    def _tell(self) -> None:
        ready = [told for is_so, told in self._until if is_so()]
        self._until = [waiting for waiting in self._until if not waiting[0]()]
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

    # -- asked by clients: the product's own steps, by this node's clock ------------------

    def _taken(self, steps: Steps[A], ended: Callable[[A | None, RollcallError | None], None]) -> Callable[[], None]:
        """Takes the steps as far as they go without waiting; what they wait for takes them further."""

        def go(move: Callable[[], Wait]) -> None:
            try:
                step = move()
            except StopIteration as end:
                ended(end.value, None)
            except RollcallError as error:
                ended(None, error)
            else:
                self._wait_for(step, further)

        def further(found: Any, error: RollcallError | None) -> None:
            if self._alive:
                go(lambda: steps.send(found) if error is None else steps.throw(error))

        go(lambda: next(steps))
        return _nothing

    def _wait_for(self, step: Wait, further: Callable[[Any, RollcallError | None], None]) -> None:
        """Has the steps go on when ``step`` has come, or its deadline has passed; once."""
        over: list[bool] = []

        def told(found: Any, error: RollcallError | None = None) -> None:
            if not over:
                over.append(True)
                further(found, error)

        match step:
            case Settled(pending, deadline):
                pending.add_done_callback(lambda _: told(pending.outcome, pending.error))
                self._at(deadline, lambda: pending.give_up("the write was not settled before its deadline"))
            case Asked(peer, kind, question, deadline):

                def answered(data: bytes, error: NotDone | Unknown | None) -> None:
                    try:
                        found = None if error is not None else kind.read_answer(data, peer)
                    except RollcallError as carried:
                        told(None, carried)
                    else:
                        told(found, error)

                def late() -> None:
                    self.transport.forget(number)
                    told(None, Unknown(f"{peer} did not answer in time"))

                number = self.transport.ask(peer, kind.name, kind.question(question), answered)
                self._at(deadline, late)
            case Applied(index, deadline):
                self._come_so_far(lambda: self.engine.raft.applied >= index, told, deadline)
            case Moved(seen, deadline):
                self._come_so_far(lambda: self.engine.leadership != seen, told, deadline)
            case Joined(renewals, deadline):
                here = lambda: self.duties.renew(renewals, self.name)  # noqa: E731
                self._taken(self._way.renewal_round(renewals, here, deadline), told)
            case Indexed(deadline):
                self._taken(self._way.read_index(self._writes.read_index, deadline), told)

    def _come_so_far(self, is_so: Callable[[], bool], told: Callable[[Any], None], deadline: float) -> None:
        if is_so():
            told(True)
            return
        waiting = (is_so, lambda: told(True))
        self._until.append(waiting)

        def late() -> None:
            if waiting in self._until:
                self._until.remove(waiting)
            told(False)

        self._at(deadline, late)

    def _at(self, deadline: float, action: Callable[[], None]) -> None:
        """Does it at that time of this node's clock, if the process is still there."""

        def run() -> None:
            if self._alive:
                self._place.act(self.name, action)

        self._place.later(max(0.0, deadline - self._place.clock()), run)

    def _deadline(self) -> float:
        return self._place.clock() + WRITE_S

    def submit(self, command: Submittable, request_id: str, settled: Ended) -> Callable[[], None]:
        try:
            asked = self._writes.prepared(command), request_id
        except RollcallError as error:
            settled(None, error)
            return _nothing
        return self._taken(
            self._way.change(SUBMIT, asked, lambda: self._writes.propose(*asked), self._deadline()), settled
        )

    def read(self, settled: Ended) -> Callable[[], None]:
        def ended(linearized: bool | None, error: RollcallError | None) -> None:
            if linearized:
                settled(Outcome(self.engine.raft.applied, ()), None)
            else:
                settled(None, error or NotDone("no leader says how new that is"))

        return self._taken(self._way.linearize(self._deadline()), ended)

    def renew(self, renewal: Renewal, renewed: RenewedBy) -> Callable[[], None]:
        def ended(answers: list[Renewed] | None, error: RollcallError | None) -> None:
            renewed(answers[0] if answers else None, error)

        return self._taken(self._way.renew([renewal], self._deadline()), ended)

    def say(self, key: Key, check: str, state: State, settled: Ended) -> Callable[[], None]:
        def here() -> Proposal | Outcome:
            return self.duties.report(key, check, state) or Outcome(self.registry.applied_index, ("none",))

        return self._taken(self._way.change(SAY, Said(key, check, state, ""), here, self._deadline()), settled)

    def _bequeath(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """What the thread of the duties asks, and would wait for: here the answer is found when it asks again."""
        if kind != BEQUEATH.name:
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
