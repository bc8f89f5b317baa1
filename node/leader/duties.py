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
from collections.abc import Callable, Sequence

from msgspec import Struct

from ...replication.checks import State
from ...replication.commands import (
    CHECKS_LEVEL,
    KEEP_LEVEL,
    Report,
    Result,
)
from ...replication.errors import NotDone, NotFound, NotLeader, RollcallError
from ...replication.log import Leadership, Log, LogStatus, Peers
from ...replication.proposal import Proposal
from ...replication.records import Event, Key
from ..peers import BEQUEATH, LATER, PROTECTION, SETTLED, ask
from . import bequest
from .bequest import Bequest
from .check_clocks import Condition, Sharing, ttl_check
from .eviction import ProtectionView, protection
from .evictions import Evictions
from .judging import CONTACT_S, Judging
from .leases import Leases
from .renewals import LeaseView, Renewal, Renewed, phase
from .term import NOT_KNOWN, LeaderTerm

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""Between two looks at the clock, the quorum and the peers' contact."""

PAUSED_S = 1.0
"""A look that comes so much too late means that this process was paused."""

VIEW_S = 1.0
"""How often the leader counts who is late, and the others ask it."""

BEQUEATH_S = 2.0
"""So long a leader that was replaced tries to tell its successor how the leases stood."""
TELL_S = 1.0
"""For one try, of which there is another only where it was certainly not heard, or too early: it may be large."""

SETTLE_LOOK_S = 0.005

RENEWED_AT_ONCE = 100
"""Heartbeats for which the lock is held; then others may have it."""


class DutySettings(Struct, frozen=True, kw_only=True):
    """Times in seconds, threshold a share."""

    protection_threshold: float = 0.85
    sweep_s_max: float = 60.0
    contact_s_max: float = 0.4
    """The leader renews only while it heard a quorum within this time."""


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
        self._evictions: Evictions = Evictions(log, settings.protection_threshold, evicted)
        self._judging: Judging = Judging(log)
        self._term: LeaderTerm | None = None
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
        while self._term is not None or self._bequest is not None:
            if time.monotonic() >= deadline or self._stop.wait(SETTLE_LOOK_S):
                return False
        return True

    def renew(self, renewals: Sequence[Renewal], via: str) -> list[Renewed | None]:
        """The word of the leader on each heartbeat; None: ask again shortly.

        Raises ``NotLeader`` if this node does not lead, or cannot be sure that
        it still does.
        """
        term = self._term
        if term is None:
            raise NotLeader(f"{self._log.node_id} keeps no leases now")
        leases = self._leases_of(term)
        renewed: list[Renewed | None] = []
        for start in range(0, len(renewals), RENEWED_AT_ONCE):
            with term.held():
                now = time.monotonic()
                for renewal in renewals[start : start + RENEWED_AT_ONCE]:
                    renewed.append(self._renew_one(leases, renewal, via, now))
        # Once more: this process may have been paused in between, and another leads by now.
        self._leases_of(term)
        return renewed

    def _leases_of(self, term: LeaderTerm) -> Leases:
        """The leases of ``term``, if this node leads and heard a quorum a moment ago."""
        status = self._log.status()
        if term.leases is None or not status.serving_term or status.term != term.term:
            raise NotLeader(f"{status.node} keeps no leases now")
        if (status.leader_contact_s or 0.0) > self._settings.contact_s_max:
            raise NotLeader(f"{status.node} has not heard a quorum for {status.leader_contact_s:.1f} s")
        return term.leases

    def report(self, key: Key, check: str, state: State, note: str = "") -> Proposal | None:
        """A service's own word on a check that nobody asks; None if the log says so already.

        Raises ``NotFound`` if there is no such check, ``NotLeader`` as ``renew`` does, and
        ``NotDone`` while a report of its silence is under way: that must not follow on a word
        that was acknowledged.
        """
        term = self._term
        if term is None:
            raise NotLeader(f"{self._log.node_id} keeps no leases now")
        self._leases_of(term)
        with term.held():
            if term.condition is not None:
                term.condition.heard(key, check, time.monotonic(), note)
            reported = term.proposed.get("silent")
            if (key, check) in term.silenced and (reported is None or not reported.done()):
                raise NotDone(f"that {key.id} was silent is being noted: say it again")
        # Looked up now: what was reported before is applied by now.
        instance = self._log.registry.instance(key)
        if instance is None or ttl_check(instance, check) is None:
            what = f"no instance {key.id!r}" if instance is None else f"no check {check!r} with ttl_s at {key.id!r}"
            raise NotFound(f"{what} of service {key.service!r} is registered in env {key.env!r}")
        if any(each.name == check and each.state == state for each in instance.check_states):
            return None
        result = Result(key, instance.reg_index, check, state)
        return self._log.propose(Report("", 0, (result,), term.term), time_ns=time.time_ns())

    def notes(self, key: Key) -> dict[str, str]:
        """What a service last said beside its own checks, where this node leads."""
        term = self._term
        if term is None or term.condition is None:
            return {}
        with term.held():
            return term.condition.notes(key)

    def lease(self, key: Key) -> LeaseView | None:
        """The lease as this node knows it: exact on the leader, elsewhere None."""
        term = self._term
        if term is None or term.leases is None:
            return None
        with term.held():
            state = term.leases.look(key, time.monotonic())
        if state is None:
            return None
        return LeaseView(state.ttl_s, int(state.renewed_ago_s * 1000), state.overdue)

    def protection(self) -> ProtectionView:
        """Whether evictions are held: this leader's own view, or what the leader last said."""
        term = self._term
        return term.view if term is not None else self._view

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
        jitter = 0.9 + 0.1 * phase(renewal.key)
        return Renewed("ok", grant.ttl_s, int(grant.interval_s * 1000 * jitter))

    def _applied(self, index: int, events: tuple[Event, ...]) -> None:
        term = self._term
        if term is None or not events:
            return
        term.hear(events, time.monotonic())

    # -- the thread ----------------------------------------------------------------

    def _run(self) -> None:
        leadership = self._log.leadership
        while not self._stop.is_set():
            try:
                self.step(leadership)
                leadership = self._log.wait_leadership(leadership, time.monotonic() + LOOK_S)
            except Exception:
                logger.exception("the leader's duties failed; trying again")
                self._term = None
                self._stop.wait(1.0)
                leadership = self._log.leadership
        self._term = None

    def step(self, leadership: Leadership) -> None:
        """What is due now under this leadership. Called when it changes, and every ``LOOK_S``."""
        term = self._term
        if term is not None and term.leadership == leadership:
            self._lead(term, time.monotonic())
            return
        if term is not None:
            # In this order: who waits for both to be gone (``settle``) must find one of them.
            self._bequest = self._left(term, time.monotonic())
            self._term = None
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

    def _left(self, term: LeaderTerm, now: float) -> tuple[int, bytes, float] | None:
        """What to leave of a term that has just ended: all leases, or nothing if any may have been held."""
        leases, could_listen = term.leases, now - term.looked_at <= LOOK_S + PAUSED_S
        understood = self._log.registry.level >= KEEP_LEVEL
        if leases is None or not could_listen or not understood or self._log.status().stores_nothing:
            return None
        with term.held():
            held = protection(*leases.count(now), self._settings.protection_threshold).active
            left = leases.left(now) if not held else None
            paces = term.pace.left(now), term.unheard_pace.left(now)
        data = bequest.to_bytes(Bequest(term.term, left, *paces)) if left else None
        return (term.term + 1, data, now + BEQUEATH_S) if data is not None else None

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
        term = self._term
        if term is None or term.leases is None:
            # Nothing is read for a table that is not there; who asks learns from the log whether it ever will be.
            return LATER
        told = bequest.from_bytes(data)
        with term.held():
            if term.may_take_over and told.falls_to(term.term):
                term.may_take_over = False
                now = time.monotonic()
                term.leases.take_over(told.leases, now)
                term.pace.take_over(told.evicted, now)
                term.unheard_pace.take_over(told.unheard_evicted, now)
                logger.info("%d leases go on as they stood in term %d", len(told.leases), told.term)
        return SETTLED

    # -- the leader's own -----------------------------------------------------------

    def _begin(self, leadership: Leadership) -> None:
        term = LeaderTerm(leadership, time.monotonic())
        # A term that failed and begins again has forgotten what it renewed since the leader before.
        term.may_take_over = leadership.term > self._begun_term
        self._begun_term, self._bequest = leadership.term, None
        # Events from here on are kept in order, so the table below may miss none:
        # what it holds already is skipped by its registration's index.
        self._term = term
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
        term.sharing = Sharing(self._log.registry.assignment.nodes)
        with term.lock:
            term.leases, term.condition = leases, condition
        logger.info("keeping %d leases in term %d", len(leases), term.term)

    def _lead(self, term: LeaderTerm, now: float) -> None:
        """Looks whether this node can hear, counts who is late, and evicts whose time is up."""
        leases = term.leases
        if leases is None:
            return
        status = self._log.status()
        with term.held():
            deaf = self._look(leases, status, now, paused=now - term.looked_at > LOOK_S + PAUSED_S)
            if deaf and term.condition is not None:
                term.condition.disturbed(now)
        term.looked_at = now
        if self._log.registry.level >= CHECKS_LEVEL:
            self._judging.share(term, status, now)
        if now - term.viewed_at > VIEW_S:
            self._evictions.count(term, leases, now)
            self._judging.judge(term, now)
            self._judging.lift(term)
            term.viewed_at = now
        if now - term.swept_at > leases.sweep_interval_s():
            self._evictions.sweep(term, leases, now)
            term.swept_at = now

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
