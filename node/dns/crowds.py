"""Who serves a name, ready to be drawn from: a few of twenty thousand cost what a few of three cost.

Pure; the chance is handed in. A crowd is made once for each state of its services, and drawing
goes by weight: each is the next with a chance like its weight, and weight 0 comes last.
"""

import heapq
import itertools
import math
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Generic, TypeVar

from ...replication.places import Place, place_of
from ...replication.records import Instance

CROWD_BYTES = 512
INSTANCE_BYTES = 256
"""What a crowd takes, and each instance in it, about: names and numbers, the instance itself is the registry's."""

CROWDS_BYTES_MAX = 16 * 1024 * 1024
SAMPLED_FROM = 4
"""Of a pool of this many times what is wanted, single ones are drawn; a smaller one is put in order whole."""

T = TypeVar("T", bound=Hashable)


class Pool(Generic[T]):
    """Things with weights. Each is there once, its weight the sum of what was said of it."""

    def __init__(self, weights: Mapping[T, int]) -> None:
        self._weights: Mapping[T, int] = weights
        self._heavy: list[T] = [thing for thing, weight in weights.items() if weight > 0]
        self._sums: list[int] = list(itertools.accumulate(weights[thing] for thing in self._heavy))

    def __len__(self) -> int:
        return len(self._weights)

    def weight(self, thing: T) -> int:
        return self._weights[thing]

    def drawn(self, most: int, chance: random.Random) -> list[T]:
        """At most ``most`` of them, in the order in which they should be tried."""
        if len(self._heavy) < SAMPLED_FROM * most:
            return self._ordered(most, chance)
        found: dict[T, None] = {}
        # As many tries as even weights need, and as many again: a few that outweigh all others come up over and over.
        for _ in range(2 * most + 16):
            found[self._heavy[bisect_right(self._sums, chance.random() * self._sums[-1])]] = None
            if len(found) == most:
                return list(found)
        return self._ordered(most, chance)

    def _ordered(self, most: int, chance: random.Random) -> list[T]:
        # The order of random() ** (1 / weight), largest first, without its rounding to 1 for large weights.
        def key(thing: T) -> tuple[bool, float]:
            drawn, weight = -math.log(1.0 - chance.random()), self._weights[thing]
            return (True, drawn) if weight <= 0 else (False, drawn / weight)

        return heapq.nsmallest(most, self._weights, key=key)


class Crowd:
    """The instances that serve one name, looked at in the ways in which they are asked for."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self.instances: dict[int, Instance] = dict(enumerate(instances))

    @cached_property
    def everybody(self) -> Pool[int]:
        """The instances themselves, by number."""
        return Pool({number: instance.weight for number, instance in self.instances.items()})

    @cached_property
    def hosts(self) -> tuple[Pool[str], Pool[str], Pool[str]]:
        """Their hosts: addresses of IPv4, of IPv6, names."""
        weights: tuple[dict[str, int], ...] = ({}, {}, {})
        for place, weight in self._placed():
            host = place.host
            of = weights[1 if ":" in host else 0 if host.replace(".", "").isdigit() else 2]
            of[host] = of.get(host, 0) + weight
        return Pool(weights[0]), Pool(weights[1]), Pool(weights[2])

    @cached_property
    def ports(self) -> Pool[tuple[str, int]]:
        """Their hosts and ports."""
        weights: dict[tuple[str, int], int] = {}
        for place, weight in self._placed():
            key = place.host, place.port
            weights[key] = weights.get(key, 0) + weight
        return Pool(weights)

    def _placed(self) -> Iterator[tuple[Place, int]]:
        """Where each of them is, with its weight."""
        for instance in self.instances.values():
            place = place_of(instance)
            if place is not None and "%" not in place.host:  # an address with a zone means something on one machine
                yield place, instance.weight


class Crowds:
    """Crowds by what was asked, kept while their services stay as they are; those asked for last, up to a size."""

    def __init__(self, bytes_max: int = CROWDS_BYTES_MAX) -> None:
        self._bytes_max: int = bytes_max
        self._bytes: int = 0
        self._kept: OrderedDict[Hashable, tuple[Hashable, Crowd, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, key: Hashable, version: Hashable, make: Callable[[], Iterable[Instance]]) -> Crowd:
        """The crowd of ``key``, made anew where it was not of this ``version``. Nobody is not remembered."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version:
            self._kept.move_to_end(key)
            return kept[1]
        if kept is not None:
            self._forget(key)
        crowd = Crowd(make())
        size = CROWD_BYTES + INSTANCE_BYTES * len(crowd.instances)
        if crowd.instances and size <= self._bytes_max:
            self._kept[key] = (version, crowd, size)
            self._bytes += size
            while self._bytes > self._bytes_max:
                self._forget(next(iter(self._kept)))
        return crowd

    def _forget(self, key: Hashable) -> None:
        self._bytes -= self._kept.pop(key)[2]
