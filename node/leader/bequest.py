"""What a leader whose term has ended leaves to the next one: how its leases stand. Pure.

A new leader gives every lease a full length, since it cannot know what was renewed before. After a crash that is
right; but hand-overs in a row would keep the dead for as long as they go on. So a leader that is replaced and lives
tells its successor how all of its leases stand, and what of them was not heard of meanwhile goes on from there.

Nobody's time ends earlier than its last acknowledged heartbeat plus its length, whatever becomes of the message:

- it is made when the term is over: what it does not know of was acknowledged by nobody but its reader. A hand-over
  that fails ends no term, and so leaves nothing;
- it counts for the leader of the very next term, which alone can say that nobody led in between, and there for the
  leases that it has heard nothing of since it began;
- only spans of time travel. Its reader counts them from when it reads, which is after they were measured;
- lost, late, or said twice, it shortens nothing that a new leader would not have been free to shorten at once.

All leases go or none: those that are late hold evictions, and must be as many there as they were here.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

BYTES_MAX = 1024 * 1024
"""Of one message. Leases that do not all fit begin anew."""
LEASES_MAX = 20_000
"""More are not even tried: with names of usual length they do not fit."""
EVICTED_MAX = 1_000
"""Times at which somebody was evicted within a minute; a leader sweeps 300 times at most."""

GRACE_SHARE = 0.5
GRACE_S = 1.0

Count = Annotated[int, Meta(ge=0, le=2**53)]


class Left(Struct, frozen=True, array_like=True, gc=False):
    """How one lease stood, bound to its registration. ``silent_ms``: heard of so long ago, while somebody could
    listen; ``left_ms``: until it would have been overdue; ``via``: the node through which it was last renewed, unless
    that is down: ``left_ms`` holds what it gets for that, and each leader in a row would give it once more.

    ``name`` is its key. It is looked up and nothing else, and ten thousand patterns to compare would take too long.
    """

    name: tuple[str, str, str]
    reg_index: Count
    silent_ms: Count
    left_ms: Count
    heard_again: bool
    via: str | None


Evicted = Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=EVICTED_MAX)]
"""Of evictions: how long ago, in ms, and how many; the oldest first."""


class Bequest(Struct, frozen=True, array_like=True):
    """What the leader of ``term`` leaves: its leases, and whom it evicted lately, of the others and of the unheard."""

    term: Count
    leases: Annotated[tuple[Left, ...], Meta(max_length=LEASES_MAX)]
    evicted: Evicted = ()
    unheard_evicted: Evicted = ()

    def falls_to(self, term: int) -> bool:
        """Whether it counts for the leader of ``term``: nobody led in between."""
        return term == self.term + 1


def allowance_s(ttl_s: float, left_s: float, silent_s: float) -> float:
    """How long a lease lasts once the next leader has read how it stood.

    Never less than ``left_s``, so nobody goes earlier than if nothing had been handed over. And a heartbeat may have
    failed because leadership changed: the next one comes a third of a lease after it (``leases.INTERVALS_PER_LEASE``).
    With half of that for those that are late, that is half a lease, and a second to find another node; for short leases
    all of the lease. Everybody has so long who was silent for no more than a lease; who was silent for longer has that
    much less. So hand-overs in a row lengthen a lease by this grace once, and not once each.
    """
    grace_s = min(ttl_s, ttl_s * GRACE_SHARE + GRACE_S)
    return max(0.0, left_s, min(grace_s, ttl_s + grace_s - silent_s))


def to_bytes(bequest: Bequest) -> bytes | None:
    """As it travels; None if it is too large to."""
    if max(len(bequest.evicted), len(bequest.unheard_evicted)) > EVICTED_MAX:
        return None
    data = msgspec.msgpack.encode(bequest)
    return data if len(data) <= BYTES_MAX else None


def from_bytes(data: bytes) -> Bequest:
    """Raises ``msgspec.DecodeError`` if it is none, or too large to be."""
    if len(data) > BYTES_MAX:
        raise msgspec.DecodeError(f"how leases stood takes {len(data)} bytes: {BYTES_MAX} at most")
    try:
        return _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"how leases stood cannot be read: {error}") from error


_decoder = msgspec.msgpack.Decoder(Bequest)
