"""The verbs of a node: here if it leads, else one hop to the leader.

Every face of the node (our own API, the dialects) speaks to this one object.
A write is held while there is no leader, up to ``write_timeout_s``, and then
fails as ``not_done``; once it is on its way it ends as done, ``not_done`` or
``unknown``. Nothing here waits without that deadline.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..replication.api import CheckView, MemberView
from ..replication.checks import State
from ..replication.commands import (
    KEEP_LEVEL,
    Barrier,
    Batch,
    Command,
    Deregister,
    Operation,
    Register,
    Submittable,
    level_of,
)
from ..replication.errors import (
    DiskUnavailable,
    Draining,
    Invalid,
    NoLeader,
    NotDone,
    Overloaded,
    RollcallError,
    Superseded,
    Unknown,
)
from ..replication.levels import READ_INDEX_LEVEL
from ..replication.log import Log, LogStatus, Peers, Role
from ..replication.proposal import Pending, Proposal
from ..replication.records import Instance, Key, Registration
from ..replication.registry.changes import Changes
from ..replication.registry.registry import Outcome, Registry, superseded
from .aside import Aside, at_once
from .budget import Budget
from .checks.checker import Checker
from .forward import (
    BARRIER,
    HAND_OVER,
    NOTES,
    RENEW,
    SAY,
    SUBMIT,
    Desk,
    Rounds,
    notes_asked,
    read_answer,
    read_notes,
    renewals_asked,
    renewals_bytes,
    said,
    submission,
)
from .heard import Heard
from .leader.duties import Duties
from .leader.eviction import ProtectionView
from .masking import is_masked, restored
from .position import Position, reach
from .values import LeaseView, Renewal, Renewed

logger = logging.getLogger(__name__)

DIRTY_AHEAD_NS = 3600 * 10**9
"""How far in the future a ``dirty_timestamp`` may lie."""

LEADER_SEEN_S = 10.0
"""A node that has not heard a leader for so long should get no requests."""

ASK_AGAIN_S = 0.02

NOTES_S = 1.0

HEARTBEATS_AT_ONCE = 250
"""Of one request; the rest takes its turn behind what others have sent meanwhile."""


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """What the verbs must be told. Times in seconds."""

    cluster_id: str
    write_timeout_s: float = 5.0
    lease_ttl_s_min: float = 2.0
    members: tuple[MemberView, ...] = ()
    """All nodes, this one included; ``role`` and ``reachable`` are filled in when asked."""


class Service:
    """One node's verbs. Thread-safe; made once by ``__main__``."""

    def __init__(
        self,
        log: Log,
        peers: Peers,
        duties: Duties,
        budget: Budget,
        settings: ServiceSettings,
        checker: Checker | None = None,
        aside: Aside = at_once,
    ) -> None:
        self._checker: Checker | None = checker
        self._log: Log = log
        self._peers: Peers = peers
        self._duties: Duties = duties
        self._settings: ServiceSettings = settings
        self._heard: Heard = Heard()
        self._draining: bool = False
        self.budget: Budget = budget
        self.node_id: str = log.node_id
        self.cluster_id: str = settings.cluster_id
        self.registry: Registry = log.registry
        self.changes: Changes = log.changes
        self._barriers: Rounds[None, int] = Rounds(self._barrier_round)
        self._renewals: Rounds[Sequence[Renewal], Sequence[Renewed | None]] = Rounds(
            self._renewal_round, renewals_bytes, len
        )
        Desk(
            log,
            peers,
            propose=self._propose,
            barrier=self._read_index,
            renew=self._renew_for_peer,
            report=duties.report,
            notes=duties.notes,
            protection=duties.protection_bytes,
            take_over=duties.take_over,
            aside=aside,
        )

    # -- writes --------------------------------------------------------------------

    def submit(self, command: Submittable, *, request_id: str = "") -> Outcome:
        """Makes the change and waits until this node has applied it.

        Raises what ``apply`` objected, ``NotDone`` or ``Unknown``.
        """
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        self._check(command)
        if self.registry.level < KEEP_LEVEL:
            # The leader may run a release that knows no masks: this node's copy must do.
            command = self._judged_here(self._unmasked(command))
            if level_of(command) >= KEEP_LEVEL:
                # A leader of the release before would take it, and leave out what it does not know: the time.
                raise NotDone(
                    "not every member understands this yet: upgrade them all, or say it without its time",
                    needs_level=level_of(command),
                )
        deadline = time.monotonic() + self._settings.write_timeout_s
        while True:
            seen = self._log.leadership
            try:
                if seen.leader is None:
                    raise NoLeader("there is no leader; an election takes about a second while a quorum is up")
                if seen.leader == self.node_id:
                    return self._propose(command, request_id).result_by(deadline)
                return self._submit_to(seen.leader, command, request_id, deadline)
            except Overloaded:
                raise
            except NotDone as error:
                if isinstance(error, DiskUnavailable) and error.facts.get("nearly_full"):
                    raise  # there is nobody with room to hand over to: that takes an operator, or removals
                if "needs_level" in error.facts and time.monotonic() > deadline - self._settings.write_timeout_s / 2:
                    raise  # this cluster is not new: its level rises when the last member is upgraded
                self._again(error, deadline)

    def _again(self, error: NotDone, deadline: float) -> None:
        """Waits for another leader, or a little; raises ``error`` when time is up."""
        now = time.monotonic()
        if now + ASK_AGAIN_S >= deadline:
            raise error
        self._log.wait_leadership(self._log.leadership, min(deadline, now + ASK_AGAIN_S * 5))

    def _submit_to(self, leader: str, command: Submittable, request_id: str, deadline: float) -> Outcome:
        answered = read_answer(self._peers.request(leader, SUBMIT, submission(command, request_id), deadline))
        if answered.outcome is None:
            raise Unknown(f"{leader} answered without an outcome")
        # The client may read here next. If this node lags, the write is done all the same.
        self._log.wait_applied(answered.outcome.index, deadline)
        return answered.outcome

    def _propose(self, command: Submittable, request_id: str) -> Proposal:
        """Stamps and proposes a client's command, ours or forwarded. Does not wait."""
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down")
        return self._propose_checked(command, request_id)

    def _propose_checked(self, command: Command, request_id: str = "") -> Proposal:
        now_ns = time.time_ns()
        # The registry's time does not go back with a clock that was set back.
        latest_ns = max(now_ns, self.registry.last_time_ns) + DIRTY_AHEAD_NS
        for registration in _registrations(command):
            dirty = registration.dirty_timestamp
            if dirty is not None and dirty > latest_ns:
                if clock_error := self._log.status().clock_error:
                    raise NotDone(clock_error)
                raise Invalid(
                    "dirty_timestamp: Expected nanoseconds at most one hour ahead of the leader's clock",
                    field="dirty_timestamp",
                    limit=latest_ns,
                )
        return self._log.propose(self._unmasked(command), time_ns=now_ns, request_id=request_id)

    def _unmasked(self, command: Command) -> Any:
        """``command`` with the secrets that this node holds where a client sent back the mask that it read."""
        if not any(map(is_masked, _registrations(command))):
            return command
        if isinstance(command, Register):
            return self._unmasked_one(command)
        assert isinstance(command, Batch)
        operations: list[Operation] = []
        for number, operation in enumerate(command.operations):
            try:
                operations.append(self._unmasked_one(operation) if isinstance(operation, Register) else operation)
            except Invalid as error:
                field = f"operations[{number}].{error.field}"
                raise Invalid(f"operations[{number}].{error.message}", field=field) from None
        return Batch(tuple(operations))

    def _unmasked_one(self, command: Register) -> Register:
        sent = command.registration
        if not is_masked(sent):
            return command
        return msgspec.structs.replace(command, registration=restored(sent, self.registry.instance(sent.key)))

    def _check(self, command: Submittable) -> None:
        for registration in _registrations(command):
            shortest = self._settings.lease_ttl_s_min
            if registration.ttl_s is not None and registration.ttl_s < shortest:
                raise Invalid(f"ttl_s: Expected at least {shortest:g} (lease_ttl_s_min)", field="ttl_s", limit=shortest)

    def _judged_here(self, command: Submittable) -> Submittable:
        """A removal that names a registration, as a member of an older release understands it.

        Which one is registered is then this node's copy to say, and the plain removal is proposed.
        Between the two another registration may come; who it is registers again.
        """
        if isinstance(command, Deregister):
            return self._plain_removal(command)
        if not isinstance(command, Batch):
            return command
        operations: list[Operation] = []
        for number, operation in enumerate(command.operations):
            try:
                operations.append(self._plain_removal(operation) if isinstance(operation, Deregister) else operation)
            except Superseded as error:
                facts = {**error.facts, "operation": number}
                raise Superseded(f"operations[{number}]: {error.message}; nothing was done", **facts) from None
        return Batch(tuple(operations))

    def _plain_removal(self, command: Deregister) -> Deregister:
        instance = self.registry.instance(command.key)
        # A copy that is behind may hold an older one than is meant, never a newer one.
        if command.reg_index and instance is not None and instance.reg_index > command.reg_index:
            raise superseded(instance, command.reg_index)
        return Deregister(command.key)

    # -- health checks -------------------------------------------------------------

    def report(self, key: Key, check: str, state: State, note: str = "") -> Outcome:
        """Takes a service's own word on a check with ``ttl_s``: only a change goes into the log.

        Raises ``NotFound`` if there is no such check, ``NotDone`` or ``Unknown``.
        """
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        deadline = time.monotonic() + self._settings.write_timeout_s
        while True:
            leader = self._log.leadership.leader
            try:
                if leader is None:
                    raise NoLeader("there is no leader; an election takes about a second while a quorum is up")
                if leader != self.node_id:
                    return self._report_to(leader, said(key, check, state, note), deadline)
                proposal = self._duties.report(key, check, state, note)
                if proposal is None:
                    return Outcome(self.registry.applied_index, ("none",))
                return proposal.result_by(deadline)
            except Overloaded:
                raise
            except NotDone as error:
                self._again(error, deadline)

    def checks(self, instance: Instance) -> list[CheckView]:
        """How an instance's checks stand, and what the node that asks was answered last."""
        node, views = self._checker.views_of_owner(instance) if self._checker is not None else ("", {})
        notes = {} if all(check.asks for check in instance.checks) else self._notes(instance.key)
        shown: list[CheckView] = []
        for check, state in zip(instance.checks, instance.check_states, strict=True):
            view = views.get(check.name)
            shown.append(
                CheckView(
                    name=check.name,
                    kind=check.kind,
                    state=state.state,
                    since=state.since,
                    node=node if check.asks else "",
                    output=view.output if view is not None else notes.get(check.name, ""),
                    latency_ms=round(view.latency_s * 1000, 3) if view is not None else None,
                    asked_at=int(view.asked_at * 1e9) if view is not None else None,
                )
            )
        return shown

    def _notes(self, key: Key) -> dict[str, str]:
        """Of the leader; nothing where it does not say within a second."""
        leader = self._log.leadership.leader
        if leader is None or leader == self.node_id:
            return self._duties.notes(key)
        try:
            return read_notes(self._peers.request(leader, NOTES, notes_asked(key), time.monotonic() + NOTES_S))
        except RollcallError as error:
            logger.debug("%s does not say what was said of %s: %s", leader, key.id, error)
            return {}

    def _report_to(self, leader: str, payload: bytes, deadline: float) -> Outcome:
        answered = read_answer(self._peers.request(leader, SAY, payload, deadline))
        if answered.outcome is None:
            raise Unknown(f"{leader} answered without an outcome")
        self._log.wait_applied(answered.outcome.index, deadline)
        return answered.outcome

    # -- leadership ----------------------------------------------------------------

    def hand_over(self, to: str = "") -> str:
        """Has leadership handed to the member ``to``, or to whom the leader chooses. The new leader's id.

        Raises ``NotDone`` if nobody took over.
        """
        members = [member.id for member in self._settings.members]
        if to and to not in members:
            raise Invalid(f"to: Expected a member ({', '.join(members)}), got {to[:40]!r}", field="to")
        deadline = time.monotonic() + self._settings.write_timeout_s
        before = self._log.leadership
        if before.leader is None:
            raise NoLeader("there is no leader that could hand over")
        if before.leader == to:
            return to
        if before.leader == self.node_id:
            self._log.hand_over(to).result_by(deadline)
        else:
            read_answer(self._peers.request(before.leader, HAND_OVER, to.encode(), deadline))
        seen = before
        while time.monotonic() < deadline:
            seen = self._log.wait_leadership(seen, deadline)
            if seen.leader not in (None, before.leader):
                return seen.leader or ""
        raise NotDone(f"{to or 'nobody'} did not take over within {self._settings.write_timeout_s:g} s")

    # -- renewals ------------------------------------------------------------------

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed]:
        """The leader's word on each heartbeat, in their order."""
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        deadline = time.monotonic() + self._settings.write_timeout_s
        parts = range(0, len(renewals), HEARTBEATS_AT_ONCE)
        return [
            answer
            for start in parts
            for answer in self._renew_some(renewals[start : start + HEARTBEATS_AT_ONCE], deadline)
        ]

    def _renew_some(self, renewals: Sequence[Renewal], deadline: float) -> list[Renewed]:
        renewed: list[Renewed | None] = [None] * len(renewals)
        open_places = list(range(len(renewals)))
        while True:
            asked = tuple(renewals[place] for place in open_places)
            try:
                for place, answer in zip(open_places, self._renewals.ask(asked, deadline), strict=True):
                    renewed[place] = answer
                open_places = [place for place in open_places if renewed[place] is None]
                if not open_places:
                    return [answer for answer in renewed if answer is not None]
                self._again(NotDone("an eviction of this instance is under way"), deadline)
            except Overloaded:
                raise
            except Unknown as error:
                # A heartbeat may be said twice.
                self._again(NotDone(error.message), deadline)
            except NotDone as error:
                self._again(error, deadline)

    def _renewal_round(self, asked: list[Sequence[Renewal]], deadline: float) -> Sequence[Sequence[Renewed | None]]:
        flat = [renewal for renewals in asked for renewal in renewals]
        leader = self._leader()
        if leader == self.node_id:
            answers: Sequence[Renewed | None] = self._duties.renew(flat, leader)
        else:
            answers = read_answer(self._peers.request(leader, RENEW, renewals_asked(flat), deadline)).renewed
            done = (
                renewal.key for renewal, answer in zip(flat, answers, strict=False) if answer and answer.status == "ok"
            )
            self._heard.note(done, time.monotonic())
        if len(answers) != len(flat):
            raise NotDone(f"{leader} answered {len(answers)} of {len(flat)} heartbeats")
        split: list[Sequence[Renewed | None]] = []
        start = 0
        for renewals in asked:
            split.append(answers[start : start + len(renewals)])
            start += len(renewals)
        return split

    def _renew_for_peer(self, renewals: Sequence[Renewal], peer: str) -> Sequence[Renewed | None]:
        return self._duties.renew(renewals, peer)

    # -- reads ---------------------------------------------------------------------

    def catch_up(self, position: Position, deadline: float, left: Callable[[], bool]) -> None:
        """Waits until this node's copy is at ``position``. ``Gone`` if the registry never was there, ``NotCaughtUp``
        at the deadline, when ``left()``, or when this node drains. All that wait share one question to the leader."""
        reach(position, self._log, self._leader_index, deadline, lambda: self._draining or left())

    def _leader_index(self, deadline: float) -> int | None:
        """An index not older than any write that has finished; None if no leader says."""
        try:
            return self._barriers.ask(None, min(deadline, time.monotonic() + self._settings.write_timeout_s))
        except (NotDone, Unknown):
            return None

    def linearize(self) -> bool:
        """Makes this node's copy as new as every write that has finished; False without a leader.

        All reads that wait share one question to the leader, and the leader's to a quorum.
        """
        deadline = time.monotonic() + self._settings.write_timeout_s
        index = self._leader_index(deadline)
        return index is not None and self._log.wait_applied(index, deadline)

    def _barrier_round(self, asked: list[None], deadline: float) -> Sequence[int]:
        leader = self._leader()
        if leader == self.node_id:
            read = self._read_index().result_by(deadline)
            index = read if isinstance(read, int) else read.index
        else:
            outcome = read_answer(self._peers.request(leader, BARRIER, b"", deadline)).outcome
            if outcome is None:
                raise Unknown("the barrier was settled without an outcome")
            index = outcome.index
        return [index] * len(asked)

    def _read_index(self) -> Pending[int] | Proposal:
        """By asking a quorum; through the log as long as a member runs a release that cannot be asked."""
        if self.registry.level < READ_INDEX_LEVEL:
            return self._propose_checked(Barrier())
        return self._log.read_index()

    def _leader(self) -> str:
        leader = self._log.leadership.leader
        if leader is None:
            raise NoLeader("there is no leader")
        return leader

    # -- standing ------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """From here on nothing new is taken: ``/readyz`` says so, writes are ``not_done``,
        parked polls return."""
        self._draining = True
        self.changes.close()

    def lease(self, key: Key) -> LeaseView | None:
        """The lease of an instance: exact on the leader; elsewhere its length, and the last renewal that this node
        passed on."""
        instance = self.registry.instance(key)
        if instance is None:
            return None
        return self._duties.lease(key) or LeaseView(instance.ttl_s, self._heard.ms_ago(key, time.monotonic()), False)

    def status(self) -> LogStatus:
        return self._log.status()

    def members(self) -> tuple[MemberView, ...]:
        status = self._log.status()
        reachable = {peer.id for peer in status.peers if peer.reachable} | {self.node_id}
        return tuple(
            MemberView(
                id=member.id,
                http=member.http,
                raft=member.raft,
                role=_role(member.id, status, member.id in reachable),
                reachable=member.id in reachable,
            )
            for member in self._settings.members
        )

    def protection(self) -> ProtectionView:
        return self._duties.protection()

    def complete(self) -> bool:
        """Whether this node is up to date, so that what it does not hold is not there."""
        status = self._log.status()
        return status.caught_up and status.leader_contact_s is not None and status.leader_contact_s < LEADER_SEEN_S

    def ready(self, write: bool) -> tuple[bool, str]:
        """Whether to send requests here, and why not."""
        if self._draining:
            return False, "shutting down"
        status = self._log.status()
        if status.standing == "new":
            missing = ", ".join(peer.id for peer in status.peers if peer.contact_s is None) or "the others to meet"
            return False, f"a new cluster begins when all members have met: waiting for {missing}"
        if status.standing == "rejoining":
            return False, "waiting for the cluster to fill this node's new disk and to readmit it (--rejoin)"
        if not status.caught_up:
            return False, "catching up with the cluster"
        contact_s = math.inf if status.leader_contact_s is None else status.leader_contact_s
        if contact_s > LEADER_SEEN_S:
            return False, f"no leader in the last {LEADER_SEEN_S:.0f} s, or this node is further behind it"
        if write and status.role == "leader" and status.clock_error:
            return False, status.clock_error
        if write and (status.leader is None or contact_s > self._settings.write_timeout_s):
            return False, "no leader now"
        return True, ""


def _registrations(command: Command) -> list[Registration]:
    if isinstance(command, Register):
        return [command.registration]
    if isinstance(command, Batch):
        return [operation.registration for operation in command.operations if isinstance(operation, Register)]
    return []


def _role(member: str, status: LogStatus, reachable: bool) -> Role | Literal["unknown"]:
    if member == status.leader:
        return "leader"
    if member == status.node:
        return status.role
    return "follower" if reachable else "unknown"
