"""What only the leader does: keep the leases and evict whose time is up.

The lease table begins when this node serves a term (its own first entry is
applied) and is forgotten when the term ends; a new leader starts every lease at
full length, and goes on from how it stood as soon as the leader before tells
(``bequest.py``), if that one lives. One thread runs the sweeps; renewals come in on
other threads and share its lock. Elsewhere the same thread asks the leader, once a
second, whether evictions are held, so that every node can say so.

An eviction is proposed and not waited for: its leases stay marked until the
outcome is known, and renewals of a marked lease wait for that (``renew`` answers
None: ask again shortly).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from ...replication.checks import State
from ...replication.commands import (
    CHECKS_LEVEL,
    KEEP_LEVEL,
    Assign,
    Condemn,
    Evict,
    Expired,
    Judgement,
    Lift,
    Report,
    Result,
)
from ...replication.errors import NotDone, NotFound, NotLeader, RollcallError
from ...replication.log import Leadership, Log, LogStatus, Peers
from ...replication.proposal import Proposal
from ...replication.records import Event, Key, Override
from ..peers import BEQUEATH, LATER, PROTECTION, SETTLED, ask
from . import bequest
from .bequest import Bequest
from .check_clocks import Condition, Sharing, ttl_check
from .eviction import Pace, ProtectionView, allowed, by_service, choose, protection
from .leases import Leases
from .renewals import LeaseView, Renewal, Renewed

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""Between two looks at the clock, the quorum and the peers' contact."""

PAUSED_S = 1.0
"""A look that comes so much too late means that this process was paused."""

CONTACT_S = 1.0
"""A peer that was silent for so long is out of contact: what it took of renewals may be on the way.
Short beside what is left of the shortest lease after a renewal was due (2 s, renewed at a third)."""

VIEW_S = 1.0
"""How often the leader counts who is late, and the others ask it."""

BEQUEATH_S = 2.0
"""So long a leader that was replaced tries to tell its successor how the leases stood."""
TELL_S = 1.0
"""For one try, of which there is another only where it was certainly not heard, or too early: it may be large."""

SETTLE_LOOK_S = 0.005

RENEWED_AT_ONCE = 100
"""Heartbeats for which the lock is held; then others may have it."""

CHECKED_MAX = 500
"""Results, or instances condemned, in one command."""

LIFTED_MAX = 500
"""Overrides that end in one command. A key takes at most 2.4 KB."""


class DutySettings(Struct, frozen=True, kw_only=True):
    """Times in seconds, threshold a share."""

    protection_threshold: float = 0.85
    sweep_s_max: float = 60.0
    contact_s_max: float = 0.4
    """The leader renews only while it heard a quorum within this time."""


NOT_KNOWN = ProtectionView(active=False, leased=0, late=0, allowed_late=0, reason="the leader has not been asked yet")


def expired(overrides: Mapping[Key, Override], now_ns: int) -> tuple[Expired, ...]:
    """The overrides whose time is up at ``now_ns``, those first that ended first; at most ``LIFTED_MAX``."""
    ended = [(each.until, key) for key, each in overrides.items() if each.until is not None and each.until <= now_ns]
    return tuple(Expired(key, overrides[key].modify_index) for _, key in sorted(ended)[:LIFTED_MAX])


class _Tenure:
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


class Duties:
    """The leader's duties of one node; idle while another node leads.

    ``evicted`` is told how many instances an eviction of this node removed.
    """

    def __init__(
        self,
        log: Log,
        peers: Peers,
        settings: DutySettings,
        *,
        evicted: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._log: Log = log
        self._peers: Peers = peers
        self._settings: DutySettings = settings
        self._evicted: Callable[[int], None] = evicted
        self._tenure: _Tenure | None = None
        self._begun_term: int = 0
        """The newest term in which this node kept leases."""
        self._bequest: tuple[int, bytes, float] | None = None
        """What this node leaves to the leader of that term, and until when it tries to say so."""
        self._view: ProtectionView = NOT_KNOWN
        self._asked_at: float = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duties", daemon=True)
        log.listen(self._applied)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stops evicting at once, and joins the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    # -- for any thread ------------------------------------------------------------

    def settle(self, deadline: float) -> bool:
        """Waits until nobody need be told how leases stood. For a node that has handed over and is about to end.

        False if it was not so by ``deadline``.
        """
        while self._tenure is not None or self._bequest is not None:
            if time.monotonic() >= deadline or self._stop.wait(SETTLE_LOOK_S):
                return False
        return True

    def renew(self, renewals: Sequence[Renewal], via: str) -> list[Renewed | None]:
        """The word of the leader on each heartbeat; None: ask again shortly.

        Raises ``NotLeader`` if this node does not lead, or cannot be sure that
        it still does.
        """
        tenure = self._tenure
        if tenure is None:
            raise NotLeader(f"{self._log.node_id} keeps no leases now")
        leases = self._leases_of(tenure)
        renewed: list[Renewed | None] = []
        for start in range(0, len(renewals), RENEWED_AT_ONCE):
            with tenure.held():
                now = time.monotonic()
                for renewal in renewals[start : start + RENEWED_AT_ONCE]:
                    renewed.append(self._renew_one(leases, renewal, via, now))
        # Once more: this process may have been paused in between, and another leads by now.
        self._leases_of(tenure)
        return renewed

    def _leases_of(self, tenure: _Tenure) -> Leases:
        """The leases of ``tenure``, if this node leads and heard a quorum a moment ago."""
        status = self._log.status()
        if tenure.leases is None or not status.serving_term or status.term != tenure.term:
            raise NotLeader(f"{status.node} keeps no leases now")
        if (status.leader_contact_s or 0.0) > self._settings.contact_s_max:
            raise NotLeader(f"{status.node} has not heard a quorum for {status.leader_contact_s:.1f} s")
        return tenure.leases

    def report(self, key: Key, check: str, state: State, note: str = "") -> Proposal | None:
        """A service's own word on a check that nobody asks; None if the log says so already.

        Raises ``NotFound`` if there is no such check, ``NotLeader`` as ``renew`` does, and
        ``NotDone`` while a report of its silence is under way: that must not follow on a word
        that was acknowledged.
        """
        tenure = self._tenure
        if tenure is None:
            raise NotLeader(f"{self._log.node_id} keeps no leases now")
        self._leases_of(tenure)
        with tenure.held():
            if tenure.condition is not None:
                tenure.condition.heard(key, check, time.monotonic(), note)
            reported = tenure.proposed.get("silent")
            if (key, check) in tenure.silenced and (reported is None or not reported.done()):
                raise NotDone(f"that {key.id} was silent is being noted: say it again")
        # Looked up now: what was reported before is applied by now.
        instance = self._log.registry.instance(key)
        if instance is None or ttl_check(instance, check) is None:
            what = f"no instance {key.id!r}" if instance is None else f"no check {check!r} with ttl_s at {key.id!r}"
            raise NotFound(f"{what} of service {key.service!r} is registered in env {key.env!r}")
        if any(each.name == check and each.state == state for each in instance.check_states):
            return None
        result = Result(key, instance.reg_index, check, state)
        return self._log.propose(Report("", 0, (result,), tenure.term), time_ns=time.time_ns())

    def notes(self, key: Key) -> dict[str, str]:
        """What a service last said beside its own checks, where this node leads."""
        tenure = self._tenure
        if tenure is None or tenure.condition is None:
            return {}
        with tenure.held():
            return tenure.condition.notes(key)

    def lease(self, key: Key) -> LeaseView | None:
        """The lease as this node knows it: exact on the leader, elsewhere None."""
        tenure = self._tenure
        if tenure is None or tenure.leases is None:
            return None
        with tenure.held():
            state = tenure.leases.look(key, time.monotonic())
        if state is None:
            return None
        return LeaseView(state.ttl_s, int(state.renewed_ago_s * 1000), state.overdue)

    def protection(self) -> ProtectionView:
        """Whether evictions are held: this leader's own view, or what the leader last said."""
        tenure = self._tenure
        return tenure.view if tenure is not None else self._view

    # -- leases --------------------------------------------------------------------

    def _renew_one(self, leases: Leases, renewal: Renewal, via: str, now: float) -> Renewed | None:
        instance = self._log.registry.instance(renewal.key)
        if instance is None:
            return Renewed("unknown")
        if renewal.dirty_timestamp is not None and renewal.dirty_timestamp != instance.dirty_timestamp:
            return Renewed("ahead" if renewal.dirty_timestamp > instance.dirty_timestamp else "behind")
        if instance.ttl_s is None:
            return Renewed("ok")
        grant = leases.renew(renewal.key, via, now)
        if grant.answer == "evicting":
            return None
        if grant.answer == "none" or grant.interval_s is None:
            # Registered a moment ago: its lease begins with the event that follows.
            return Renewed("ok", instance.ttl_s, int(instance.ttl_s * 1000 / 3))
        # Spread by the key, not by chance, so that an instance keeps its own phase.
        jitter = 0.9 + 0.1 * (hash(renewal.key) % 1000) / 1000
        return Renewed("ok", grant.ttl_s, int(grant.interval_s * 1000 * jitter))

    def _applied(self, index: int, events: tuple[Event, ...]) -> None:
        tenure = self._tenure
        if tenure is None or not events:
            return
        at = time.monotonic()

        def hear(leases: Leases, condition: Condition) -> None:
            leases.applied(events, at)
            condition.applied(events, at)

        tenure.news.append(hear)

    # -- the thread ----------------------------------------------------------------

    def _run(self) -> None:
        leadership = self._log.leadership
        while not self._stop.is_set():
            try:
                self.step(leadership)
                leadership = self._log.wait_leadership(leadership, time.monotonic() + LOOK_S)
            except Exception:
                logger.exception("the leader's duties failed; trying again")
                self._tenure = None
                self._stop.wait(1.0)
                leadership = self._log.leadership
        self._tenure = None

    def step(self, leadership: Leadership) -> None:
        """What is due now under this leadership. Called when it changes, and every ``LOOK_S``."""
        tenure = self._tenure
        if tenure is not None and tenure.leadership == leadership:
            self._lead(tenure, time.monotonic())
            return
        if tenure is not None:
            # In this order: who waits for both to be gone (``settle``) must find one of them.
            self._bequest = self._left(tenure, time.monotonic())
            self._tenure = None
        if leadership.serving:
            self._begin(leadership)
        elif leadership.leader is not None and leadership.leader != self._log.node_id:
            self._bequeath(leadership)
            if time.monotonic() - self._asked_at > VIEW_S:
                self._asked_at = time.monotonic()
                self._ask(leadership.leader)

    def _ask(self, leader: str) -> None:
        try:
            self._view = ask(self._peers, leader, PROTECTION, None, time.monotonic() + VIEW_S)
        except RollcallError as error:
            logger.debug("could not ask %s whether evictions are held: %s", leader, error)

    # -- from one leader to the next (bequest.py) --------------------------------------

    def _left(self, tenure: _Tenure, now: float) -> tuple[int, bytes, float] | None:
        """What to leave of a term that has just ended: all leases, or nothing if any may have been held."""
        leases, could_listen = tenure.leases, now - tenure.looked_at <= LOOK_S + PAUSED_S
        understood = self._log.registry.level >= KEEP_LEVEL
        if leases is None or not could_listen or not understood or self._log.status().stores_nothing:
            return None
        with tenure.held():
            held = protection(*leases.count(now), self._settings.protection_threshold).active
            left = leases.left(now) if not held else None
            paces = tenure.pace.left(now), tenure.unheard_pace.left(now)
        data = bequest.to_bytes(Bequest(tenure.term, left, *paces)) if left else None
        return (tenure.term + 1, data, now + BEQUEATH_S) if data is not None else None

    def _bequeath(self, leadership: Leadership) -> None:
        """Tells the leader of the next term, if there is one; of a later one it is true no more."""
        if self._bequest is None or leadership.leader is None:
            return
        term, data, until = self._bequest
        now = time.monotonic()
        again = leadership.term <= term and now <= until
        if again and leadership.term == term:
            again = self._tell(leadership.leader, data, min(until, now + TELL_S))
        if not again:
            self._bequest = None

    def _tell(self, leader: str, data: bytes, deadline: float) -> bool:
        """Says it once. Whether to say it again: not where the leader may have heard it, or may yet."""
        try:
            answer = ask(self._peers, leader, BEQUEATH, data, deadline)
        except RollcallError as error:
            logger.debug("could not tell %s how leases stood: %s", leader, error)
            return isinstance(error, NotDone)
        return answer == LATER

    def take_over(self, data: bytes) -> bytes:
        """The leader before says how its leases stood. Answers whether it need not say so again."""
        tenure = self._tenure
        if tenure is None or tenure.leases is None:
            # Nothing is read for a table that is not there; who asks learns from the log whether it ever will be.
            return LATER
        told = bequest.from_bytes(data)
        with tenure.held():
            if tenure.may_take_over and told.falls_to(tenure.term):
                tenure.may_take_over = False
                now = time.monotonic()
                tenure.leases.take_over(told.leases, now)
                tenure.pace.take_over(told.evicted, now)
                tenure.unheard_pace.take_over(told.unheard_evicted, now)
                logger.info("%d leases go on as they stood in term %d", len(told.leases), told.term)
        return SETTLED

    # -- the leader's own -----------------------------------------------------------

    def _begin(self, leadership: Leadership) -> None:
        tenure = _Tenure(leadership, time.monotonic())
        # A tenure that failed and begins again has forgotten what it renewed since the leader before.
        tenure.may_take_over = leadership.term > self._begun_term
        self._begun_term, self._bequest = leadership.term, None
        # Events from here on are kept in order, so the table below may miss none:
        # what it holds already is skipped by its registration's index.
        self._tenure = tenure
        leases = Leases(
            self._log.registry.leased(),
            time.monotonic(),
            sweep_s_max=self._settings.sweep_s_max,
            # A leader that was cut off answers heartbeats for as long as it may think that it leads.
            former_s=self._settings.contact_s_max,
        )
        checked = (i for view in self._log.registry.services() for i in view.instances if i.checks)
        # As leases do: the leader before may have taken a service's word for so long.
        condition = Condition(checked, time.monotonic() + self._settings.contact_s_max)
        tenure.sharing = Sharing(self._log.registry.assignment.nodes)
        with tenure.lock:
            tenure.leases, tenure.condition = leases, condition
        logger.info("keeping %d leases in term %d", len(leases), tenure.term)

    def _lead(self, tenure: _Tenure, now: float) -> None:
        """Looks whether this node can hear, counts who is late, and evicts whose time is up."""
        leases = tenure.leases
        if leases is None:
            return
        status = self._log.status()
        with tenure.held():
            deaf = self._look(leases, status, now, paused=now - tenure.looked_at > LOOK_S + PAUSED_S)
            if deaf and tenure.condition is not None:
                tenure.condition.disturbed(now)
        tenure.looked_at = now
        if self._log.registry.level >= CHECKS_LEVEL:
            self._share(tenure, status, now)
        if now - tenure.viewed_at > VIEW_S:
            self._view_now(tenure, leases, now)
            self._judge_checks(tenure, now)
            self._lift_overrides(tenure)
            tenure.viewed_at = now
        if now - tenure.swept_at > leases.sweep_interval_s():
            self._sweep(tenure, leases, now)
            tenure.swept_at = now

    def _look(self, leases: Leases, status: LogStatus, now: float, *, paused: bool) -> bool:
        """Whether this node could not listen; and which nodes are in contact (design section 4)."""
        deaf = paused or (status.leader_contact_s or 0.0) > self._settings.contact_s_max
        if deaf:
            leases.disturbed(now)
        else:
            leases.recovered(now)
        for peer in status.peers:
            if peer.reachable and (peer.contact_s or 0.0) < CONTACT_S:
                leases.back(peer.id, now)
            else:
                leases.lost(peer.id, now, down=peer.down)
        return deaf

    # -- health checks -------------------------------------------------------------

    def _share(self, tenure: _Tenure, status: LogStatus, now: float) -> None:
        """Has the checks shared by the nodes that are in contact."""
        if tenure.sharing is None:
            return
        reached = {peer.id for peer in status.peers if peer.reachable and (peer.contact_s or 0.0) < CONTACT_S}
        members = [status.node, *(peer.id for peer in status.peers)]
        wanted = tenure.sharing.wanted(members, {status.node, *reached}, now)
        if wanted and wanted != self._log.registry.assignment.nodes and self._may_propose(tenure, "assign"):
            logger.info("health checks are shared by %s", ", ".join(wanted))
            tenure.proposed["assign"] = self._log.propose(Assign(wanted, tenure.term), time_ns=time.time_ns())

    def _judge_checks(self, tenure: _Tenure, now: float) -> None:
        """Services that have not spoken, and instances that were critical for longer than they may."""
        condition = tenure.condition
        if condition is None:
            return
        with tenure.held():
            silent = condition.silent(now)[:CHECKED_MAX] if self._may_propose(tenure, "silent") else []
            if silent:
                # From here on, and not only when it is proposed, a word on one of them has to wait.
                tenure.silenced = frozenset((result.key, result.check) for result in silent)
                tenure.proposed.pop("silent", None)
            # As many in a minute as evictions may be, of those that have such checks.
            room = min(CHECKED_MAX, tenure.condemned.room(allowed(len(condition)), now))
            overdue = condition.overdue(now)[:room] if self._may_propose(tenure, "condemn") else []
            tenure.condemned.evicted(len(overdue), now)
        if silent:
            command = Report("", 0, tuple(silent), tenure.term)
            tenure.proposed["silent"] = self._log.propose(command, time_ns=time.time_ns())
        if overdue:
            for judged in overdue:
                logger.info("removing %s: its check %s has failed for too long", judged.key.id, judged.check)
            command = Condemn(tuple(overdue), tenure.term)
            tenure.proposed["condemn"] = self._log.propose(command, time_ns=time.time_ns())

    def _lift_overrides(self, tenure: _Tenure) -> None:
        """Ends the overrides that were given a time, when it has passed."""
        registry = self._log.registry
        if registry.level < KEEP_LEVEL or not self._may_propose(tenure, "lift"):
            return
        # The log's own time may be ahead of this clock: then it is what the override's end was counted from.
        ended = expired(registry.overrides, max(time.time_ns(), registry.last_time_ns))
        if ended:
            for each in ended:
                logger.info("the override of %s/%s/%s has ended", each.key.env, each.key.service, each.key.id)
            tenure.proposed["lift"] = self._log.propose(Lift(ended, tenure.term), time_ns=time.time_ns())

    def _may_propose(self, tenure: _Tenure, kind: str) -> bool:
        before = tenure.proposed.get(kind)
        return before is None or before.done()

    # -- evictions -----------------------------------------------------------------

    def _view_now(self, tenure: _Tenure, leases: Leases, now: float) -> None:
        """Counts who is late, and says so when that starts or stops holding evictions."""
        with tenure.held():
            counted, late = leases.count(now)
            never_renewed = len(leases) - counted
            view = protection(counted, late, self._settings.protection_threshold, never_renewed=never_renewed)
            if view.active:
                held = [judged.key for judged in leases.overdue(now).judged]
                view = msgspec.structs.replace(
                    view, held=len(held), held_of=by_service(held), late_of=by_service(leases.late(now))
                )
        if view.active != tenure.view.active:
            whose = ", ".join(f"{each.instances} of {each.env}/{each.service}" for each in view.late_of)
            logger.warning(
                "self-protection %s: %s%s",
                "holds evictions" if view.active else "ended",
                view.reason,
                f". Late are {whose}" if whose else "",
            )
        tenure.view = view

    def _sweep(self, tenure: _Tenure, leases: Leases, now: float) -> None:
        """Proposes the evictions that are due, within what protection and pace allow."""
        self._view_now(tenure, leases, now)
        view = tenure.view
        with tenure.held():
            found = leases.overdue(now)
            room = tenure.pace.room(view.allowed_late, now)
            unheard_room = tenure.unheard_pace.room(allowed(view.leased), now)
            groups = choose(found, view, room=room, unheard_room=unheard_room, seed=time.time_ns())
            unheard = set(found.unheard)
            for judged in groups:
                leases.mark_evicting(judged)
                of_unheard = sum(each in unheard for each in judged)
                tenure.unheard_pace.evicted(of_unheard, now)
                tenure.pace.evicted(len(judged) - of_unheard, now)
        for judged in groups:
            self._evict(tenure, leases, judged)

    def _evict(self, tenure: _Tenure, leases: Leases, judged: tuple[Judgement, ...]) -> None:
        def settled(_: object) -> None:
            removed = proposal.outcome.kinds.count("evicted") if proposal.outcome is not None else 0
            if removed:
                self._evicted(removed)
                logger.info(
                    "evicted %d instances at index %d", removed, proposal.outcome.index if proposal.outcome else 0
                )
            tenure.news.append(lambda leases, condition: self._evicted_or_not(leases, judged))

        for judgement in judged:
            logger.info(
                "evicting %s/%s/%s (registered at index %d): its lease ran out",
                judgement.key.env,
                judgement.key.service,
                judgement.key.id,
                judgement.reg_index,
            )
        proposal = self._log.propose(Evict(judged, tenure.term), time_ns=time.time_ns())
        proposal.add_done_callback(settled)

    def _evicted_or_not(self, leases: Leases, judged: tuple[Judgement, ...]) -> None:
        leases.unmark_evicting(judged)
        for judgement in judged:
            # Void for one: there is a registration that this table missed.
            instance = self._log.registry.instance(judgement.key)
            if instance is not None and instance.reg_index != judgement.reg_index:
                leases.registered(instance, time.monotonic())
