"""Whether this node's wall clock agrees with the others': what they say, and what follows. Pure.

The leader stamps every write with its wall clock, and the registry's time never goes back. So
one leader whose clock is a year ahead would make every later time a year too late, for a year,
whatever is put right meanwhile. Therefore the nodes tell each other what their wall clocks show
(``wire.Ping``), and one that is far off neither leads nor stamps.

No delay can make a clock look wrong. A node puts its own monotonic time into what it sends, and
gets back the newest that the peer had read: the peer read its wall clock after that moment and
before its answer arrived. So each answer bounds, from both sides, how far the peer's wall clock is
from this node's monotonic one. A message that lay in the buffer of a process that stood still
makes these bounds wide, and wide bounds prove nothing. And since they are about the monotonic
clock, they stay true when this node's own wall clock is set.

What counts is the distance to the lower median of all clocks that are known, this node's own
among them: of three the middle one, of two the earlier one. So of two clocks that disagree the one
that is *ahead* is off, whichever of them is right: a time that was stamped too early is put right by
the next one, a time that was stamped too late by nothing.
"""

from collections.abc import Iterable
from typing import NamedTuple

LIMIT_S = 10.0
"""A wall clock may be so far from the others'."""

ANSWER_S = 10.0
"""An answer to what was sent longer ago than that proves too little to be kept."""

_SECOND_NS = 10**9
_LIMIT_NS = int(LIMIT_S * _SECOND_NS)


class _Bounds(NamedTuple):
    """How far a peer's wall clock is ahead of this node's monotonic clock (ns), at least and at most."""

    least_ns: int
    most_ns: int
    asked_at: float


class Clocks:
    """What one node knows of the others' wall clocks.

    ``heard`` belongs to one thread, the rest is for any. ``now`` is the node's monotonic clock in
    seconds, ``own_ns`` its wall clock at that moment.
    """

    def __init__(self) -> None:
        self._bounds: dict[str, _Bounds] = {}
        self.error: str = ""
        """What is wrong with this node's wall clock. It stands until the others show that it is not so any more."""

    def heard(self, peer: str, wall_ns: int, *, asked_at: float, now: float, own_ns: int) -> None:
        """``peer`` showed ``wall_ns`` after it had read what this node sent at ``asked_at``; that came ``now``."""
        known = self._bounds.get(peer)
        if not now - ANSWER_S <= asked_at <= now or (known is not None and asked_at < known.asked_at):
            return
        bounds = _Bounds(wall_ns - _ns(now), wall_ns - _ns(asked_at), asked_at)
        # A new table, so that no other thread meets one that grows.
        self._bounds = {**self._bounds, peer: bounds}
        self._judge(now, own_ns)

    def _judge(self, now: float, own_ns: int) -> None:
        """Off is what is certainly off, and well again what is certainly well; between them nothing changes."""
        own = own_ns - _ns(now)
        least, most = self._middle(own)
        if own - most > _LIMIT_NS:
            self.error = _sentence(own - most, "ahead of")
        elif least - own > _LIMIT_NS:
            self.error = _sentence(least - own, "behind")
        elif own - least <= _LIMIT_NS and most - own <= _LIMIT_NS:
            self.error = ""

    def objection(self, time_ns: int, now: float, needed: int = 0) -> str:
        """Why nothing may be stamped with ``time_ns``, or nothing.

        The clock may have been set since the others were heard: who stamps does not wait for that to be found.
        ``needed``: so many peers must have been heard since this process began, or nobody knows.
        """
        if self.error:
            return self.error
        if len(self._bounds) < needed:
            return f"this node has compared its wall clock with {len(self._bounds)} others yet, and {needed} are needed"
        stamp = time_ns - _ns(now)
        ahead_ns = stamp - self._middle(stamp)[1]
        return _sentence(ahead_ns, "ahead of") if ahead_ns > _LIMIT_NS else ""

    def trusts(self, peer: str, now: float, own_ns: int) -> bool:
        """Whether ``peer`` may be given the lead: its clock is not certainly far from the others'."""
        bounds = self._bounds.get(peer)
        if bounds is None:
            return True
        least, most = self._middle(own_ns - _ns(now))
        return bounds.least_ns - most <= _LIMIT_NS and least - bounds.most_ns <= _LIMIT_NS

    def ahead_s(self, now: float, own_ns: int) -> float | None:
        """How far this node's clock is ahead of the others' (behind, if negative), give or take how long their words
        took; None if nobody was heard."""
        own = own_ns - _ns(now)
        return (own - self._middle(own)[0]) / _SECOND_NS if self._bounds else None

    def _middle(self, own: int) -> tuple[int, int]:
        """The lower median of all clocks, at least and at most.

        A peer that is away counts with what it said last: clocks that nobody sets drift by a few seconds in a day,
        and those that a leader hears are never the fewer.
        """
        known = self._bounds.values()
        return _lower_median(own, (b.least_ns for b in known)), _lower_median(own, (b.most_ns for b in known))


def _lower_median(own: int, others: Iterable[int]) -> int:
    clocks = sorted((own, *others))
    return clocks[(len(clocks) - 1) // 2]


def _ns(seconds: float) -> int:
    return int(seconds * _SECOND_NS)


def _sentence(off_ns: int, where: str) -> str:
    return (
        f"this node's wall clock is {off_ns // _SECOND_NS} s {where} the others' (at most {LIMIT_S:g} s are allowed): "
        "it neither leads nor stamps writes until that is put right. Set it, and run a time service on every host"
    )
