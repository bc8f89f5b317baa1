"""Whom to evict, and when not to: self-protection, the pace, the order. Pure.

When many leases are late at once, the fault is more likely the network's than
theirs: nobody is evicted then (the 85 % rule). And at most 15 % go in any
minute, in random order, so that no service is emptied first while the rest
might still come back.

Both are counted over the whole registry, of those that were heard of since they
registered: who never was is neither late nor one of the 85 %, and
has a pace of its own (15 % of all leases a minute), which takes nothing of the others'.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from fractions import Fraction

from msgspec import Struct

from ...replication.commands import Judgement
from ...replication.records import Key
from .bequest import Evicted
from .leases import Overdue

THRESHOLD = 0.85
"""The share of leases that must be renewed in time for evictions to go on."""

PACE_S = 60.0
"""The window in which no more than the allowed number is evicted."""

JUDGED_MAX = 500
"""Evictions in one command. A key takes at most 2.4 KB, so that is under its 2 MiB."""


class ServiceCount(Struct, frozen=True):
    """How many instances of a service."""

    env: str
    service: str
    instances: int


class ProtectionView(Struct, frozen=True):
    """Whether evictions are held, and why, in a sentence for an operator.

    ``leased`` counts all leases, ``never_renewed`` those among them that do not count: they were not heard
    of since they registered. ``held``: whose time is up and that are kept all the same. ``held_of`` and
    ``late_of``: whose instances these are, and whose the late ones that hold them; the services with most.
    """

    active: bool
    leased: int
    late: int
    allowed_late: int
    reason: str
    never_renewed: int = 0
    held: int = 0
    held_of: tuple[ServiceCount, ...] = ()
    late_of: tuple[ServiceCount, ...] = ()


SHOWN_MAX = 10
"""Services named of those that are held, or late."""


def by_service(keys: Iterable[Key]) -> tuple[ServiceCount, ...]:
    """How many of ``keys`` each service has, for those that have most."""
    counts = Counter((key.env, key.service) for key in keys)
    most = sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))[:SHOWN_MAX]
    return tuple(ServiceCount(env, service, count) for (env, service), count in most)


def allowed(leased: int, threshold: float = THRESHOLD) -> int:
    """How many of ``n`` may be late, or be evicted within ``PACE_S``: ``n - int(0.85 * n)``.

    At least one of any number, so that one death among few is never a catastrophe.
    """
    # In whole numbers: a product of floats may fall just short of one.
    return leased - int(leased * Fraction(str(threshold)))


def protection(leased: int, late: int, threshold: float = THRESHOLD, *, never_renewed: int = 0) -> ProtectionView:
    """Whether this many late ones among the leased hold evictions. ``never_renewed`` do not count."""
    limit = allowed(leased, threshold)
    active = late > limit
    if active:
        reason = (
            f"{late} of {leased} leased instances are late with their heartbeats and only {limit} may be: nobody is "
            "evicted until heartbeats return or the missing instances are deregistered"
        )
    else:
        reason = f"{late} of {leased} leased instances are late with their heartbeats; up to {limit} may be"
    if never_renewed:
        reason += f" ({never_renewed} more have sent none since they registered, and do not count)"
    return ProtectionView(
        active=active,
        leased=leased + never_renewed,
        late=late,
        allowed_late=limit,
        reason=reason,
        never_renewed=never_renewed,
    )


class Pace:
    """How many were evicted within the last ``span_s``."""

    def __init__(self, span_s: float = PACE_S) -> None:
        self._span_s = span_s
        self._evicted: deque[tuple[float, int]] = deque()

    def evicted(self, count: int, now: float) -> None:
        """Notes evictions that happened, or whose outcome is unknown."""
        if count:
            self._evicted.append((now, count))

    def room(self, limit: int, now: float) -> int:
        """How many more may go at ``now`` if ``limit`` may within any span."""
        while self._evicted and self._evicted[0][0] <= now - self._span_s:
            self._evicted.popleft()
        return max(0, limit - sum(count for _, count in self._evicted))

    def left(self, now: float) -> Evicted:
        """What the next leader must count."""
        return tuple((int(max(0.0, now - at) * 1000), count) for at, count in self._evicted)

    def take_over(self, evicted: Evicted, now: float) -> None:
        """What the leader before evicted counts here, too."""
        self._evicted.extendleft((now - ago_ms / 1000, count) for ago_ms, count in reversed(evicted))


def choose(
    overdue: Overdue,
    view: ProtectionView,
    *,
    room: int,
    seed: int,
    unheard_room: int = 0,
    judged_max: int = JUDGED_MAX,
) -> tuple[tuple[Judgement, ...], ...]:
    """Whom to evict now: one tuple for each command to propose.

    At most ``room`` (see ``Pace``) in an order that ``seed`` decides; while
    protection is active only those silent past the ceiling. And at most ``unheard_room``
    of those who were never heard of: they hold nobody, but are held with the others, since a network that
    breaks while a fleet registers lets none of its first heartbeats through.
    """
    unheard, candidates = set(overdue.unheard), overdue.forced if view.active else overdue.judged
    chosen = _shuffled([judged for judged in candidates if judged not in unheard], seed)[: max(0, room)]
    chosen += _shuffled([judged for judged in candidates if judged in unheard], seed)[: max(0, unheard_room)]
    return tuple(tuple(chosen[start : start + judged_max]) for start in range(0, len(chosen), judged_max))


def _shuffled(judged: Sequence[Judgement], seed: int) -> list[Judgement]:
    # Knuth, The Art of Computer Programming, volume 2, algorithm P.
    order = list(judged)
    numbers = random.Random(seed)
    for last in range(len(order) - 1, 0, -1):
        other = numbers.randrange(last + 1)
        order[last], order[other] = order[other], order[last]
    return order
