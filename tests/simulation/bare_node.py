"""The library as it is shipped, in a node's place: what this project would be without its engine.

pysyncobj with its own journal and its own state files, driven by hand, over the
world's network. It is treated kindly: nothing that it wrote is ever lost, torn,
or without room (its files are real ones, and a power cut is a kill), nothing
comes twice, and an answer that it calls discarded or denied is taken as one that
says nothing. A read is a command that does nothing: the library has no other way
to be sure. Leases, health checks and policies do not exist here, and no clock is set (``plan_for_bare``).
"""

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import Any

from harness.raft import hello_of
from msgspec import structs
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node as LibraryNode
from pysyncobj.transport import Transport as LibraryTransport
from rollcall.node.leader.renewals import Renewal
from rollcall.replication.commands import Barrier, Command, Envelope, Submittable, decode, encode, level_of
from rollcall.replication.errors import NoLeader, NotDone, RollcallError, Unknown
from rollcall.replication.proposal import Proposal
from rollcall.replication.records import Health, Key
from rollcall.replication.registry.changes import Changes
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.registry.state import State
from rollcall.replication.storage.journal import NO_OP, REGULAR

from simulation.node import Ended, Entry, Place, RenewedBy
from simulation.plan import Plan

TICK_S = 0.05
"""The library's own default."""
COMMAND_BYTES = 500
"""More than any command of a world takes: the library cannot take one that is larger than its batch."""
_SPARED = frozenset({"copy", "crash", "flip", "full", "sync error", "wall"})


def plan_for_bare(plan: Plan, *, small: bool = True) -> Plan:
    """``plan`` without what the library knows nothing of. ``small``: batches of a few entries, as if a
    backlog were larger than a batch; else the sizes that it is shipped with."""
    return structs.replace(
        plan,
        leased=0,
        checked=0,
        policies=0,
        batch_bytes=COMMAND_BYTES if small else 64 * 1024,
        piece_bytes=300 if small else 64 * 1024,
        faults=tuple(fault for fault in plan.faults if fault.kind not in _SPARED),
    )


class _Wire(LibraryTransport):
    """The library's official seam, over the world's network."""

    def __init__(self, place: Place) -> None:
        super().__init__(None, None, [])
        self.id: str = place.name
        self.hello = hello_of(place.name)
        self._network = place.network
        self._network.decode = pickle.loads
        self._network.may_repeat = lambda message: False
        self._network.join(self)  # pyright: ignore[reportArgumentType]

    def hello_for(self, peer: str) -> object:
        return self.hello

    def greeted(self, hello: object) -> str:
        return ""

    def on_connected(self, node: LibraryNode) -> None:
        self._onNodeConnected(node)

    def on_disconnected(self, node: LibraryNode) -> None:
        self._onNodeDisconnected(node)

    def send(self, node: LibraryNode, message: dict[str, Any]) -> bool:
        self._network.send(self.id, node.id, pickle.dumps(message))
        return self._network.is_up(self.id, node.id)

    def deliver(self) -> None:
        for source, message in self._network.fetch(self.id):
            with contextlib.suppress(Exception):
                # The library's loop logs what a round raises, and goes on.
                self._onMessageReceived(LibraryNode(source), message)
        self._network.hang_up(self.id)

    def destroy(self) -> None:
        pass


class _Store(SyncObj):
    """The registry as an object of the library. What it keeps in ``saved`` is what a state file holds."""

    def __init__(self, node: "BareNode", *arguments: Any, **options: Any) -> None:
        self._node: BareNode = node
        super().__init__(*arguments, **options)
        self._SyncObj__properies.add("_SyncObj__enabledCodeVersion")  # pyright: ignore[reportAttributeAccessIssue]
        self.saved: _Saved = _Saved(node, b"")

    @replicated
    def put(self, data: bytes) -> Applied:
        return self._node.apply(data)

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        result = super()._SyncObj__doApplyCommand(command)  # pyright: ignore[reportAttributeAccessIssue]
        if command[:1] != REGULAR:
            self._node.skip()
        return result


class _Saved:
    """Stands for the registry in the library's state files: it is encoded when one is written."""

    def __init__(self, node: "BareNode | None", data: bytes) -> None:
        self.node: BareNode | None = node
        self.data: bytes = data

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.node is not None
        return _Saved, (None, pickle.dumps(list(self.node.registry.root().chunks())))


class BareNode:
    """A ``node.Node`` of nothing but the library."""

    def __init__(self, place: Place) -> None:
        self.name: str = place.name
        self.registry: Registry = Registry()
        self.registry.skip(1, 0)
        self.changes: Changes = Changes(place.plan.feed_events)
        self.changes.reset(1)
        self._place: Place = place
        self._alive: bool = True
        self._proposals: list[Proposal] = []
        self._wire: _Wire = _Wire(place)
        plan = place.plan
        self.object: _Store = _Store(
            self,
            LibraryNode(place.name),
            [LibraryNode(name) for name in plan.names if name != place.name],
            SyncObjConf(
                autoTick=False,
                journalFile=str(place.directory / "journal"),
                fullDumpFile=str(place.directory / "dump"),
                useFork=False,
                raftMinTimeout=plan.election_s_min,
                raftMaxTimeout=plan.election_s_max,
                leaderFallbackTimeout=1.5,
                commandsWaitLeader=False,
                appendEntriesBatchSizeBytes=plan.batch_bytes,
                logCompactionBatchSize=plan.piece_bytes,
                logCompactionMinEntries=plan.snapshot_entries,
                logCompactionMinTime=3,
            ),
            transport=self._wire,
        )
        self.object._poller = _NoPoller()  # pyright: ignore[reportAttributeAccessIssue]

    # -- turns

    def turn(self) -> float:
        self._wire.deliver()
        with contextlib.suppress(Exception):
            self.object.doTick(0.0)
        self._adopt()
        return TICK_S

    def _adopt(self) -> None:
        """Takes over what the library loaded from a state file."""
        saved = self.object.saved
        if saved.node is not None:
            return
        self.registry = Registry()
        self.registry.replace(State.from_chunks(iter(pickle.loads(saved.data))))
        while self.registry.applied_index < self.applied_index:
            self.registry.skip(self.registry.applied_index + 1, self.registry.applied_term)
        self.changes.reset(self.applied_index)
        self.object.saved = _Saved(self, b"")

    def apply(self, data: bytes) -> Applied:
        self._adopt()
        index, term = self._next()
        applied = self.registry.apply(index, term, decode(data))
        self._publish(index, applied.events)
        return applied

    def skip(self) -> None:
        self._adopt()
        index, term = self._next()
        self.registry.skip(index, term)
        self._publish(index, ())

    def _next(self) -> tuple[int, int]:
        index = self.applied_index + 1
        return index, self.entry(index).term

    def _publish(self, index: int, events: Any) -> None:
        self.changes.publish(index, events)
        self._place.applied(self, index, events)

    # -- seen

    @property
    def leads(self) -> bool:
        return self.object._isLeader()

    @property
    def term(self) -> int:
        return self.object.raftCurrentTerm

    @property
    def commit_index(self) -> int:
        return self.object.raftCommitIndex

    @property
    def applied_index(self) -> int:
        return self.object.raftLastApplied

    @property
    def first_index(self) -> int:
        return self.object._SyncObj__raftLog[0][1]  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def last_index(self) -> int:
        return self.object._SyncObj__raftLog[-1][1]  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def age_s(self) -> float | None:
        return None

    def entry(self, index: int) -> Entry:
        log = self.object._SyncObj__raftLog  # pyright: ignore[reportAttributeAccessIssue]
        command, _, term = log[index - self.first_index]
        return Entry(term, REGULAR + pickle.loads(command[1:])[1][0] if command[:1] == REGULAR else NO_OP)

    @property
    def votes(self) -> bool:
        return True

    @property
    def durable(self) -> None:
        return None

    @property
    def counted(self) -> dict[str, int]:
        # It breaks enough that can be seen from outside.
        return {}

    # -- asked by clients

    def submit(self, command: Submittable, request_id: str, settled: Ended) -> Callable[[], None]:
        return self._propose(command, request_id, settled)

    def read(self, settled: Ended) -> Callable[[], None]:
        return self._propose(Barrier(), "", settled)

    def renew(self, renewal: Renewal, renewed: RenewedBy) -> Callable[[], None]:
        renewed(None, NoLeader("the library knows no leases"))
        return lambda: None

    def say(self, key: Key, check: str, state: Health, settled: Ended) -> Callable[[], None]:
        settled(None, NoLeader("the library knows no health checks"))
        return lambda: None

    def _propose(self, command: Command, request_id: str, settled: Ended) -> Callable[[], None]:
        envelope = Envelope(level_of(command), self._place.clock.time_ns(), command, request_id)
        proposal = Proposal(encode(envelope))
        proposal.take()
        self._place.proposed(self.name, proposal, command)
        self._proposals.append(proposal)
        proposal.add_done_callback(lambda _: settled(proposal.outcome, proposal.error) if self._alive else None)
        self.object.put(
            proposal.data,
            callback=lambda applied, reason: self._answered(proposal, applied, reason),  # pyright: ignore[reportCallIssue] - the decorator takes it
        )
        return lambda: proposal.give_up("the library did not answer in time")

    def _answered(self, proposal: Proposal, applied: Applied | None, reason: int) -> None:
        if reason == FAIL_REASON.SUCCESS and applied is not None:
            proposal.resolve(applied.outcome, applied.error)
        else:
            proposal.resolve(None, _error(reason))

    # -- what happens to it

    def hand_over(self, *, leaving: bool) -> None:
        self.object.transferLeadership()

    def stand(self) -> None:
        if not self.leads:
            self.object._SyncObj__raftElectionDeadline = 0  # pyright: ignore[reportAttributeAccessIssue]

    def kill(self) -> None:
        self._alive = False
        self._place.network.leave(self.name)
        self._end()

    def cut_power(self, chance: Any) -> None:
        self._alive = False
        self._place.network.leave(self.name, power=True)
        self._end()

    def _end(self) -> None:
        for proposal in self._proposals:
            proposal.give_up("this node is gone")
        half = self.object._SyncObj__serializer._Serializer__incomingTransmissionFile  # pyright: ignore[reportAttributeAccessIssue]
        if half is not None:
            # What Python still holds of a half-received file must not be written when it is collected.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, half.fileno())
            os.close(nowhere)
        self.object._doDestroy()


def _error(reason: int) -> RollcallError:
    if reason in (FAIL_REASON.MISSING_LEADER, FAIL_REASON.NOT_LEADER, FAIL_REASON.QUEUE_FULL):
        return NotDone("the library did not take it")
    return Unknown("the library does not say what became of it")


class _NoPoller:
    """The world says when there is something."""

    def poll(self, timeout: float) -> None:
        pass
