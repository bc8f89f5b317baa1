"""Choosing one instance of many.

Pure: ``now`` is in seconds of a clock that never goes back, chance is given in.
A balancer looks at a list once, when it changes (``arranged``), and gives back
the function that picks from it: picking is what happens for every request.

    RoundRobin        one after the other
    Random            any
    Weighted          as often as the instances' weights say
    LeastConnections  one of those with the fewest calls under way from here
    PeakEwma          of two, the one that is likely to answer sooner
    ConsistentHash    the same one for the same key, as far as the list allows
    ZoneFirst         one nearby, if there are enough of them
"""

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Protocol

from ..replication.places import place_of, url_of
from ..replication.records import Instance

DECAY_S = 10.0
"""What an instance took this long ago counts for a third of what it takes now."""

RING_POINTS = 64
"""Of an instance of weight 1 on the hash ring: shares of a hundred instances differ by about an eighth."""

RING_POINTS_MAX = 100_000


class Endpoint:
    """One instance as this client sees it: its record, and how calls to it go.

    ``active``: calls under way. ``latency_s``: what the last calls took, weighted
    by their age; ``heard_at`` is the time of the last one. ``failures`` and ``shuns``:
    failures in a row, and ejections for them, since a call went well.
    """

    __slots__ = ("active", "failures", "heard_at", "instance", "latency_s", "shunned_until", "shuns")

    def __init__(self, instance: Instance) -> None:
        self.instance: Instance = instance
        self.active: int = 0
        self.latency_s: float = 0.0
        self.heard_at: float = -math.inf
        self.failures: int = 0
        self.shuns: int = 0
        self.shunned_until: float = -math.inf

    @property
    def host(self) -> str:
        place = place_of(self.instance)
        return place.host if place is not None else ""

    @property
    def port(self) -> int:
        place = place_of(self.instance)
        return place.port if place is not None else 0

    @property
    def url(self) -> str:
        """Where HTTP calls to it go: the first of its ``addrs`` that is HTTP, or ``http://`` and its address and
        port."""
        return url_of(self.instance)

    def took(self, latency_s: float, now: float) -> None:
        """A call ended. A rise counts at once, a fall little by little (peak EWMA, as in Finagle)."""
        if latency_s > self.latency_s:
            self.latency_s = latency_s
        else:
            share = math.exp(-max(0.0, now - self.heard_at) / DECAY_S)
            self.latency_s = self.latency_s * share + latency_s * (1 - share)
        self.heard_at = now

    def __repr__(self) -> str:
        return f"<{self.instance.id} at {self.url}, {self.active} active>"


Pick = Callable[[float, str], Endpoint]
"""One of the endpoints, at a time and for a key; what is not needed is not looked at."""


class Balancer(Protocol):
    """A way to choose. One balancer serves one list; it may keep what outlives a change of the list."""

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        """How to pick from ``endpoints``, at least one, until they change. Safe for several threads."""
        ...


class RoundRobin:
    """One after the other, beginning with the second (index = (counter + 1) modulo n)."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        turns, every, size = self._count, tuple(endpoints), len(endpoints)
        return lambda now, key: every[next(turns) % size]


class Random:
    """Any of them, all equally often."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance: random.Random = chance or random.Random()

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        draw, every, size = self._chance.random, tuple(endpoints), len(endpoints)
        return lambda now, key: every[int(draw() * size)]


class Weighted:
    """Each as often as its ``weight`` says; one of weight 0 only where all have it."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance: random.Random = chance or random.Random()

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        weights = [endpoint.instance.weight for endpoint in endpoints]
        ends = list(itertools.accumulate(weights))
        total = ends[-1]
        if total == 0:
            return Random(self._chance).arranged(endpoints)
        draw, every = self._chance.random, tuple(endpoints)
        return lambda now, key: every[bisect_right(ends, draw() * total)]


class LeastConnections:
    """One with the fewest calls under way from this client; among equals, any."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance: random.Random = chance or random.Random()

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        # Twice the list: a slice from anywhere holds each once, so that equals take turns.
        draw, size, twice, active = self._chance.random, len(endpoints), (*endpoints, *endpoints), attrgetter("active")

        def pick(now: float, key: str) -> Endpoint:
            start = int(draw() * size)
            return min(twice[start : start + size], key=active)

        return pick


class PeakEwma:
    """Of two drawn at random, the one whose calls took less, times the calls that it has under way.

    Mitzenmacher, The power of two choices (2001). What was heard long ago fades,
    so that a slow instance is tried again; an unknown one is tried soon, but
    not by everybody at once.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance: random.Random = chance or random.Random()

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        draw, every, size = self._chance.random, tuple(endpoints), len(endpoints)
        if size == 1:
            return lambda now, key: every[0]

        def pick(now: float, key: str) -> Endpoint:
            place = int(draw() * size)
            one, other = every[place], every[(place + 1 + int(draw() * (size - 1))) % size]
            return one if _cost(one, now) <= _cost(other, now) else other

        return pick


def _cost(endpoint: Endpoint, now: float) -> float:
    if endpoint.heard_at == -math.inf:
        return math.inf if endpoint.active else 0.0
    faded = endpoint.latency_s * math.exp(-max(0.0, now - endpoint.heard_at) / DECAY_S)
    return faded * (endpoint.active + 1)


class ConsistentHash:
    """The same one for the same key. When one comes or goes, only its own share of the keys moves.

    Karger et al., Consistent hashing and random trees (1997). Without a key, any.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance: random.Random = chance or random.Random()

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        weights = [max(1, endpoint.instance.weight) for endpoint in endpoints]
        points = min(RING_POINTS, max(1, RING_POINTS_MAX // sum(weights)))
        ring = sorted(
            (_place(f"{endpoint.instance.id}#{number}"), position)
            for position, (endpoint, weight) in enumerate(zip(endpoints, weights, strict=True))
            for number in range(weight * points)
        )
        places, owners = [place for place, _ in ring], [endpoints[position] for _, position in ring]
        size, anyone = len(ring), Random(self._chance).arranged(endpoints)

        def pick(now: float, key: str) -> Endpoint:
            return owners[bisect_right(places, _place(key)) % size] if key else anyone(now, key)

        return pick


def _place(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class ZoneFirst:
    """Those of one zone, chosen among by ``within``; all of them where the zone has fewer than ``enough``."""

    def __init__(self, zone: str, within: Balancer | None = None, *, enough: int = 2) -> None:
        self._zone: str = zone
        self._within: Balancer = within or RoundRobin()
        self._enough: int = enough

    def arranged(self, endpoints: Sequence[Endpoint]) -> Pick:
        near = [endpoint for endpoint in endpoints if endpoint.instance.zone == self._zone]
        return self._within.arranged(near if len(near) >= min(self._enough, len(endpoints)) and near else endpoints)


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "ewma": PeakEwma,
    "hash": ConsistentHash,
    "least": LeastConnections,
    "random": Random,
    "round-robin": RoundRobin,
    "weighted": Weighted,
}
"""By the names that commands know them by."""
