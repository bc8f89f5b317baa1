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
from typing import Any, Literal, TypeVar

from msgspec import Struct

from ..replication.api import CheckView, MemberView
from ..replication.checks import State
from ..replication.commands import Submittable
from ..replication.errors import Draining, Invalid, NotDone, RollcallError, Unknown
from ..replication.log import Log, LogStatus, Peers, Role
from ..replication.proposal import Pending, Proposal
from ..replication.records import Instance, Key
from ..replication.registry.changes import Changes
from ..replication.registry.registry import Outcome, Registry
from .budget import Budget
from .checks.checker import Checker
from .forward import Applied, Asked, Indexed, Joined, Moved, Settled, Steps, Wait, Way, taken
from .heard import Heard
from .leader.duties import Duties
from .leader.eviction import ProtectionView
from .leader.renewals import LeaseView, Renewal, Renewed
from .peers import NOTES, SAY, SUBMIT, Said, ask, renewals_bytes
from .position import Position, reach
from .rounds import Rounds
from .writes import Writes

A = TypeVar("A")

logger = logging.getLogger(__name__)

LEADER_SEEN_S = 10.0
"""A node that has not heard a leader for this long should get no requests."""

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
        self._writes: Writes = Writes(log, lease_ttl_s_min=settings.lease_ttl_s_min)
        self._way: Way = Way(log, settings.write_timeout_s)

    def _taken(self, steps: Steps[A]) -> A:
        return taken(steps, self._wait)

    def _wait(self, step: Wait) -> Any:
        match step:
            case Settled():
                return step.pending.result_by(step.deadline)
            case Asked():
                return ask(self._peers, step.node, step.kind, step.question, step.deadline)
            case Applied():
                return self._log.wait_applied(step.upto, step.deadline)
            case Moved():
                return self._log.wait_leadership(step.seen, step.deadline)
            case Joined():
                return self._renewals.ask(step.renewals, step.deadline)
            case Indexed():
                return self._barriers.ask(None, step.deadline)

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.write_timeout_s

    # -- writes --------------------------------------------------------------------

    def submit(self, command: Submittable, *, request_id: str = "") -> Outcome:
        """Makes the change and waits until this node has applied it.

        Raises what ``apply`` objected, ``NotDone`` or ``Unknown``.
        """
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        command = self._writes.prepared(command)
        asked = command, request_id
        return self._taken(self._way.change(SUBMIT, asked, lambda: self.propose(*asked), self._deadline()))

    def propose(self, command: Submittable, request_id: str) -> Proposal:
        """Stamps and proposes a client's command, ours or forwarded. Does not wait."""
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down")
        return self._writes.propose(command, request_id)

    # -- health checks -------------------------------------------------------------

    def report(self, key: Key, check: str, state: State, note: str = "") -> Outcome:
        """Takes a service's own word on a check with ``ttl_s``: only a change goes into the log.

        Raises ``NotFound`` if there is no such check, ``NotDone`` or ``Unknown``.
        """
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        return self._taken(
            self._way.change(
                SAY,
                Said(key, check, state, note),
                lambda: self._duties.report(key, check, state, note) or Outcome(self.registry.applied_index, ("none",)),
                self._deadline(),
            )
        )

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
            return ask(self._peers, leader, NOTES, key, time.monotonic() + NOTES_S)
        except RollcallError as error:
            logger.debug("%s does not say what was said of %s: %s", leader, key.id, error)
            return {}

    # -- leadership ----------------------------------------------------------------

    def hand_over(self, to: str = "") -> str:
        """Has leadership handed to the member ``to``, or to whom the leader chooses. The new leader's id.

        Raises ``NotDone`` if nobody took over.
        """
        members = [member.id for member in self._settings.members]
        if to and to not in members:
            raise Invalid(f"to: Expected a member ({', '.join(members)}), got {to[:40]!r}", field="to")
        return self._taken(self._way.hand_over(to, self._deadline()))

    # -- renewals ------------------------------------------------------------------

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed]:
        """The leader's word on each heartbeat, in their order."""
        if self._draining:
            raise Draining(f"{self.node_id} is shutting down: use another node")
        deadline = self._deadline()
        parts = range(0, len(renewals), HEARTBEATS_AT_ONCE)
        return [
            answer
            for start in parts
            for answer in self._taken(self._way.renew(renewals[start : start + HEARTBEATS_AT_ONCE], deadline))
        ]

    def _renewal_round(self, asked: list[Sequence[Renewal]], deadline: float) -> Sequence[Sequence[Renewed | None]]:
        flat = [renewal for renewals in asked for renewal in renewals]

        def passed_on(answers: Sequence[Renewed | None]) -> None:
            done = (
                renewal.key for renewal, answer in zip(flat, answers, strict=False) if answer and answer.status == "ok"
            )
            self._heard.note(done, time.monotonic())

        answers = self._taken(
            self._way.renewal_round(flat, lambda: self._duties.renew(flat, self.node_id), deadline, passed_on)
        )
        split: list[Sequence[Renewed | None]] = []
        start = 0
        for renewals in asked:
            split.append(answers[start : start + len(renewals)])
            start += len(renewals)
        return split

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
        return self._taken(self._way.linearize(self._deadline()))

    def _barrier_round(self, asked: list[None], deadline: float) -> Sequence[int]:
        index = self._taken(self._way.read_index(self._writes.read_index, deadline))
        return [index] * len(asked)

    def read_index(self) -> Pending[Any]:
        """An index to read at, for a peer."""
        return self._writes.read_index()

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


def _role(member: str, status: LogStatus, reachable: bool) -> Role | Literal["unknown"]:
    if member == status.leader:
        return "leader"
    if member == status.node:
        return status.role
    return "follower" if reachable else "unknown"
