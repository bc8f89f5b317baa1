"""Leases: who has been heard from, and whose time is up. Kept by the leader, in memory only.

A table begins with a term of leadership and is thrown away with it: every
lease starts afresh at full length, until the leader before says how it stood
(``bequest.py``). It is pure: ``now`` is seconds of a
monotonic clock and comes in with each call; the caller has the lock.

A lease is overdue when it is silent for its length and that can only be its
own fault. These lengthen it, and each by itself only as far as one more full
length (``_due``):

- the leader could not listen (no quorum, paused, renewals shed): nothing is
  overdue meanwhile, and everything has a full length from the end of it;
- the node through which it was last renewed is out of contact: not overdue
  meanwhile, and a full length from its return;
- that node's process is known to be gone (its host refused the connection):
  a full length from the loss, since its clients know to go elsewhere; and from
  its return, if that comes before, and under the same leader.

A lease that was never heard of again since it was registered, neither renewed nor
registered anew, says nothing about the network: self-protection leaves it out. Of what a
new leader finds registered it is not known, so all of that counts, unless the leader before tells.

Silence is counted in time during which the leader could listen. Past the
ceiling (an hour, or the length of the lease if that is more) nothing but the
leader's own deafness helps, not even self-protection.

There is no heap of deadlines. Self-protection has to look at every lease on
every sweep anyway (7 ms for 100 000), finding those past their deadline costs
as much again, and a heap cost ten times that whenever all of them came due
together, as they do one length after an election.
"""

import math
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from ...replication.commands import Judgement
from ...replication.records import Event, Instance, Key
from .bequest import LEASES_MAX, Left, allowance_s

INTERVALS_PER_LEASE = 3
"""A client is asked to renew three times per lease: 30 s for 90 s."""

LATE_INTERVALS = 1.5
"""Silent for this many of its own intervals, a lease is late (self-protection counts them)."""

CEILING_S = 3600.0
SWEEP_S_MIN = 0.2
SWEEP_S_MAX = 60.0
SWEEP_SHARE = 0.1
"""A sweep runs every tenth of the shortest lease, between these limits."""

Answer = Literal["renewed", "evicting", "none"]


class Grant(Struct, frozen=True, gc=False):
    """The answer to a renewal.

    ``renewed``: a full length from now; come back within ``interval_s``.
    ``evicting``: an eviction is under way; ask again when its outcome is known.
    ``none``: there is no lease of that name here.
    """

    answer: Answer
    ttl_s: float | None = None
    interval_s: float | None = None


class LeaseState(Struct, frozen=True, gc=False):
    """One lease, for whoever asks."""

    ttl_s: float
    renewed_ago_s: float
    overdue: bool


class Overdue(Struct, frozen=True):
    """Whom a sweep found. ``forced`` are among ``judged``: silent past the ceiling. So are ``unheard``, who were
    never heard of since they registered."""

    judged: tuple[Judgement, ...]
    forced: tuple[Judgement, ...]
    unheard: tuple[Judgement, ...] = ()


_NONE = Grant("none")
_EVICTING = Grant("evicting")


class _Lease(Struct, gc=False):
    """``gc=False``: it can be in no cycle, and a collection need not look at a hundred thousand of them."""

    judgement: Judgement
    ttl_s: float
    via: str | None
    renewed_at: float
    runs_out_at: float
    """If nothing lengthens it."""
    heard: float
    """When it was last heard, on the clock that stands still while the leader is deaf."""
    evicting: bool = False
    heard_again: bool = False
    """Whether it was heard of since it was registered, or may have been."""
    assumed: bool = False
    """Whether its length is all that is known of it: the table began with it, and it was not heard of since."""


class _Contact:
    """A node's contact with the leader: since when it is lost, or when it was last found again."""

    __slots__ = ("back_at", "down", "lost_at")

    def __init__(self) -> None:
        self.lost_at: float | None = None
        self.down: bool = False
        self.back_at: float = -math.inf


class Leases:
    """The lease of every instance that has one, under one leader.

    Feed it every applied event (``applied``), every renewal, and what is known
    of the nodes' contact; ask it on every sweep who is ``overdue``. ``former_s``:
    this long after ``now`` the leader before may have gone on renewing, which is
    not known here: all of ``instances`` have their full length from then on.
    """

    def __init__(
        self,
        instances: Iterable[Instance],
        now: float,
        *,
        ceiling_s: float = CEILING_S,
        intervals_per_lease: float = INTERVALS_PER_LEASE,
        late_intervals: float = LATE_INTERVALS,
        sweep_s_max: float = SWEEP_S_MAX,
        former_s: float = 0.0,
    ) -> None:
        self._ceiling_s = ceiling_s
        self._intervals_per_lease = intervals_per_lease
        self._late_intervals = late_intervals
        self._sweep_s_max = sweep_s_max
        self._leases: dict[Key, _Lease] = {}
        # How many leases there are of each length.
        self._lengths: dict[float, int] = {}
        self._contacts: dict[str, _Contact] = {}
        self._deaf_since: float | None = None
        self._deaf_s: float = 0.0
        self._was_deaf: bool = False
        self._heard_again_at: float = now + former_s
        for instance in instances:
            self.registered(instance, now)
        for lease in self._leases.values():
            lease.heard_again = lease.assumed = True

    def __len__(self) -> int:
        return len(self._leases)

    # -- what happens to leases

    def applied(self, events: Iterable[Event], now: float) -> None:
        """Follows the registry: registrations begin a lease, removals end it."""
        for event in events:
            if event.kind in ("REGISTER", "UPDATE"):
                self.registered(event.instance, now)
            elif event.kind in ("DEREGISTER", "EVICT"):
                self.removed(event.instance)

    def registered(self, instance: Instance, now: float, via: str | None = None) -> None:
        """Begins the lease of a registration, in place of the one before it.

        Call it also for a registration that the registry kept an older record
        for (``kept``): it has a new ``reg_index`` and made no event.
        """
        key = instance.key
        before = self._leases.get(key)
        if before is not None:
            if before.judgement.reg_index > instance.reg_index:
                return
            via = via or before.via
            self._forget(before)
        if instance.ttl_s is None:
            return
        judgement = Judgement(key, instance.reg_index)
        lease = _Lease(judgement, instance.ttl_s, via, now, now + instance.ttl_s, self._clock(now))
        if before is not None:
            lease.heard_again = before.heard_again or before.judgement.reg_index < instance.reg_index
        self._leases[key] = lease
        self._lengths[instance.ttl_s] = self._lengths.get(instance.ttl_s, 0) + 1

    def removed(self, instance: Instance) -> None:
        """Ends the lease, unless a later registration has begun a new one."""
        lease = self._leases.get(instance.key)
        if lease is not None and lease.judgement.reg_index <= instance.reg_index:
            self._forget(lease)

    def renew(self, key: Key, via: str, now: float) -> Grant:
        """Renews a lease; ``via`` is the node that the client spoke to."""
        lease = self._leases.get(key)
        if lease is None:
            return _NONE
        if lease.evicting:
            return _EVICTING
        lease.via = via
        lease.heard_again = True
        lease.assumed = False
        lease.renewed_at = now
        lease.runs_out_at = now + lease.ttl_s
        lease.heard = self._clock(now)
        return Grant("renewed", lease.ttl_s, lease.ttl_s / self._intervals_per_lease)

    def left(self, now: float) -> tuple[Left, ...] | None:
        """How all leases stand, for the next leader; from here on this table must acknowledge nothing any more.

        None if any is held because of a node, while the leader is deaf, or if there are too many.
        """
        if self._deaf_since is not None or len(self._leases) > LEASES_MAX:
            return None
        clock, left = self._clock(now), list[Left]()
        for lease in self._leases.values():
            due = self._due(lease)
            if due == math.inf:
                return None
            silent_ms, left_ms = int(max(0.0, clock - lease.heard) * 1000), math.ceil(max(0.0, due - now) * 1000)
            key, reg_index = lease.judgement.key, lease.judgement.reg_index
            name = (key.env, key.service, key.id)
            contact = self._contacts.get(lease.via) if lease.via is not None else None
            # Of a node that is down all is in ``due``; the next leader would count from when it finds it down itself.
            via = lease.via if contact is None or contact.lost_at is None else None
            left.append(Left(name, reg_index, silent_ms, left_ms, lease.heard_again, via))
        return tuple(left)

    def take_over(self, left: Iterable[Left], now: float) -> None:
        """Goes on from how the leases stood with the leader before, which acknowledges nothing any more.

        Lengthens none, and leaves alone what was heard of or registered since this table began. Without effect
        once this leader was deaf: what it did not hear meanwhile it must not count.
        """
        if self._was_deaf:
            return
        for lease in self._leases.values():
            lease.runs_out_at = max(lease.runs_out_at, self._heard_again_at + lease.ttl_s)
        self._heard_again_at = -math.inf
        for each in left:
            lease = self._leases.get(Key(*each.name))
            if lease is None or not lease.assumed or lease.judgement.reg_index != each.reg_index:
                continue
            silent_s = each.silent_ms / 1000
            lease.runs_out_at = min(lease.runs_out_at, now + allowance_s(lease.ttl_s, each.left_ms / 1000, silent_s))
            lease.heard = min(lease.heard, now - silent_s)
            lease.renewed_at = min(lease.renewed_at, now - silent_s)
            lease.heard_again, lease.via, lease.assumed = each.heard_again, each.via, False

    def mark_evicting(self, judged: Iterable[Judgement]) -> None:
        """An eviction of these is about to be proposed: renewals must wait for its outcome."""
        self._mark(judged, True)

    def unmark_evicting(self, judged: Iterable[Judgement]) -> None:
        """The outcome is known. What was evicted has left the table by its event; an
        eviction that was void means that the registry holds a registration which this
        table does not know: feed it to ``registered``."""
        self._mark(judged, False)

    def _mark(self, judged: Iterable[Judgement], evicting: bool) -> None:
        for judgement in judged:
            lease = self._leases.get(judgement.key)
            if lease is not None and lease.judgement == judgement:
                lease.evicting = evicting

    # -- what happens to nodes

    def lost(self, node: str, now: float, *, down: bool = False) -> None:
        """``node`` is out of contact (``down``: its process is gone). Say so as often as you like."""
        contact = self._contacts.setdefault(node, _Contact())
        if contact.lost_at is None:
            contact.lost_at = now
        # Once known to be gone it stays so until it is back: its host may fall silent after that.
        contact.down = contact.down or down

    def back(self, node: str, now: float) -> None:
        """``node`` is in contact. Say so as often as you like."""
        contact = self._contacts.get(node)
        if contact is not None and contact.lost_at is not None:
            contact.lost_at, contact.down, contact.back_at = None, False, now

    def disturbed(self, now: float) -> None:
        """The leader cannot hear renewals, or not all of them, from ``now`` on."""
        if self._deaf_since is None:
            self._deaf_since, self._was_deaf = now, True

    def recovered(self, now: float) -> None:
        """The leader hears again."""
        if self._deaf_since is not None:
            self._deaf_s += now - self._deaf_since
            self._deaf_since = None
            self._heard_again_at = max(self._heard_again_at, now)

    # -- what a sweep asks

    def overdue(self, now: float) -> Overdue:
        """Those whose time is up and whose eviction is not under way already."""
        if self._deaf_since is not None:
            return Overdue((), ())
        run_out = [lease for lease in self._leases.values() if lease.runs_out_at <= now and not lease.evicting]
        forced = [lease for lease in run_out if self._past_ceiling(lease, now)]
        judged = [lease for lease in run_out if self._due(lease) <= now or self._past_ceiling(lease, now)]
        return Overdue(
            tuple(lease.judgement for lease in judged),
            tuple(lease.judgement for lease in forced),
            tuple(lease.judgement for lease in judged if not lease.heard_again),
        )

    def count(self, now: float) -> tuple[int, int]:
        """The leases that count for self-protection (see above), and how many of them are late: silent for longer
        than it allows."""
        heard = [lease for lease in self._leases.values() if lease.heard_again]
        return len(heard), len(self._late(heard, now))

    def late(self, now: float) -> list[Key]:
        """Those who are late, of the leases that count."""
        return [lease.judgement.key for lease in self._late(self._leases.values(), now) if lease.heard_again]

    def _late(self, leases: Iterable[_Lease], now: float) -> list[_Lease]:
        clock = self._clock(now)
        share = self._late_intervals / self._intervals_per_lease
        return [lease for lease in leases if clock - lease.heard > lease.ttl_s * share]

    def sweep_interval_s(self) -> float:
        """How long until the next sweep: a tenth of the shortest lease, within limits."""
        shortest = min(self._lengths, default=math.inf)
        return max(SWEEP_S_MIN, min(self._sweep_s_max, shortest * SWEEP_SHARE))

    def look(self, key: Key, now: float) -> LeaseState | None:
        """The lease of that key, None if it has none."""
        lease = self._leases.get(key)
        if lease is None:
            return None
        overdue = self._deaf_since is None and (self._due(lease) <= now or self._past_ceiling(lease, now))
        return LeaseState(lease.ttl_s, now - lease.renewed_at, overdue)

    # -- how

    def _due(self, lease: _Lease) -> float:
        """When the lease is overdue, as things stand; infinite while it is held."""
        due = max(lease.runs_out_at, self._heard_again_at + lease.ttl_s)
        contact = self._contacts.get(lease.via) if lease.via is not None else None
        if contact is None:
            return due
        due = max(due, contact.back_at + lease.ttl_s)
        if contact.lost_at is None:
            return due
        return max(due, contact.lost_at + lease.ttl_s) if contact.down else math.inf

    def _past_ceiling(self, lease: _Lease, now: float) -> bool:
        return self._clock(now) - lease.heard >= max(self._ceiling_s, lease.ttl_s)

    def _clock(self, now: float) -> float:
        """The time that passed while the leader could listen."""
        return (now if self._deaf_since is None else min(now, self._deaf_since)) - self._deaf_s

    def _forget(self, lease: _Lease) -> None:
        del self._leases[lease.judgement.key]
        left = self._lengths[lease.ttl_s] - 1
        if left:
            self._lengths[lease.ttl_s] = left
        else:
            del self._lengths[lease.ttl_s]
